"""When may the clock that several hosts share move, and to which instant? The rule alone: no sockets, no time of its own.

Rule. Each node reports when all of it sleeps, with its earliest deadline and the kernel's byte counts of its connections to
other nodes. The clock moves to the earliest deadline of all nodes when every node's report stands and, for every
connection, the bytes sent by the one end are the bytes received by the other. One round of reports is enough
(csrc/keeper/hosts.c has the argument): sums over all nodes would not be, because a byte that one node's report missed
can stand in for one that another's missed.

Where the counts disagree somebody's report is older than the bytes: that node is asked to look again. It is also what
shows a connection that a node does not know yet.

Never: a grant while a count disagrees. Bytes that the sender's kernel keeps because the receiver takes no more do not
travel, so they are no disagreement once the receiver has unread bytes and nothing has changed for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# states of <netinet/tcp.h>
SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 2, 3, 4, 5, 8, 9, 11
_OPENING = frozenset({SYN_SENT, SYN_RECV})
_HAS_CLOSED = frozenset({FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING})
_PEER_HAS_CLOSED = frozenset({CLOSE_WAIT, LAST_ACK, CLOSING})

KEY_BYTES = 36
#: A receiver that takes no more: how long nothing may change, in real seconds, until its sender's bytes count as kept.
KEPT_AFTER_S = 0.02
#: Background timers (see `lazy` in csrc/core/page.h) may move the clock when there is nothing else for this long, real.
BACKGROUND_ALONE_S = 0.05
#: Counts that go on disagreeing are bytes on the wire: look again after this, real, from the third look on.
LOOK_AGAIN_S = 0.0005


@dataclass(frozen=True, slots=True)
class Connection:
    """One end of a TCP connection between two nodes; the fields of ``hl_connection`` (csrc/core/hosts.h)."""

    key: bytes
    state: int
    unsent_bytes: int
    unread_bytes: int
    sent_bytes: int
    received_bytes: int
    unacknowledged_bytes: int

    @property
    def other_end(self) -> bytes:
        key = self.key
        return key[16:32] + key[:16] + key[34:36] + key[32:34]


@dataclass(frozen=True, slots=True)
class Report:
    """All of a node sleeps. Deadlines in virtual ns, None for none."""

    number: int
    deadline_ns: int | None
    background_ns: int | None
    answerable: bool = False
    changed: Sequence[Connection] = ()
    gone: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """To the report ``number`` of the node ``rank``. instant_ns None: look again."""

    rank: int
    number: int
    instant_ns: int | None
    search: bool = False
    ask_world: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to tell whom now. again_s: decide again after this long even if nobody reports. stuck: nobody can go on."""

    answers: Sequence[Answer] = ()
    again_s: float | None = None
    stuck: str | None = None


@dataclass(slots=True)
class _Node:
    standing: Report | None = None
    last_number: int = 0
    connections: dict[bytes, Connection] = field(default_factory=dict)


class ProtocolError(RuntimeError):
    """A node said what it cannot say; the run cannot go on."""


def disagreement(one: Connection | None, other: Connection | None) -> str | None:
    """Why bytes, or the opening or end of the connection, may still travel between its two ends; None: nothing does."""
    if one is None or other is None:
        end = one or other
        # The end that is gone had sent everything, and its end of stream or a reset must have arrived.
        if end is None or (end.state in _PEER_HAS_CLOSED and not end.unacknowledged_bytes):
            return None
        return "no such connection on the other host"
    if one.state in _OPENING or other.state in _OPENING:
        return "being opened"
    for sender, receiver in ((one, other), (other, one)):
        if sender.sent_bytes != receiver.received_bytes:
            return f"{sender.sent_bytes} bytes sent, {receiver.received_bytes} received"
        if sender.unsent_bytes:
            return f"{sender.unsent_bytes} bytes wait to be sent"
        if sender.state in _HAS_CLOSED and receiver.state not in _PEER_HAS_CLOSED:
            return "closed at one end"
    return None


def _is_kept(one: Connection | None, other: Connection | None) -> bool:
    """Bytes wait only because their receiver has no room: it has not read what has arrived."""
    if one is None or other is None or one.state in _OPENING or other.state in _OPENING:
        return False
    directions = ((one, other), (other, one))
    arrived = all(sender.sent_bytes == receiver.received_bytes for sender, receiver in directions)
    no_room = all(receiver.unread_bytes > 0 for sender, receiver in directions if sender.unsent_bytes)
    return arrived and no_room and any(sender.unsent_bytes for sender, _ in directions)


