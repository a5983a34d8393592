"""Real processes on two nodes, real sockets between them: exact instants, and a planted bug that must show."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.coordinator.cluster import PROGRAMS, Cluster

KERNEL_LATENESS_NS = 1_000  # HL_WAIT_KERNEL_LATENESS_NS: a sleep ends this much after its deadline
SERVICE_NS = 10_000_000 + KERNEL_LATENESS_NS


@pytest.mark.parametrize("kind", ["one", "each"])
def test_a_queue_across_nodes_is_the_exact_schedule(any_cluster: Cluster, kind: str) -> None:
    """Requests wait unread in a socket (one), or as connections that nobody has accepted (each), while the server sleeps."""
    cluster = any_cluster
    coordinator = cluster.coordinator()
    server = cluster.node(1, cluster.program(1, "one_server", kind, "60"))
    client = cluster.node(0, cluster.program(0, "one_server", kind, "60"))
    assert client.wait() == 0, client.errors
    assert server.wait() == 0, server.errors
    assert coordinator.wait() == 0, coordinator.errors
    got = json.loads(client.output)
    free_ns, expected = 0, []
    for sent_ns in got["sent_ns"]:
        free_ns = max(free_ns, sent_ns) + SERVICE_NS
        expected.append(free_ns)
    assert got["answered_ns"] == expected
    waited = sum(b - a > SERVICE_NS for a, b in zip(got["sent_ns"], got["answered_ns"], strict=True))
    assert waited > 10  # otherwise nothing queued and the test shows nothing
    assert "outside-connection" not in client.errors


def ping_pong(cluster: Cluster, messages: int, **options: object) -> dict[str, int]:
    cluster.coordinator(**options)  # type: ignore[arg-type]
    cluster.node(1, cluster.program(1, "ping_pong", str(messages)))
    client = cluster.node(0, cluster.program(0, "ping_pong", str(messages)))
    assert client.wait(240) == 0, client.errors
    result: dict[str, int] = json.loads(client.output)
    return result


def test_ten_thousand_messages_arrive_at_the_instant_they_were_sent(any_cluster: Cluster) -> None:
    assert ping_pong(any_cluster, 10_000) == {"messages": 10_000, "late": 0, "worst_ns": 0}


def test_a_token_round_three_nodes(tmp_path: Path) -> None:
    """Over sockets of IPv6 that speak IPv4."""
    cluster = Cluster(tmp_path, 3)
    try:
        cluster.coordinator()
        commands = [
            [sys.executable, str(PROGRAMS / "ring.py"), a, "500", *cluster.addresses] for a in cluster.addresses
        ]
        nodes = [cluster.node(rank, command) for rank, command in enumerate(commands)]
        assert [part.wait() for part in nodes] == [0, 0, 0], nodes[0].errors
        assert json.loads(nodes[0].output) == {"rounds": 500, "late": 0}, [part.errors for part in nodes]
    finally:
        cluster.close()


def test_what_wakes_a_node_from_outside_takes_its_report_back(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody has a deadline, so the reports stand; then somebody types, and the one who reads wants to know the time."""
    os.mkfifo(tmp_path / "typed")
    reads = "import sys, time; line = open(sys.argv[1]).readline(); print(line.strip(), time.monotonic())"
    coordinator = cluster.coordinator("--no-progress", "0")
    waits = "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"
    cluster.node(1, [sys.executable, "-c", waits])
    reader = cluster.node(0, [sys.executable, "-c", reads, str(tmp_path / "typed")])
    coordinator.wait_for("the clock is frozen from here")
    with (tmp_path / "typed").open("w") as typed:
        time.sleep(1)
        typed.write("hello\n")
    assert reader.wait(60) == 0
    assert reader.output == "hello 100000.0\n"


def test_a_coordinator_that_ignores_bytes_in_flight_is_found_out(cluster: Cluster) -> None:
    careless = [sys.executable, str(PROGRAMS / "careless_coordinator.py")]
    assert ping_pong(cluster, 2_000, program=careless)["late"] > 0


def test_bytes_that_find_no_room_are_not_in_flight(cluster: Cluster) -> None:
    """8 MB to a receiver that sleeps 5 virtual seconds: most of it stays with the sender, and the clock must go on."""
    sends = """
import socket, sys, time
while True:
    try: connection = socket.create_connection((sys.argv[3], 7303), source_address=(sys.argv[2], 0)); break
    except OSError: time.sleep(0.05)
began = time.monotonic()
connection.sendall(bytes(8_000_000))
print(time.monotonic() - began)
"""
    receives = """
import socket, sys, time
connection, _ = socket.create_server((sys.argv[3], 7303)).accept()
time.sleep(5)
while connection.recv(1 << 20): pass
"""
    cluster.coordinator()
    arguments = [cluster.addresses[0], *cluster.addresses]
    cluster.node(1, [sys.executable, "-c", receives, *arguments])
    client = cluster.node(0, [sys.executable, "-c", sends, *arguments])
    assert client.wait() == 0, client.errors
    assert float(client.output) == pytest.approx(5.000001, abs=0.06)
