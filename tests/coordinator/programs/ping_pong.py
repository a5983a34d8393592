"""A message to and fro between two nodes, each stamped with its sender's virtual ns; sleeps in between, decoys on both.

Prints, on node 0, JSON: messages, how many came at another instant than they were sent at, and the worst difference.
Arguments: OWN NODE0 NODE1 MESSAGES.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time

own, node0, node1, count = *sys.argv[1:4], int(sys.argv[4])
PORT = 7302
SIZES = (0, 1, 3000, 0, 70_000, 0)
HEAD = struct.Struct("<qqqI")


def decoy() -> None:
    while True:
        time.sleep(0.0009)


def receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise SystemExit(0)
        data += part
    return bytes(data)


def main() -> None:
    if own == node1:
        connection, _ = socket.create_server((node1, PORT)).accept()
    else:
        while True:
            try:
                connection = socket.create_connection((node1, PORT), source_address=(node0, 0))
                break
            except OSError:
                time.sleep(0.05)
    late = worst_ns = 0

    def send(index: int) -> None:
        size = SIZES[index % len(SIZES)]
        connection.sendall(HEAD.pack(time.monotonic_ns(), late, worst_ns, size) + b"\0" * size)

    for index in range(own == node1, count, 2):  # the numbers of the messages that this node sends
        if own == node0:
            send(index)
        sent_ns, others_late, others_worst_ns, size = HEAD.unpack(receive(connection, HEAD.size))
        receive(connection, size)
        difference_ns = abs(time.monotonic_ns() - sent_ns)
        late = others_late + (difference_ns > 0)
        worst_ns = max(others_worst_ns, difference_ns)
        if index % 16 == 5 or index % 16 == 12:
            time.sleep(0.001)
        if own == node1:
            send(index)
    if own == node0:
        print(json.dumps({"messages": count, "late": late, "worst_ns": worst_ns}))


threading.Thread(target=decoy, daemon=True).start()
main()
