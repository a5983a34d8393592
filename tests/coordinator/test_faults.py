"""Nothing hangs and nothing ends in silence: dead, stopped and missing parts, strangers, wrong inputs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest

from hyperlapse.coordinator import hosts_pb2 as messages
from hyperlapse.coordinator.protocol import JOIN, PROTOCOL, package_version
from tests.coordinator.cluster import HYPERLAPSE, Cluster, Part

# Both nodes keep the clock moving, so that a part that is missed stops something.
TICKS = [sys.executable, "-c", "import time\nwhile True: time.sleep(0.01)"]
STOPPED = 75


@pytest.fixture
def running(cluster: Cluster) -> tuple[Cluster, Part, list[Part]]:
    """A coordinator and two nodes whose clock moves."""
    coordinator = cluster.coordinator("--silence", "3")
    nodes = [cluster.node(rank, TICKS) for rank in range(2)]
    coordinator.wait_for("the clock is frozen from here")
    time.sleep(0.5)
    return cluster, coordinator, nodes


def test_a_killed_node_ends_the_others(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    family = psutil.Process(nodes[1].process.pid).children(recursive=True)
    nodes[1].process.kill()
    assert coordinator.wait(30) == STOPPED
    assert "node 1" in coordinator.errors
    assert "left without a word" in coordinator.errors
    assert nodes[0].wait(30) == STOPPED
    assert "the run of all nodes is over: node 1" in nodes[0].errors
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_a_killed_node_agent_ends_all(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    nodes[1].children("coordinator.agent")[0].kill()
    assert [part.wait(30) for part in (*nodes, coordinator)] == [STOPPED] * 3
    assert "the node agent ended without a word" in nodes[1].errors
    assert "left without a word" in nodes[0].errors


def test_a_killed_time_keeper_ends_all(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    nodes[0].children("hyperlapse-keeper")[0].kill()
    assert [part.wait(30) for part in (*nodes, coordinator)] == [STOPPED] * 3
    assert "the time-keeper died" in nodes[1].errors


def test_a_killed_coordinator_ends_the_nodes(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    coordinator.process.kill()
    assert [part.wait(30) for part in nodes] == [STOPPED] * 2
    assert all("the coordinator is gone" in part.errors for part in nodes)


def test_an_interrupted_coordinator_says_so(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    keeper = nodes[0].children("hyperlapse-keeper")[0]
    alone = subprocess.run([*HYPERLAPSE, "clock", keeper.cmdline()[-1], "real"], capture_output=True, text=True)
    assert alone.returncode == 2  # one node's clock is not its own to move
    assert "other hosts share this clock" in alone.stderr
    coordinator.process.send_signal(signal.SIGINT)
    assert [part.wait(30) for part in (*nodes, coordinator)] == [STOPPED] * 3
    assert all("the coordinator was stopped" in part.errors for part in nodes)


def test_a_stopped_coordinator_is_missed(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    coordinator.process.send_signal(signal.SIGSTOP)
    assert [part.wait(30) for part in nodes] == [STOPPED] * 2
    assert all("the coordinator was silent for 3 s" in part.errors for part in nodes)


def test_a_stopped_node_is_missed(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    agent = nodes[1].children("coordinator.agent")[0]
    agent.suspend()
    assert coordinator.wait(30) == STOPPED
    assert "node 1" in coordinator.errors
    assert "was silent for 3 s" in coordinator.errors
    assert nodes[0].wait(30) == STOPPED
    agent.resume()  # it never comes back into the run: its clock is another one
    assert nodes[1].wait(30) == STOPPED


def test_an_interrupted_node_ends_all(running: tuple[Cluster, Part, list[Part]]) -> None:
    _, coordinator, nodes = running
    nodes[1].process.send_signal(signal.SIGTERM)
    assert nodes[1].wait(30) != 0
    assert [part.wait(30) for part in (nodes[0], coordinator)] == [STOPPED] * 2
    assert "it was interrupted" in nodes[0].errors


def test_nodes_that_do_not_all_come(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--join-limit", "10")
    node = cluster.node(1, TICKS)
    assert coordinator.wait(30) == STOPPED
    assert "node 0 did not come within 10 s" in coordinator.errors
    assert node.wait(30) == 1
    assert "over before it began: node 0 did not come" in node.errors


def test_strangers_and_misfits_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    coordinator = cluster.coordinator()
    version = package_version()
    for request, words in [
        (messages.JoinRequest(protocol=PROTOCOL + 1, version=version, nodes=2), "install the same version everywhere"),
        (messages.JoinRequest(protocol=PROTOCOL, version="0.0.0", nodes=2), "install the same version everywhere"),
        (messages.JoinRequest(protocol=PROTOCOL, version=version, nodes=3), "waits for 2 nodes"),
        (messages.JoinRequest(protocol=PROTOCOL, version=version, nodes=2, rank=2), "ranks go from 0 to 1"),
    ]:
        error = _join(cluster, request)
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert words in error.details()
    first = cluster.node(0, TICKS)
    coordinator.wait_for("joined: 1 of 2")
    second = cluster.node(0, TICKS)
    cluster.token = tmp_path / "other"
    cluster.token.write_text("x" * 32)
    stranger = cluster.node(1, TICKS)
    assert [part.wait(30) for part in (second, stranger)] == [1, 1]
    assert "rank 0 has joined already" in second.errors
    assert "refuses this token" in stranger.errors
    assert [part.process.poll() for part in (first, coordinator)] == [None, None]  # they still wait for the other node


def _join(cluster: Cluster, request: messages.JoinRequest) -> grpc.RpcError:
    call = grpc.insecure_channel(f"{cluster.host}:{cluster.port}").unary_unary(
        JOIN,
        request_serializer=messages.JoinRequest.SerializeToString,
        response_deserializer=messages.JoinReply.FromString,
    )
    with pytest.raises(grpc.RpcError) as refused:
        call(request, timeout=10, metadata=(("authorization", f"Bearer {cluster.token.read_text()}"),))
    return refused.value


def test_nodes_without_addresses_of_their_own(cluster: Cluster) -> None:
    cluster.addresses = ["127.0.2.1", "127.0.2.1"]
    coordinator = cluster.coordinator()
    nodes = [cluster.node(rank, TICKS) for rank in range(2)]
    assert coordinator.wait(30) == STOPPED
    assert [part.wait(30) for part in nodes] == [1, 1]
    assert "give each node --node-address" in nodes[0].errors


def test_a_command_that_fails_ends_all(cluster: Cluster) -> None:
    coordinator = cluster.coordinator()
    waits = cluster.node(0, TICKS)
    fails = cluster.node(1, [sys.executable, "-c", "import time, sys; time.sleep(1); sys.exit(3)"])
    assert fails.wait(60) == 3
    assert waits.wait(60) == STOPPED
    assert coordinator.wait(60) == STOPPED
    assert "ended with status 3" in waits.errors


def test_a_command_that_is_not_there_ends_all(cluster: Cluster) -> None:
    cluster.coordinator()
    waits = cluster.node(0, TICKS)
    assert cluster.node(1, ["no-such-program"]).wait(60) == 127
    assert waits.wait(60) in (1, STOPPED)  # its own command may not have been started yet
    assert "no-such-program: command not found" in waits.errors


def test_the_run_ends_with_the_first_node(cluster: Cluster) -> None:
    """Another node's command may end well before; its clock goes on."""
    coordinator = cluster.coordinator()
    program = "import time; began = time.monotonic(); time.sleep({}); print(time.monotonic() - began)"
    first = cluster.node(0, [sys.executable, "-c", program.format(5)])
    second = cluster.node(1, [sys.executable, "-c", program.format(2)])
    assert [part.wait(60) for part in (first, second, coordinator)] == [0, 0, 0]
    assert float(first.output) == pytest.approx(5.000001)
    assert float(second.output) == pytest.approx(2.000001)


