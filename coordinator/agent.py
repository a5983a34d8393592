"""The node agent: a process of the launcher's side that speaks gRPC for one node's time-keeper.

It lives on real time and is no participant. It turns the time-keeper's reports into messages and the coordinator's answers
into answers; it decides nothing about the clock. It reconnects to nothing: when its stream breaks, the node's clock can
never be the others' again, so it says why and ends. Its launcher talks to it through standard input and output, one line
(out: JSON) for each event; when the launcher is gone it ends too.

    python -m hyperlapse.coordinator.agent --run-dir DIR --coordinator HOST:PORT --rank R --nodes N ...
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil

from hyperlapse.coordinator import hosts_pb2 as messages
from hyperlapse.coordinator.agreement import KEY_BYTES
from hyperlapse.coordinator.protocol import (
    ATTEND,
    HEARTBEAT_S,
    JOIN,
    JOIN_LIMIT_S,
    PROTOCOL,
    HostsError,
    address_text,
    package_version,
    parse_address,
    read_token,
    resolve,
    split_endpoint,
)
from hyperlapse.shim._core import core
from hyperlapse.shim.launcher import Mode

_NEVER_NS = 2**63 - 1
_CONNECTIONS_MAX = 1024
_REQUEST_LIMIT_MS = 10_000


def _tell(event: str, **facts: Any) -> None:
    """One line to the launcher."""
    print(json.dumps({"event": event, **facts}), flush=True)


def own_addresses() -> list[bytes]:
    """Addresses by which other hosts may reach this one: all but loopback and link-local ones."""
    found = set()
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                address = parse_address(entry.address)
                text = address_text(address)
                if not text.startswith(("127.", "169.254.", "fe80:")) and text != "::1":
                    found.add(address)
    return sorted(found)


class Agent:
    """Of one run directory. Raises HostsError from attend() for every end that is not the coordinator's own."""

    def __init__(self, run_directory: Path, rank: int) -> None:
        self._binding = core()
        self._lib, self._ffi = self._binding.lib, self._binding.ffi
        self._page = self._lib.hl_page_map(str(run_directory).encode())
        if self._page == self._ffi.NULL:
            raise HostsError(f"cannot map the clock page in {run_directory}")
        self._rank = rank
        self._control: queue.SimpleQueue[messages.FromNode] = queue.SimpleQueue()
        self._connections: dict[bytes, bytes] = {}
        self._silence_s = 10.0
        self._heard_s = time.monotonic()
        self._ended = False

    # ---- to the coordinator ----

    def say(self, message: messages.FromNode) -> None:
        """Sends a message, from any thread."""
        self._control.put(message)
        self._lib.hl_hosts_poke(self._page)

    def _report(self, report: Any, connections: Any) -> messages.FromNode:
        size = self._ffi.sizeof("hl_connection")
        raw = bytes(self._ffi.buffer(connections, size * report.connections))
        now = {raw[i : i + KEY_BYTES]: raw[i : i + size] for i in range(0, len(raw), size)}
        changed = []
        for index, (key, value) in enumerate(now.items()):
            if self._connections.get(key) != value:
                c = connections[index]
                changed.append(
                    messages.Connection(
                        key=key,
                        state=c.state,
                        unsent_bytes=c.unsent_bytes,
                        unread_bytes=c.unread_bytes,
                        sent_bytes=c.sent_bytes,
                        received_bytes=c.received_bytes,
                        unacknowledged_bytes=c.unacknowledged_bytes,
                    )
                )
        gone = [key for key in self._connections if key not in now]
        self._connections = now
        return messages.FromNode(
            report=messages.Report(
                number=report.number,
                deadline_ns=None if report.deadline_ns == _NEVER_NS else report.deadline_ns,
                background_ns=None if report.background_ns == _NEVER_NS else report.background_ns,
                answerable=bool(report.answerable),
                changed=changed,
                gone=gone,
            )
        )

    def _outgoing(self, session: str) -> Iterator[messages.FromNode]:
        yield messages.FromNode(hello=messages.Hello(session=session, rank=self._rank))
        reported, withdrawn = self._ffi.new("uint64_t *"), self._ffi.new("uint64_t *")
        report = self._ffi.new("hl_report *")
        connections = self._ffi.new("hl_connection[]", _CONNECTIONS_MAX)
        beat_s = time.monotonic()
        while not self._ended:
            before = reported[0]
            news = self._lib.hl_hosts_wait(
                self._page, reported, withdrawn, int(HEARTBEAT_S * 1000), report, connections
            )
            if news and reported[0] != before:
                yield self._report(report, connections)
            elif news:
                yield messages.FromNode(withdraw=withdrawn[0])
            while not self._control.empty():
                yield self._control.get()
            now_s = time.monotonic()
            if now_s - beat_s >= HEARTBEAT_S:
                beat_s = now_s
                yield messages.FromNode(heartbeat=messages.Heartbeat())

    # ---- from the coordinator ----

    def _set_mode(self, mode: Mode, epoch_ns: int = 0) -> None:
        if self._lib.hl_control_set_mode(self._page, int(mode), epoch_ns, _REQUEST_LIMIT_MS) != 0:
            raise HostsError("the time-keeper does not answer; has it been killed?")

    def _begin(self, begin: messages.Begin) -> None:
        endpoints = self._ffi.new("hl_endpoint[]", max(1, len(begin.coordinators)))
        for index, endpoint in enumerate(begin.coordinators):
            self._ffi.memmove(endpoints[index].address, endpoint.address, len(endpoint.address))
            endpoints[index].port = endpoint.port
        status = self._lib.hl_hosts_share(
            self._page,
            b"".join(begin.own),
            len(begin.own),
            b"".join(begin.peers),
            len(begin.peers),
            endpoints,
            len(begin.coordinators),
        )
        if status != 0:
            raise HostsError("too many nodes or addresses: name one address per node with --node-address")
        _tell("begin", on_real_time=begin.on_real_time)

    def _hear(self, message: messages.ToNode) -> bool:
        """False: the run is over."""
        what = message.WhichOneof("what")
        if what == "answer":
            answer = message.answer
            instant_ns = answer.instant_ns if answer.HasField("instant_ns") else -1
            self._lib.hl_hosts_answer(self._page, answer.number, instant_ns, answer.search, answer.ask_world)
        elif what == "begin":
            self._begin(message.begin)
        elif what == "park":
            self._set_mode(Mode.PARKED, message.park.epoch_ns)
            _tell("parked")
        elif what == "freeze":
            self._set_mode(Mode.FROZEN)
            _tell("frozen")
        elif what == "end":
            self._ended = True
            _tell("end", good=message.end.good, reason=message.end.reason)
            return False
        return True

    def parked(self) -> None:
        """The command has been started on the stopped clock."""
        statistics = self._ffi.new("hl_statistics *")
        self._lib.hl_control_statistics(self._page, statistics)
        self.say(messages.FromNode(parked=messages.Parked(now_ns=statistics.now_ns)))

    def _watch(self, call: Any) -> None:
        """A coordinator that says nothing (stopped, unreachable) would leave the run waiting for ever."""
        while not self._ended:
            time.sleep(HEARTBEAT_S / 2)
            if time.monotonic() - self._heard_s > self._silence_s:
                call.cancel()
                return

    def attend(self, channel: grpc.Channel, join: messages.JoinRequest, metadata: tuple[tuple[str, str], ...]) -> None:
        """Joins, and serves the time-keeper until the coordinator says that the run is over. Raises HostsError."""
        do_join = channel.unary_unary(
            JOIN,
            request_serializer=messages.JoinRequest.SerializeToString,
            response_deserializer=messages.JoinReply.FromString,
        )
        attend = channel.stream_stream(
            ATTEND,
            request_serializer=messages.FromNode.SerializeToString,
            response_deserializer=messages.ToNode.FromString,
        )
        try:
            reply = do_join(join, timeout=JOIN_LIMIT_S, metadata=metadata, wait_for_ready=True)
        except grpc.RpcError as error:
            raise HostsError(_join_failure(error)) from None
        self._silence_s = reply.silence_s
        self._heard_s = time.monotonic()
        call = attend(self._outgoing(reply.session), metadata=metadata)
        threading.Thread(target=self._watch, args=(call,), daemon=True).start()
        try:
            for message in call:
                self._heard_s = time.monotonic()
                if not self._hear(message):
                    self._lib.hl_hosts_poke(self._page)
                    return
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.CANCELLED:
                raise HostsError(
                    f"the coordinator was silent for {self._silence_s:g} s (stopped, or the network failed); the run is over"
                ) from None
            raise HostsError(f"the coordinator is gone ({error.details()}); the run is over") from None
        raise HostsError("the coordinator ended the connection without a reason; the run is over")


