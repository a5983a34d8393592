"""The rule of the shared clock, without processes: when does it move, and who is asked to look again?"""

from __future__ import annotations

import dataclasses

import pytest

from hyperlapse.coordinator.agreement import (
    BACKGROUND_ALONE_S,
    CLOSE_WAIT,
    FIN_WAIT1,
    KEPT_AFTER_S,
    SYN_SENT,
    Agreement,
    Connection,
    ProtocolError,
    Report,
    disagreement,
)

ESTABLISHED = 1
START_NS = 1_000


def address(rank: int) -> bytes:
    return b"\0" * 10 + b"\xff\xff" + bytes([10, 0, 0, rank])


def end(rank: int, other: int, sent: int = 0, received: int = 0, **facts: int) -> Connection:
    """Node `rank`'s end of its one connection with node `other`."""
    ports = {(a, b): (5000 + 10 * a + b).to_bytes(2, "little") for a in range(3) for b in range(3)}
    made = Connection(
        address(rank) + address(other) + ports[rank, other] + ports[other, rank], ESTABLISHED, 0, 0, sent, received, 0
    )
    return dataclasses.replace(made, **facts)


def agreement(nodes: int = 2, no_progress_s: float = 10) -> Agreement:
    return Agreement(nodes, {address(rank): rank for rank in range(nodes)}, START_NS, no_progress_s)


def moved_to(clock: Agreement, now_s: float = 0) -> int | None:
    answers = clock.decide(now_s).answers
    instants = {answer.instant_ns for answer in answers}
    return instants.pop() if len(instants) == 1 and answers else None


def test_it_moves_to_the_earliest_deadline_when_all_sleep() -> None:
    clock = agreement()
    clock.report(0, Report(1, 5_000, 5_000))
    assert clock.decide(0).answers == ()
    assert clock.waiting_for() == [1]
    clock.report(1, Report(1, 3_000, 3_000))
    assert moved_to(clock) == 3_000
    assert clock.waiting_for() == [0, 1]  # each has to report anew


def test_bytes_in_flight_hold_it_and_the_receiver_looks_again() -> None:
    clock = agreement()
    clock.report(0, Report(1, 5_000, None, changed=[end(0, 1, sent=7)]))
    clock.report(1, Report(1, 3_000, None, changed=[end(1, 0, received=6)]))
    assert [answer.instant_ns for answer in clock.decide(0).answers] == [None, None]
    clock.report(0, Report(2, 5_000, None))
    clock.report(1, Report(2, 3_000, None, changed=[end(1, 0, received=7)]))
    assert moved_to(clock) == 3_000


def test_one_missed_byte_does_not_stand_in_for_another() -> None:
    """Node 1 reported and slept; node 2 then woke it, and it woke node 0. The sums of all counts agree; node 1 runs."""
    clock = agreement(3)
    clock.report(1, Report(1, 3_000, None, changed=[end(1, 0), end(1, 2)]))
    clock.report(2, Report(1, 4_000, None, changed=[end(2, 1, sent=1)]))
    clock.report(0, Report(1, 5_000, None, changed=[end(0, 1, received=1)]))
    answers = clock.decide(0).answers
    assert {answer.rank for answer in answers} == {0, 1, 2}
    assert all(answer.instant_ns is None for answer in answers)


def test_a_connection_that_one_node_does_not_know_is_searched_for() -> None:
    clock = agreement()
    clock.report(0, Report(1, 5_000, None, changed=[end(0, 1)]))
    clock.report(1, Report(1, 3_000, None))
    answers = clock.decide(0).answers
    assert all(answer.search and answer.instant_ns is None for answer in answers)