def test_a_deadlock_across_nodes_is_ended(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--no-progress", "1")
    locked = [sys.executable, "-c", "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"]
    nodes = [cluster.node(rank, locked) for rank in range(2)]
    assert coordinator.wait(60) == STOPPED
    assert [part.wait(60) for part in nodes] == [STOPPED] * 2
    assert "everybody waits, and nobody has a deadline" in nodes[0].errors


def test_a_start_on_real_time_freezes_all_nodes_at_once(cluster: Cluster) -> None:
    """Node 1's server is ready late; node 0, which has nothing to wait for, runs on real time until then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serves = (
        "import http.server, time; time.sleep(1.5); "
        f"http.server.HTTPServer(('127.0.0.1', {port}), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    waits = "import time; time.sleep(3)\nfor _ in range(20): time.sleep(1)\nprint(time.monotonic())"
    coordinator = cluster.coordinator()
    began = time.monotonic()
    server = cluster.node(1, [sys.executable, "-c", serves], "--freeze", f"ready=http://127.0.0.1:{port}/")
    client = cluster.node(0, [sys.executable, "-c", waits])
    assert [part.wait(60) for part in (client, server, coordinator)] == [0, 0, 0]
    assert time.monotonic() - began > 1.5
    assert float(client.output) > 100_000  # past the epoch that all share
    assert "all nodes are ready: the clock is frozen" in client.errors


def test_tls_and_a_coordinator_that_is_not_there(cluster: Cluster, tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("this machine has no openssl to make a certificate with")
    cluster.coordinator("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    plain = cluster.node(1, ["true"])
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port, cluster.port = cluster.port, unused.getsockname()[1]
        nobody = cluster.node(0, ["true"])
        assert [part.wait(40) for part in (plain, nobody)] == [1, 1]
    assert "do both sides use TLS, or neither?" in plain.errors
    assert "no coordinator answers within 10 s" in nobody.errors
    cluster.port = port
    nodes = [cluster.node(rank, ["sleep", "3"], "--tls-ca", str(tmp_path / "cert")) for rank in range(2)]
    assert [part.wait(60) for part in nodes] == [0, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--node-rank", "0"], "--node-rank needs --coordinator"),
        (["--coordinator", "h:1"], "--coordinator needs --node-rank R and --nodes N"),
        (["--coordinator", "h:1", "--node-rank", "2", "--nodes", "2"], "ranks go from 0 to 1"),
        (["--coordinator", "h", "--node-rank", "0", "--nodes", "2"], "is no HOST:PORT"),
        (["--coordinator", "h:1", "--node-rank", "0", "--nodes", "2", "--clock", "flow"], "shares a frozen clock"),
        (
            ["--coordinator", "h:1", "--node-rank", "0", "--nodes", "2", "--freeze", "manual"],
            "--freeze start or ready=",
        ),
        (["--net-latency", "50us"], "--net-latency is not built"),
    ],
)
def test_wrong_options_of_a_node(options: list[str], words: str) -> None:
    done = subprocess.run(
        [*HYPERLAPSE, "run", "--gpu", "none", *options, "--", "true"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert words in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "0.0.0.0:0"], "give --token-file"),
        (["--listen", "127.0.0.1"], "is no HOST:PORT"),
        (["--listen", "127.0.0.1:0", "--token-file", "{short}"], "16 or more printable characters"),
        (["--listen", "127.0.0.1:0", "--tls-cert", "{short}"], "go together"),
    ],
)
def test_wrong_options_of_the_coordinator(options: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("secret")
    given = [option.format(short=tmp_path / "short") for option in options]
    done = subprocess.run([*HYPERLAPSE, "coordinator", *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr.replace("\n", " ")


def test_a_port_in_use(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [*HYPERLAPSE, "coordinator", "--listen", listen], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert f"cannot listen on {listen}" in done.stderr
