"""An M/D/1 queue over TCP between two nodes: node 0 sends requests at random instants, node 1 serves one at a time.

Prints, on node 0, JSON: for each request the ns at which it was sent and at which its answer came, and how late the decoy was.
Arguments: OWN NODE0 NODE1 one|each REQUESTS. one: all requests on one connection; each: a connection of its own for each.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time

own, node0, node1, kind, count = *sys.argv[1:5], int(sys.argv[5])
PORT = 7301
SERVICE_S = 0.010


def decoy() -> None:
    """Without other deadlines a wrong jump has nowhere to land."""
    while True:
        time.sleep(0.0037)


def serve() -> None:
    with socket.create_server((node1, PORT), backlog=count) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as requests:
                for line in requests:
                    time.sleep(SERVICE_S)
                    connection.sendall(line)


def connect() -> socket.socket:
    while True:
        try:
            return socket.create_connection((node1, PORT), source_address=(node0, 0))
        except OSError:
            time.sleep(0.05)


def ask() -> None:
    source = random.Random(7)
    sent, answered = [0] * count, [0] * count
    connect().close()
    shared = connect() if kind == "one" else None

    def read(connection: socket.socket) -> None:
        with connection.makefile("rb") as answers:
            for line in answers:
                answered[int(line)] = time.monotonic_ns()
                if kind == "each" or int(line) == count - 1:
                    return

    readers = []
    if shared is not None:
        readers.append(threading.Thread(target=read, args=(shared,)))
        readers[0].start()
    for index in range(count):
        time.sleep(source.expovariate(0.7 / SERVICE_S))
        connection = shared or connect()
        sent[index] = time.monotonic_ns()
        connection.sendall(b"%d\n" % index)
        if shared is None:
            readers.append(threading.Thread(target=read, args=(connection,)))
            readers[-1].start()
    for reader in readers:
        reader.join()
    print(json.dumps({"sent_ns": sent, "answered_ns": answered}))


threading.Thread(target=decoy, daemon=True).start()
if own == node1:
    serve()
else:
    ask()
