"""Timed waits: libc's own with their argument tables, CPython's, and interruption by the program's own signals."""

from __future__ import annotations

from tests.clock.fixture import Clock


def test_libc_waits_take_as_long_as_they_say(clock: Clock) -> None:
    for case, elapsed_s in clock.measure("waits").items():
        clock.assert_elapsed(elapsed_s, float(case.rsplit(" ", 1)[1]) / 1e3)


def test_python_waits_take_as_long_as_they_say(clock: Clock) -> None:
    for case, elapsed_s in clock.measure("python_waits").items():
        expected_s = float(case.rsplit(" ", 1)[1]) / 1e3
        assert elapsed_s >= expected_s - 1e-9, case
        # several waits in one case: each may be 1 µs late; an event loop rounds up to its own 1 ms
        assert not clock.virtual or elapsed_s <= expected_s + 0.0011, case


def test_own_signal_interrupts_a_wait(clock: Clock) -> None:
    elapsed = clock.measure("interrupted")
    for case, expected_s in {"sleep": 0.2, "poll": 0.4, "sem": 0.6}.items():
        clock.assert_elapsed(elapsed[case], expected_s)
    assert elapsed["left"] + elapsed["sleep"] >= 3600 - 5e-6
    assert not clock.virtual or elapsed["left"] + elapsed["sleep"] <= 3600 + 5e-6


def test_timers_expire_when_they_say(clock: Clock) -> None:
    """timerfd, alarm, setitimer, timer_create, with what is left, what adds up, and what a child inherits."""
    for case, elapsed_s in clock.measure("timers").items():
        clock.assert_elapsed(elapsed_s, float(case.rsplit(" ", 1)[1]) / 1e3)
