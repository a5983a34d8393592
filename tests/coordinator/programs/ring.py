"""A token that goes round three nodes, stamped with its sender's virtual ns; its holder sleeps now and then, all have decoys.

Prints, on node 0, JSON: rounds, how many tokens came at another instant than they were sent at.
Arguments: OWN ROUNDS ADDRESS... (of all nodes, in the order of the ring). Every node listens on all addresses, IPv6 and IPv4.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time

own, rounds, ring = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
place = ring.index(own)
PORT = 7310
TOKEN = struct.Struct("<qq")


def decoy() -> None:
    while True:
        time.sleep(0.0011 + 0.0002 * place)


def main() -> None:
    listener = socket.create_server(("::", PORT + place), family=socket.AF_INET6, dualstack_ipv6=True)
    following = (place + 1) % len(ring)
    while True:
        try:
            to = socket.create_connection((ring[following], PORT + following), source_address=(own, 0))
            break
        except OSError:
            time.sleep(0.05)
    come, _ = listener.accept()
    late = 0
    for number in range(rounds + (place != 0)):
        if place != 0 or number > 0:
            data = come.recv(TOKEN.size, socket.MSG_WAITALL)
            if not data:
                return
            now_ns = time.monotonic_ns()
            sent_ns, late = TOKEN.unpack(data)
            late += now_ns != sent_ns
            if now_ns != sent_ns:
                print(f"round {number}: late by {now_ns - sent_ns} ns", file=sys.stderr, flush=True)
            if place == 0 and number == 1:
                late = 0  # in the first round nodes may still have been asleep between attempts to connect
        if number % 5 == place:
            time.sleep(0.002)
        to.sendall(TOKEN.pack(time.monotonic_ns(), late))
    data = come.recv(TOKEN.size, socket.MSG_WAITALL)
    print(
        json.dumps({"rounds": rounds, "late": TOKEN.unpack(data)[1] + (TOKEN.unpack(data)[0] != time.monotonic_ns())})
    )


threading.Thread(target=decoy, daemon=True).start()
main()
