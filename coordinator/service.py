"""The coordinator: the gRPC service that grants jumps of the clock that several hosts share.

It lives on real time, is no part of any node, and holds nothing that a run needs after its end. The rule of the clock is
in agreement.py; here are who may join, the order of a run (join, begin, park, freeze, end) and what ends it badly: a
node that leaves or falls silent, nodes that do not all come, a command that fails, nobody who can go on. It must never
wait for a node without a limit, and never let a node come back: its clock would be another one.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from hyperlapse.coordinator import hosts_pb2 as messages
from hyperlapse.coordinator.agreement import Agreement, Answer, Connection, Decision, ProtocolError, Report
from hyperlapse.coordinator.protocol import (
    EPOCH_STEP_NS,
    HEARTBEAT_S,
    PROTOCOL,
    SERVICE,
    SILENCE_S,
    address_text,
    connection_text,
    package_version,
)

_GOODBYE_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """nodes: how many come; join_limit_s: within which time, real; no_progress_s: 0 for never; token None: anybody."""

    nodes: int
    token: str | None = None
    join_limit_s: float = 120.0
    no_progress_s: float = 10.0
    silence_s: float = SILENCE_S
    agreement: Callable[[int, dict[bytes, int], int, float], Agreement] = Agreement


@dataclass(slots=True)
class _Member:
    rank: int
    request: messages.JoinRequest
    session: str
    outgoing: asyncio.Queue[messages.ToNode | None] = field(default_factory=asyncio.Queue)
    attends: bool = False
    ready: bool = False
    parked_ns: int | None = None
    finished: int | None = None
    heard_s: float = field(default_factory=time.monotonic)
    gone: bool = False


class Coordinator:
    """One run of several nodes. ``say`` gets one line for each thing that people should know."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self._members: dict[int, _Member] = {}
        self._agreement: Agreement | None = None
        self._epoch_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()

    # ---- the calls ----

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Join": grpc.unary_unary_rpc_method_handler(
                    self._join,
                    request_deserializer=messages.JoinRequest.FromString,
                    response_serializer=messages.JoinReply.SerializeToString,
                ),
                "Attend": grpc.stream_stream_rpc_method_handler(
                    self._attend,
                    request_deserializer=messages.FromNode.FromString,
                    response_serializer=messages.ToNode.SerializeToString,
                ),
            },
        )

    async def _authorise(self, context: Any) -> None:
        if self._settings.token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        wanted = f"Bearer {self._settings.token}"
        if not hmac.compare_digest(str(given).encode(), wanted.encode()):
            self._say(f"refused {context.peer()}: wrong token")
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "the coordinator refuses this token: give every node the coordinator's --token-file",
            )

    def _refusal(self, request: messages.JoinRequest) -> str | None:
        nodes = self._settings.nodes
        if request.protocol != PROTOCOL or request.version != package_version():
            return (
                f"the coordinator has hyperlapse {package_version()} (protocol {PROTOCOL}) and this node {request.version} "
                f"(protocol {request.protocol}): install the same version everywhere"
            )
        if self._ended.done():
            return "the run of this coordinator is over: start a new coordinator"
        if request.nodes != nodes:
            return f"the coordinator waits for {nodes} nodes and this one was started with --nodes {request.nodes}"
        if request.rank >= nodes:
            return f"--node-rank {request.rank}: ranks go from 0 to {nodes - 1}"
        if request.rank in self._members:
            return f"a node with rank {request.rank} has joined already: give each node its own --node-rank"
        return None

    async def _join(self, request: messages.JoinRequest, context: Any) -> messages.JoinReply:
        await self._authorise(context)
        refusal = self._refusal(request)
        if refusal is not None:
            self._say(f"refused {request.host or context.peer()}: {refusal}")
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        member = _Member(request.rank, request, secrets.token_urlsafe())
        self._members[request.rank] = member
        self._say(f"node {request.rank} ({request.host}) joined: {len(self._members)} of {self._settings.nodes}")
        return messages.JoinReply(session=member.session, silence_s=self._settings.silence_s)

    async def _attend(self, incoming: AsyncIterator[messages.FromNode], context: Any) -> AsyncIterator[messages.ToNode]:
        await self._authorise(context)
        hello = (await anext(incoming)).hello
        member = self._members.get(hello.rank)
        if member is None or member.attends or not hmac.compare_digest(member.session, hello.session):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no such place in the run: join first")
        assert member is not None
        member.attends = True
        member.heard_s = time.monotonic()
        reader = asyncio.create_task(self._read(member, incoming))
        if len(self._members) == self._settings.nodes and all(m.attends for m in self._members.values()):
            self._begin()
        try:
            while (message := await member.outgoing.get()) is not None:
                yield message
        finally:
            reader.cancel()
            self._left(member)

    async def _read(self, member: _Member, incoming: AsyncIterator[messages.FromNode]) -> None:
        try:
            async for message in incoming:
                member.heard_s = time.monotonic()
                self._hear(member, message)
        except ProtocolError as error:
            self._end(False, str(error))
        except (grpc.RpcError, grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        self._left(member)

    def _left(self, member: _Member) -> None:
        member.gone = True
        if not self._ended.done():
            self._end(
                False, f"node {member.rank} ({member.request.host}) left without a word (killed, or its network failed)"
            )

    # ---- the order of a run ----

    def _hear(self, member: _Member, message: messages.FromNode) -> None:
        what = message.WhichOneof("what")
        if what == "report":
            self._take_report(member, message.report)
        elif what == "withdraw":
            if self._agreement is not None:
                self._send_answers(self._agreement.withdraw(member.rank, message.withdraw))
        elif what == "ready":
            member.ready = True
            if all(m.ready for m in self._members.values()):
                now_ns = self._settings_epoch()
                self._send_all(messages.ToNode(park=messages.Park(epoch_ns=now_ns)))
        elif what == "parked":
            self._take_parked(member, message.parked.now_ns)
        elif what == "finished":
            self._take_finished(member, message.finished)
        elif what == "failed":
            self._end(False, f"node {member.rank} ({member.request.host}): {message.failed}")

    def _settings_epoch(self) -> int:
        # Nodes' clocks start at 1,000 s and follow real time until now: any multiple far ahead is the same for every run.
        self._epoch_ns = EPOCH_STEP_NS
        return self._epoch_ns

    def _owners(self) -> dict[bytes, int]:
        """Address -> rank, of the addresses that one node alone has (a bridge's 172.17.0.1 is on many hosts)."""
        seen: dict[bytes, list[int]] = {}
        for member in self._members.values():
            for address in set(member.request.addresses):
                seen.setdefault(address, []).append(member.rank)
        return {address: ranks[0] for address, ranks in seen.items() if len(ranks) == 1}

    def _begin(self) -> None:
        owners = self._owners()
        for rank in range(self._settings.nodes):
            if rank not in owners.values():
                shown = ", ".join(address_text(a) for a in self._members[rank].request.addresses) or "none"
                self._end(
                    False,
                    f"node {rank} has no address of its own ({shown}): give each node --node-address, the address by which "
                    "the other nodes reach it",
                )
                return
        self._agreement = self._settings.agreement(
            self._settings.nodes, owners, EPOCH_STEP_NS, self._settings.no_progress_s
        )
        on_real_time = not all(m.request.starts_frozen for m in self._members.values())
        endpoints = [m.request.coordinator for m in self._members.values()]
        for member in self._members.values():
            member.outgoing.put_nowait(
                messages.ToNode(
                    begin=messages.Begin(
                        own=[a for a, rank in owners.items() if rank == member.rank],
                        peers=[a for a, rank in owners.items() if rank != member.rank],
                        coordinators=endpoints,
                        on_real_time=on_real_time,
                    )
                )
            )

    def _take_parked(self, member: _Member, now_ns: int) -> None:
        member.parked_ns = now_ns
        if now_ns != self._epoch_ns:
            self._end(False, f"node {member.rank} stopped its clock at {now_ns} ns, not at {self._epoch_ns} ns")
        elif all(m.parked_ns is not None for m in self._members.values()):
            self._say(f"all nodes stand at the virtual instant {now_ns / 1e9:g} s; the clock is frozen from here")
            self._send_all(messages.ToNode(freeze=messages.Freeze()))

    def _take_finished(self, member: _Member, status: int) -> None:
        member.finished = status
        if status != 0:
            self._end(False, f"the command of node {member.rank} ({member.request.host}) ended with status {status}")
        elif member.rank == 0:
            self._end(True, "the command of node 0 has ended")

    # ---- the clock ----

    def _take_report(self, member: _Member, report: messages.Report) -> None:
        if self._agreement is None:
            raise ProtocolError(f"node {member.rank} reported before the run began")
        self._agreement.report(
            member.rank,
            Report(
                number=report.number,
                deadline_ns=report.deadline_ns if report.HasField("deadline_ns") else None,
                background_ns=report.background_ns if report.HasField("background_ns") else None,
                answerable=report.answerable,
                changed=[
                    Connection(
                        c.key,
                        c.state,
                        c.unsent_bytes,
                        c.unread_bytes,
                        c.sent_bytes,
                        c.received_bytes,
                        c.unacknowledged_bytes,
                    )
                    for c in report.changed
                ],
                gone=list(report.gone),
            ),
        )
        self._decide()

    def _decide(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._agreement is None or self._ended.done():
            return
        decision: Decision = self._agreement.decide(time.monotonic())
        self._send_answers(decision.answers)
        if decision.stuck is not None:
            shown = "; ".join(f"{connection_text(k)}: {why}" for k, why in self._agreement.describe_disagreements())
            self._end(False, f"no progress: {decision.stuck}{f' ({shown})' if shown else ''}")
        elif decision.again_s is not None:
            self._timer = asyncio.get_running_loop().call_later(decision.again_s, self._decide)

    def _send_answers(self, answers: Any) -> None:
        answer: Answer
        for answer in answers:
            self._members[answer.rank].outgoing.put_nowait(
                messages.ToNode(
                    answer=messages.Answer(
                        number=answer.number,
                        instant_ns=answer.instant_ns,
                        search=answer.search,
                        ask_world=answer.ask_world,
                    )
                )
            )

    # ---- the end ----

    def _send_all(self, message: messages.ToNode) -> None:
        for member in self._members.values():
            member.outgoing.put_nowait(message)

    def _end(self, good: bool, reason: str) -> None:
        if self._ended.done():
            return
        self._ended.set_result((good, reason))
        self._say(reason)
        self._send_all(messages.ToNode(end=messages.End(good=good, reason=reason)))

    def interrupt(self) -> None:
        """Ends the run: somebody wants the coordinator to stop."""
        self._end(False, "the coordinator was stopped")

    async def _watch(self) -> None:
        began_s = time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT_S / 2)
            now_s = time.monotonic()
            missing = [r for r in range(self._settings.nodes) if r not in self._members or not self._members[r].attends]
            if missing and now_s - began_s > self._settings.join_limit_s:
                names = ", ".join(map(str, missing))
                self._end(
                    False, f"node {names} did not come within {self._settings.join_limit_s:g} s (see --join-limit)"
                )
            for member in self._members.values():
                if member.attends:
                    member.outgoing.put_nowait(messages.ToNode(heartbeat=messages.Heartbeat()))
                if now_s - member.heard_s > self._settings.silence_s:
                    self._end(
                        False,
                        f"node {member.rank} ({member.request.host}) was silent for {self._settings.silence_s:g} s "
                        "(stopped, or its network failed)",
                    )

    async def finish(self) -> bool:
        """Returns when the run is over and every node knows. True: it ended well."""
        watcher = asyncio.create_task(self._watch())
        try:
            good, _ = await self._ended
        finally:
            watcher.cancel()
        limit_s = time.monotonic() + _GOODBYE_S
        while time.monotonic() < limit_s and any(m.attends and not m.gone for m in self._members.values()):
            await asyncio.sleep(0.02)
        if self._agreement is not None:
            self._say(f"{self._agreement.jumps} jumps granted, {self._agreement.looks} times asked to look again")
        return good


async def serve(
    settings: Settings,
    listen: str,
    *,
    certificate: tuple[bytes, bytes] | None = None,
    say: Callable[[str], None],
    started: Callable[[Coordinator, int], Awaitable[None] | None],
) -> bool:
    """Runs a coordinator until its run is over. certificate: (private key, certificate chain), PEM, for TLS; started: is
    told the coordinator and the port that it listens on. True: the run ended well. Raises OSError when it cannot listen.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.optimization_target", "latency")])
    coordinator = Coordinator(settings, say)
    server.add_generic_rpc_handlers((coordinator.handlers(),))
    try:
        if certificate is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, grpc.ssl_server_credentials([certificate]))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: {error}") from None
    if port == 0:
        raise OSError(f"cannot listen on {listen}: is the port in use?")
    await server.start()
    waits = started(coordinator, port)
    if waits is not None:
        await waits
    try:
        return await coordinator.finish()
    finally:
        await server.stop(1.0)
