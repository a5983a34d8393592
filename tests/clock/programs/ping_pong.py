"""Messages between two processes, each with a decoy timer on which a wrong jump could land.

Prints {"late": messages that arrived at another virtual instant than they were sent, "worst_ns": by how much}. Argument: tcp,
unix or nagle (two small writes without TCP_NODELAY before each answer).
"""

import json
import multiprocessing
import socket
import sys
import threading
import time

ROUNDS = 400
STEP_S = 0.013


def decoy() -> None:
    while True:
        time.sleep(0.0007)


def serve(kind: str, listener: socket.socket) -> None:
    threading.Thread(target=decoy, daemon=True).start()
    connection, _ = listener.accept()
    while message := connection.recv(64):
        while not message.endswith(b"\n"):
            message += connection.recv(64)
        stamp = time.monotonic_ns()
        time.sleep(STEP_S)
        connection.sendall(b"%d" % stamp)


def main(kind: str) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    listener = socket.socket(family)
    listener.bind(f"\0hyperlapse-ping-pong-{time.time_ns()}" if kind == "unix" else ("127.0.0.1", 0))
    listener.listen()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(kind, listener), daemon=True)
    process.start()
    threading.Thread(target=decoy, daemon=True).start()
    connection = socket.socket(family)
    connection.connect(listener.getsockname())
    time.sleep(0.1)
    late, worst_ns = 0, 0
    for _ in range(ROUNDS):
        sent_ns = time.monotonic_ns()
        if kind == "nagle":
            connection.sendall(b"x")
        connection.sendall(b"y\n")
        received_ns = int(connection.recv(64))
        back_ns = time.monotonic_ns()
        error_ns = max(received_ns - sent_ns, back_ns - received_ns - int(STEP_S * 1e9) - 1000)
        late += error_ns != 0
        worst_ns = max(worst_ns, error_ns)
    print(json.dumps({"late": late, "worst_ns": worst_ns}))


if __name__ == "__main__":
    main(sys.argv[1])