class Agreement:
    """The clock of several nodes. owners: 16-byte address -> rank. no_progress_s: real seconds, 0 for never."""

    def __init__(self, nodes: int, owners: dict[bytes, int], start_ns: int, no_progress_s: float) -> None:
        self.now_ns = start_ns
        self.jumps = self.looks = 0
        self._nodes = [_Node() for _ in range(nodes)]
        self._owners = owners
        self._no_progress_s = no_progress_s
        self._disagreements: dict[bytes, tuple[Connection, str]] = {}
        self._disagree_since_s: float | None = None
        self._kept: dict[bytes, tuple[tuple[Connection | None, Connection | None], float]] = {}
        self._looks_in_a_row = 0
        self._look_at_s = 0.0
        self._idle_since_s: float | None = None
        self._asked_world = False

    def report(self, rank: int, report: Report) -> None:
        """Takes a node's report. Raises ProtocolError for one that cannot be."""
        node = self._nodes[rank]
        if node.standing is not None or report.number <= node.last_number:
            raise ProtocolError(f"node {rank} reported before the answer to its last report")
        if report.deadline_ns is not None and report.deadline_ns < self.now_ns:
            raise ProtocolError(f"node {rank} has a deadline before the shared instant")
        node.standing, node.last_number = report, report.number
        touched = list(report.gone)
        for key in report.gone:
            node.connections.pop(key, None)
        for connection in report.changed:
            node.connections[connection.key] = connection
            touched.append(connection.key)
        for key in touched:
            self._compare(key)

    def withdraw(self, rank: int, number: int) -> list[Answer]:
        """A node takes its report back. Nothing to say when it has been answered meanwhile."""
        node = self._nodes[rank]
        if node.standing is None or node.standing.number != number:
            return []
        node.standing = None
        return [Answer(rank, number, None)]

    def _ends(self, key: bytes) -> tuple[Connection | None, Connection | None]:
        one, other = self._owners.get(key[:16]), self._owners.get(key[16:32])
        reverse = key[16:32] + key[:16] + key[34:36] + key[32:34]
        return (
            None if one is None else self._nodes[one].connections.get(key),
            None if other is None else self._nodes[other].connections.get(reverse),
        )

    def _compare(self, key: bytes) -> None:
        reverse = key[16:32] + key[:16] + key[34:36] + key[32:34]
        name = min(key, reverse)
        one, other = self._ends(name)
        why = disagreement(one, other)
        end = one or other
        if why is None or end is None:
            self._disagreements.pop(name, None)
            self._kept.pop(name, None)
        else:
            self._disagreements[name] = (end, why)

    def in_flight(self, now_s: float) -> list[bytes]:
        """The connections on which something may still travel."""
        travelling = []
        for name in self._disagreements:
            ends = self._ends(name)
            seen, since_s = self._kept.get(name, (None, now_s))
            if not _is_kept(*ends) or seen != ends:
                self._kept[name] = (ends, now_s)
                travelling.append(name)
            elif now_s - since_s < KEPT_AFTER_S:
                travelling.append(name)
        return travelling

    def describe_disagreements(self, limit: int = 4) -> list[tuple[bytes, str]]:
        """(key, why) of connections whose ends disagree, for messages."""
        return [(name, why) for name, (_, why) in list(self._disagreements.items())[:limit]]

    def waiting_for(self) -> list[int]:
        """The nodes on which somebody runs."""
        return [rank for rank, node in enumerate(self._nodes) if node.standing is None]

    def decide(self, now_s: float) -> Decision:
        """What follows from the standing reports. now_s: real seconds."""
        if any(node.standing is None for node in self._nodes):
            return Decision()
        travelling = self.in_flight(now_s)
        if travelling:
            return self._look_again(travelling, now_s)
        self._disagree_since_s = None
        self._looks_in_a_row = 0
        return self._move(now_s)

    def _look_again(self, travelling: Iterable[bytes], now_s: float) -> Decision:
        if self._disagree_since_s is None:
            self._disagree_since_s = now_s
        if self._no_progress_s and now_s - self._disagree_since_s > self._no_progress_s:
            return Decision(stuck="bytes between nodes do not add up")
        self._looks_in_a_row += 1
        if self._looks_in_a_row > 2 and now_s < self._look_at_s:
            return Decision(again_s=self._look_at_s - now_s)
        self._look_at_s = now_s + LOOK_AGAIN_S
        wanted: dict[int, bool] = {}
        for name in travelling:
            one, other = self._ends(name)
            search = one is None or other is None
            for address in (name[:16], name[16:32]):
                rank = self._owners.get(address)
                if rank is not None:
                    wanted[rank] = wanted.get(rank, False) or search
        self.looks += 1
        return Decision([self._answer(rank, None, search=search) for rank, search in sorted(wanted.items())])

    def _move(self, now_s: float) -> Decision:
        reports = [node.standing for node in self._nodes if node.standing is not None]
        deadlines = [report.deadline_ns for report in reports if report.deadline_ns is not None]
        if not deadlines:
            if self._idle_since_s is None:
                self._idle_since_s = now_s
            idle_s = now_s - self._idle_since_s
            if self._no_progress_s and idle_s > self._no_progress_s:
                if not self._asked_world:
                    self._asked_world = True
                    return Decision([self._answer(rank, None, ask_world=True) for rank in range(len(self._nodes))])
                if not any(report.answerable for report in reports):
                    return Decision(stuck="everybody waits, and nobody has a deadline")
                self._asked_world, self._idle_since_s = False, now_s
            if idle_s < BACKGROUND_ALONE_S:
                return Decision(again_s=BACKGROUND_ALONE_S - idle_s)
            deadlines = [report.background_ns for report in reports if report.background_ns is not None]
            if not deadlines:
                return Decision(again_s=max(0.05, self._no_progress_s - idle_s) if self._no_progress_s else None)
        else:
            self._idle_since_s, self._asked_world = None, False
        self.now_ns = max(self.now_ns, min(deadlines))
        self.jumps += 1
        return Decision([self._answer(rank, self.now_ns) for rank in range(len(self._nodes))])

    def _answer(self, rank: int, instant_ns: int | None, *, search: bool = False, ask_world: bool = False) -> Answer:
        report = self._nodes[rank].standing
        assert report is not None
        self._nodes[rank].standing = None
        return Answer(rank, report.number, instant_ns, search, ask_world)