def _join_failure(error: Any) -> str:
    code, details = error.code(), error.details()
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION):
        return str(details)
    if code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}:
        return (
            f"no coordinator answers within {JOIN_LIMIT_S:g} s ({details}): is `hyperlapse coordinator` running there, "
            "and do both sides use TLS, or neither?"
        )
    return f"the coordinator does not let this node join: {details} ({code.name})"


def _follow_launcher(agent: Agent) -> None:
    """Carries out the launcher's lines; ends the process when the launcher is gone."""
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "ready":
            agent.say(messages.FromNode(ready=messages.Ready()))
        elif word == "started":
            agent.parked()
        elif word == "finished":
            agent.say(messages.FromNode(finished=int(rest)))
        elif word == "failed":
            agent.say(messages.FromNode(failed=rest))
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="speak to the coordinator for one node")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--coordinator", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--address", action="append", default=[])
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--tls-ca", type=Path)
    parser.add_argument("--starts-frozen", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK
    try:
        host, port = split_endpoint(options.coordinator)
        address, _ = resolve(host, port)
        metadata: tuple[tuple[str, str], ...] = ()
        if options.token_file is not None:
            metadata = (("authorization", f"Bearer {read_token(options.token_file)}"),)
        addresses = [parse_address(text) for text in options.address] or own_addresses()
        join = messages.JoinRequest(
            protocol=PROTOCOL,
            version=package_version(),
            rank=options.rank,
            nodes=options.nodes,
            addresses=addresses,
            coordinator=messages.Endpoint(address=address, port=port),
            starts_frozen=options.starts_frozen,
            host=socket.gethostname(),
        )
        settings = [("grpc.enable_http_proxy", 0), ("grpc.optimization_target", "latency")]
        if options.tls_ca is None:
            channel = grpc.insecure_channel(options.coordinator, options=settings)
        else:
            credentials = grpc.ssl_channel_credentials(options.tls_ca.read_bytes())
            channel = grpc.secure_channel(options.coordinator, credentials, options=settings)
        agent = Agent(options.run_dir, options.rank)
        threading.Thread(target=_follow_launcher, args=(agent,), daemon=True).start()
        agent.attend(channel, join, metadata)
    except (HostsError, OSError, ValueError) as error:
        _tell("error", reason=str(error))
        os._exit(1)  # a thread may wait in a call that nothing ends
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