def test_a_withdrawn_report_holds_it() -> None:
    clock = agreement()
    clock.report(0, Report(1, 5_000, None))
    assert [answer.instant_ns for answer in clock.withdraw(0, 1)] == [None]
    clock.report(1, Report(1, 3_000, None))
    assert clock.decide(0).answers == ()
    clock.report(0, Report(2, 4_000, None))
    assert moved_to(clock) == 3_000
    assert clock.withdraw(0, 2) == []  # too late: its answer is on the way


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (end(0, 1, sent=3, received=4), end(1, 0, sent=4, received=3)),
        (end(0, 1, sent=3, state=FIN_WAIT1), end(1, 0, received=3, state=CLOSE_WAIT)),
        (None, end(1, 0, received=3, state=CLOSE_WAIT)),
        (None, None),
    ],
)
def test_nothing_travels(one: Connection | None, other: Connection | None) -> None:
    assert disagreement(one, other) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (end(0, 1, sent=1), end(1, 0)),
        (end(0, 1), end(1, 0, sent=1)),
        (end(0, 1, received=1), end(1, 0)),
        (end(0, 1, unsent_bytes=1), end(1, 0)),
        (end(0, 1, state=SYN_SENT), None),
        (end(0, 1, state=SYN_SENT), end(1, 0)),
        (end(0, 1, state=FIN_WAIT1), end(1, 0)),
        (end(0, 1), None),
        (end(0, 1, state=CLOSE_WAIT, unacknowledged_bytes=2), None),
    ],
)
def test_something_travels(one: Connection | None, other: Connection | None) -> None:
    assert disagreement(one, other) is not None
    assert disagreement(other, one) is not None


def test_bytes_without_room_at_their_receiver_are_kept_not_in_flight() -> None:
    clock = agreement()
    full = [end(0, 1, sent=9, unsent_bytes=5)], [end(1, 0, received=9, unread_bytes=9)]
    number, now_s = 1, 0.0
    while True:
        clock.report(0, Report(number, 5_000, None, changed=full[0] if number == 1 else ()))
        clock.report(1, Report(number, 3_000, None, changed=full[1] if number == 1 else ()))
        decision = clock.decide(now_s)
        if any(answer.instant_ns is not None for answer in decision.answers):
            break
        assert now_s < KEPT_AFTER_S
        now_s, number = now_s + 0.002, number + 1
        if not decision.answers:
            now_s += decision.again_s or 0
            clock.decide(now_s)
    assert now_s >= KEPT_AFTER_S
    assert clock.now_ns == 3_000


def test_background_timers_move_it_only_when_there_is_nothing_else_for_a_while() -> None:
    clock = agreement()
    clock.report(0, Report(1, None, 2_000))
    clock.report(1, Report(1, None, None))
    waits = clock.decide(0)
    assert (waits.answers, waits.again_s) == ((), BACKGROUND_ALONE_S)
    assert moved_to(clock, BACKGROUND_ALONE_S) == 2_000


@pytest.mark.parametrize("answerable", [False, True])
def test_a_deadlock_is_one_unless_somebody_outside_may_answer(answerable: bool) -> None:
    clock = agreement(no_progress_s=1)
    for rank in range(2):
        clock.report(rank, Report(1, None, None))
    assert clock.decide(0).stuck is None
    asked = clock.decide(1.5)
    assert all(answer.ask_world for answer in asked.answers)
    for rank in range(2):
        clock.report(rank, Report(2, None, None, answerable=answerable and rank == 1))
    assert (clock.decide(1.6).stuck is None) == answerable


def test_bytes_that_never_arrive_end_the_run() -> None:
    clock = agreement(no_progress_s=1)
    stuck, now_s, number = None, 0.0, 0
    while stuck is None and now_s < 3:
        for rank in clock.waiting_for():
            number += 1
            clock.report(rank, Report(number, 3_000, None, changed=[end(rank, 1 - rank, sent=rank)]))
        stuck, now_s = clock.decide(now_s).stuck, now_s + 0.1
    assert stuck == "bytes between nodes do not add up"
    assert clock.describe_disagreements()[0][1] == "1 bytes sent, 0 received"


def test_what_a_node_cannot_say_is_refused() -> None:
    clock = agreement()
    with pytest.raises(ProtocolError, match="before the shared instant"):
        clock.report(0, Report(1, START_NS - 1, None))
    clock.report(0, Report(1, None, None))
    with pytest.raises(ProtocolError, match="before the answer"):
        clock.report(0, Report(2, None, None))
