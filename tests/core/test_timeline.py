"""Streams and events in one process. The clock is real here; what must be exact is put on a device that is busy."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.shim import pricing

MS = 1_000_000
GAP_NS = 1470
DONE, RUNNING, UNRESOLVED, UNRECORDED = range(4)


def elapsed_ns(core: Any, first: int, second: int) -> int | None:
    out = core.ffi.new("int64_t *")
    return int(out[0]) if core.lib.hl_timeline_elapsed_ns(first, second, out) else None


def mark(core: Any, stream: int) -> int:
    event = core.lib.hl_timeline_event_create()
    core.lib.hl_timeline_record(event, stream)
    return int(event)


def warm(core: Any, launch: Any, *durations: int, kind: str = "kernel", name: str = "k") -> None:
    """Puts prices into the table."""
    stream = core.lib.hl_timeline_stream_create(0, False)
    for duration in durations:
        core.lib.hl_timeline_launch(stream, launch(kind, name, duration))
    core.lib.hl_timeline_stream_wait(stream)
    core.lib.hl_timeline_stream_destroy(stream)


def test_events_measure_a_kernel(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, 50 * MS)
    stream = core.lib.hl_timeline_stream_create(0, False)
    began_ns = core.lib.hl_clock_now_ns()
    before = mark(core, stream)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 50 * MS))
    after = mark(core, stream)
    core.lib.hl_timeline_event_wait(after)
    assert core.lib.hl_timeline_event_query(after) == DONE
    elapsed = elapsed_ns(core, before, after)
    # the kernel starts when the host gets to launching it, a little after the event
    assert elapsed is not None
    assert 50 * MS <= elapsed <= core.lib.hl_clock_now_ns() - began_ns


def instant_ns(core: Any, event: int) -> int:
    out = core.ffi.new("int64_t *")
    assert core.lib.hl_timeline_event_instant_ns(event, out)
    return int(out[0])


def resolved(core: Any, event: int) -> None:
    limit = time.monotonic() + 120
    while core.lib.hl_timeline_event_query(event) == UNRESOLVED:
        assert time.monotonic() < limit
        time.sleep(0.001)


# The device is busy for long enough that what is put on it never waits for the host: instants are exact.
FAR = 1_000_000 * MS


def test_stream_order_and_gaps_are_exact(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, MS, 2 * MS)
    stream = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(stream, launch("copy", "d2d", FAR * 1287))
    first = mark(core, stream)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", MS))
    second = mark(core, stream)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 2 * MS))
    third = mark(core, stream)
    assert instant_ns(core, second) - instant_ns(core, first) == MS + GAP_NS
    assert instant_ns(core, third) - instant_ns(core, second) == 2 * MS + GAP_NS
    assert elapsed_ns(core, first, second) is None
    assert core.lib.hl_timeline_event_query(first) == RUNNING


def test_an_idle_device_starts_when_it_is_told(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, MS)
    stream = core.lib.hl_timeline_stream_create(0, False)
    before = core.lib.hl_clock_now_ns()
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", MS))
    after = core.lib.hl_clock_now_ns()
    assert before + MS <= instant_ns(core, mark(core, stream)) <= max(after + MS, core.lib.hl_clock_now_ns())


def test_steps_carry_no_gaps(core: Any, service: Any, launch: Any) -> None:
    service()
    stream = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(stream, launch("copy", "d2d", FAR * 1287))
    first = mark(core, stream)
    core.lib.hl_timeline_launch(stream, launch("step", "m", MS))
    second = mark(core, stream)
    resolved(core, second)
    assert instant_ns(core, second) - instant_ns(core, first) == MS


def test_waits_take_as_long_as_the_device(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, 50 * MS)
    stream, busy = core.lib.hl_timeline_stream_create(0, False), core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(busy, launch("copy", "d2d", FAR * 1287))
    began = time.monotonic_ns()
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 50 * MS))
    core.lib.hl_timeline_stream_wait(stream)
    assert time.monotonic_ns() - began >= 50 * MS
    assert core.lib.hl_timeline_stream_query(stream) == DONE
    assert core.lib.hl_timeline_stream_query(busy) == RUNNING


def test_device_wait_covers_destroyed_streams(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, 50 * MS)
    stream = core.lib.hl_timeline_stream_create(0, False)
    began = time.monotonic_ns()
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 50 * MS))
    core.lib.hl_timeline_stream_destroy(stream)
    core.lib.hl_timeline_device_wait(0)
    assert time.monotonic_ns() - began >= 50 * MS


def test_device_wait_does_not_wait_for_other_devices(core: Any, launch: Any) -> None:
    stream = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(stream, launch("copy", "d2d", FAR * 1287))
    event = mark(core, stream)
    core.lib.hl_timeline_stream_destroy(stream)
    core.lib.hl_timeline_device_wait(1)
    assert core.lib.hl_timeline_event_query(event) == RUNNING


def test_unpriced_work_does_not_block_the_host(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    pricer.gate.clear()
    stream = core.lib.hl_timeline_stream_create(0, False)
    for _ in range(3):
        core.lib.hl_timeline_launch(stream, launch("kernel", "k", 4 * MS))
    event = mark(core, stream)
    assert core.lib.hl_timeline_stream_query(stream) == UNRESOLVED
    assert core.lib.hl_timeline_event_query(event) == UNRESOLVED
    pricer.gate.set()
    core.lib.hl_timeline_event_wait(event)
    assert core.lib.hl_timeline_stream_query(stream) == DONE
    assert [each.name for each in pricer.asked] == ["k"]
    assert pricing.statistics().requests == 1


def test_late_prices_do_not_move_instants(core: Any, service: Any, launch: Any) -> None:
    """Work queued at once takes its durations and gaps, however late the price comes."""
    pricer = service()
    stream = core.lib.hl_timeline_stream_create(0, False)
    pricer.gate.clear()
    before = core.lib.hl_clock_now_ns()
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", FAR))
    after = core.lib.hl_clock_now_ns()
    first = mark(core, stream)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 20 * MS))
    second = mark(core, stream)
    time.sleep(0.06)
    pricer.gate.set()
    resolved(core, second)
    assert before + FAR <= instant_ns(core, first) <= after + FAR
    assert instant_ns(core, second) - instant_ns(core, first) == 20 * MS + GAP_NS


@pytest.mark.parametrize("priced", [True, False])
def test_event_orders_streams_of_two_devices(core: Any, service: Any, launch: Any, priced: bool) -> None:
    pricer = service()
    if priced:
        warm(core, launch, MS)
    else:
        pricer.gate.clear()
    a, b = core.lib.hl_timeline_stream_create(0, False), core.lib.hl_timeline_stream_create(1, False)
    core.lib.hl_timeline_launch(a, launch("copy", "d2d", FAR * 1287) if priced else launch("kernel", "k", FAR))
    on_a = mark(core, a)
    core.lib.hl_timeline_wait_event(b, on_a)
    core.lib.hl_timeline_launch(b, launch("kernel", "k", MS, device=1))
    on_b = mark(core, b)
    pricer.gate.set()
    resolved(core, on_b)
    assert instant_ns(core, on_b) - instant_ns(core, on_a) == MS + GAP_NS


def test_wait_takes_the_record_that_is_current(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    pricer.gate.clear()
    a, b = core.lib.hl_timeline_stream_create(0, False), core.lib.hl_timeline_stream_create(0, False)
    event = core.lib.hl_timeline_event_create()
    core.lib.hl_timeline_launch(a, launch("kernel", "k", FAR))
    core.lib.hl_timeline_record(event, a)
    core.lib.hl_timeline_wait_event(b, event)
    core.lib.hl_timeline_launch(a, launch("kernel", "k", 200 * MS))
    core.lib.hl_timeline_record(event, a)  # later: does not hold b up
    on_b = mark(core, b)
    pricer.gate.set()
    resolved(core, on_b)
    resolved(core, event)
    assert instant_ns(core, event) - instant_ns(core, on_b) == 200 * MS + GAP_NS


def test_unrecorded_event(core: Any) -> None:
    event, stream = core.lib.hl_timeline_event_create(), core.lib.hl_timeline_stream_create(0, False)
    assert core.lib.hl_timeline_event_query(event) == UNRECORDED
    core.lib.hl_timeline_event_wait(event)
    core.lib.hl_timeline_wait_event(stream, event)
    assert core.lib.hl_timeline_stream_query(stream) == DONE
    assert elapsed_ns(core, event, event) is None


@pytest.mark.parametrize("priced", [True, False])
def test_legacy_default_stream(core: Any, service: Any, launch: Any, priced: bool) -> None:
    """Its work waits for all blocking streams' work before it, and they for it; non-blocking ones go their own way."""
    pricer = service()
    if priced:
        warm(core, launch, MS)
    else:
        pricer.gate.clear()
    default = core.lib.hl_timeline_default_stream(0)
    assert core.lib.hl_timeline_default_stream(0) == default
    blocking, other = core.lib.hl_timeline_stream_create(0, True), core.lib.hl_timeline_stream_create(0, True)
    free = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(blocking, launch("copy", "d2d", FAR * 1287) if priced else launch("kernel", "k", FAR))
    on_blocking = mark(core, blocking)
    core.lib.hl_timeline_launch(default, launch("kernel", "k", MS))
    on_default = mark(core, default)
    core.lib.hl_timeline_launch(other, launch("kernel", "k", MS))
    on_other = mark(core, other)
    core.lib.hl_timeline_launch(free, launch("kernel", "k", MS))
    on_free = mark(core, free)
    pricer.gate.set()
    for event in (on_blocking, on_default, on_other, on_free):
        resolved(core, event)
    assert instant_ns(core, on_default) - instant_ns(core, on_blocking) == MS + GAP_NS
    assert instant_ns(core, on_other) - instant_ns(core, on_default) == MS + GAP_NS
    assert instant_ns(core, on_free) < instant_ns(core, on_blocking)


def test_default_stream_wait_includes_blocking_streams(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, 20 * MS)
    blocking = core.lib.hl_timeline_stream_create(0, True)
    began = time.monotonic_ns()
    core.lib.hl_timeline_launch(blocking, launch("kernel", "k", 20 * MS))
    core.lib.hl_timeline_stream_wait(core.lib.hl_timeline_default_stream(0))
    assert time.monotonic_ns() - began >= 20 * MS


def test_host_callback_runs_when_the_stream_reaches_it(core: Any, service: Any, launch: Any) -> None:
    service()
    warm(core, launch, 1000 * MS, 5 * MS)
    stream, other = core.lib.hl_timeline_stream_create(0, False), core.lib.hl_timeline_stream_create(0, False)
    ran: list[tuple[str, int]] = []

    @core.ffi.callback("void(void *)")
    def slow(argument: Any) -> None:
        ran.append(("slow", time.monotonic_ns()))
        time.sleep(0.01)

    @core.ffi.callback("void(void *)")
    def quick(argument: Any) -> None:
        ran.append(("quick", time.monotonic_ns()))

    began = time.monotonic_ns()
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 1000 * MS))
    slow_kernel = mark(core, stream)
    core.lib.hl_timeline_host_callback(stream, slow, core.ffi.NULL)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 5 * MS))
    end = mark(core, stream)
    # asked for later, reached earlier (unless this host stood still for a second between the two)
    core.lib.hl_timeline_launch(other, launch("kernel", "k", 5 * MS))
    quick_kernel = mark(core, other)
    core.lib.hl_timeline_host_callback(other, quick, core.ffi.NULL)
    core.lib.hl_timeline_event_wait(end)
    finished = time.monotonic_ns()
    first, second = (
        ("quick", "slow") if instant_ns(core, quick_kernel) < instant_ns(core, slow_kernel) else ("slow", "quick")
    )
    assert [name for name, _ in ran] == [first, second]
    assert dict(ran)["quick"] - began >= 5 * MS
    assert dict(ran)["slow"] - began >= 1000 * MS
    assert finished - began >= 1015 * MS


def test_handles_are_reused_safely(core: Any) -> None:
    seen = set()
    for _ in range(300):
        stream, event = core.lib.hl_timeline_stream_create(0, True), core.lib.hl_timeline_event_create()
        assert stream not in seen
        assert ("event", event) not in seen
        seen |= {stream, ("event", event)}
        core.lib.hl_timeline_stream_destroy(stream)
        core.lib.hl_timeline_event_destroy(event)
        assert not core.lib.hl_timeline_stream_valid(stream)
        assert not core.lib.hl_timeline_event_valid(event)


def test_streams_run_out_without_harm(core: Any) -> None:
    streams = []
    while stream := core.lib.hl_timeline_stream_create(0, True):
        streams.append(stream)
    assert len(streams) > 16000
    for stream in streams:
        core.lib.hl_timeline_stream_destroy(stream)
    assert core.lib.hl_timeline_stream_create(0, True)


def test_destroyed_stream_finishes_its_work(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    pricer.gate.clear()
    stream = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 10 * MS))
    event = mark(core, stream)
    core.lib.hl_timeline_stream_destroy(stream)
    assert core.lib.hl_timeline_event_query(event) == UNRESOLVED
    pricer.gate.set()
    core.lib.hl_timeline_event_wait(event)


def test_event_destroyed_while_pending(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    pricer.gate.clear()
    stream, other = core.lib.hl_timeline_stream_create(0, False), core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", MS))
    event = mark(core, stream)
    core.lib.hl_timeline_wait_event(other, event)
    core.lib.hl_timeline_event_destroy(event)
    again = core.lib.hl_timeline_event_create()
    assert core.lib.hl_timeline_event_query(again) == UNRECORDED
    pricer.gate.set()
    core.lib.hl_timeline_stream_wait(other)
    assert core.lib.hl_timeline_event_query(again) == UNRECORDED


def test_long_queues_recycle(core: Any, service: Any, launch: Any) -> None:
    """More operations than the segment has room for, over time."""
    pricer = service()
    stream, event = core.lib.hl_timeline_stream_create(0, False), core.lib.hl_timeline_event_create()
    for round_number in range(3):
        pricer.gate.clear()
        each = launch("kernel", "k", 1000 + round_number)
        for _ in range(100_000):
            core.lib.hl_timeline_launch(stream, each)
            core.lib.hl_timeline_record(event, stream)
        pricer.gate.set()
        core.lib.hl_timeline_stream_wait(stream)
    out, unknown = core.ffi.new("uint64_t *"), core.ffi.new("uint64_t *")
    core.lib.hl_timeline_device_launches(0, out, unknown)
    assert (out[0], unknown[0]) == (300_000, 0)


def test_full_queue_is_back_pressure(core: Any, service: Any, launch: Any) -> None:
    """As on a card: a launch waits when the queue is full, and nothing is lost."""
    pricer = service()
    pricer.gate.clear()
    stream = core.lib.hl_timeline_stream_create(0, False)
    threading.Timer(2.0, pricer.gate.set).start()
    each = launch("kernel", "k", 1)
    for _ in range(1_100_000):
        core.lib.hl_timeline_launch(stream, each)
    core.lib.hl_timeline_stream_wait(stream)
    shares = core.ffi.new("int64_t[5]")
    core.lib.hl_timeline_device_time_ns(0, shares)
    assert list(shares) == [1_100_000, 0, 0, 0, 0]


def test_device_time_by_coverage(core: Any, service: Any, launch: Any) -> None:
    service(lambda each: pricing.Price(15, (1, 2, 3, 4, 5), 0))
    stream = core.lib.hl_timeline_stream_create(1, False)
    for _ in range(4):
        core.lib.hl_timeline_launch(stream, launch("kernel", "k", 1, device=1))
    core.lib.hl_timeline_launch(stream, launch("copy", "h2d", 10_628, device=1))
    core.lib.hl_timeline_stream_wait(stream)
    shares, launches, unknown = core.ffi.new("int64_t[5]"), core.ffi.new("uint64_t *"), core.ffi.new("uint64_t *")
    core.lib.hl_timeline_device_time_ns(1, shares)
    core.lib.hl_timeline_device_launches(1, launches, unknown)
    assert list(shares) == [4, 8, 12, 16 + 1400, 20]
    assert (launches[0], unknown[0]) == (5, 4)
    core.lib.hl_timeline_device_time_ns(0, shares)
    assert list(shares) == [0] * 5


def test_many_threads(core: Any, service: Any, launch: Any) -> None:
    """Each its own stream, all of them one event that they record and wait for."""
    service()
    names = [f"t{i % 7}" for i in range(200)]
    shared = core.lib.hl_timeline_event_create()
    failures: list[BaseException] = []

    def work(device: int) -> None:
        try:
            stream = core.lib.hl_timeline_stream_create(device, device == 0)
            for name in names:
                core.lib.hl_timeline_launch(stream, launch("kernel", name, 1000, device=device))
                core.lib.hl_timeline_record(shared, stream)
                core.lib.hl_timeline_wait_event(stream, shared)
            core.lib.hl_timeline_stream_wait(stream)
            core.lib.hl_timeline_stream_destroy(stream)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    total = 0
    for device in range(2):
        launches, unknown = core.ffi.new("uint64_t *"), core.ffi.new("uint64_t *")
        core.lib.hl_timeline_device_launches(device, launches, unknown)
        total += launches[0]
    assert total == 1200


def test_child_of_fork_has_streams_of_its_own(core: Any, program: Callable[[str], Any]) -> None:
    child = program("""
        parent = lib.hl_timeline_default_stream(0)
        pid = os.fork()
        if not pid:
            own = lib.hl_timeline_default_stream(0)
            os._exit(10 if own != parent and not lib.hl_timeline_stream_valid(parent) else 11)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    out, err = child.communicate(timeout=60)
    assert out.split() == ["10"], err


def test_parents_stream_in_a_fork_is_refused(core: Any, program: Callable[[str], Any]) -> None:
    child = program("""
        parent = lib.hl_timeline_stream_create(0, True)
        pid = os.fork()
        if not pid:
            lib.hl_timeline_stream_wait(parent)
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    out, err = child.communicate(timeout=60)
    assert out.split() == ["-6"]
    assert "spawn method" in err


def test_without_devices_it_says_what_to_do(tmp_path: Path, program: Callable[[str], Any]) -> None:
    child = program("""
        del os.environ["HYPERLAPSE_RUN_DIR"]
        say(lib.hl_device_count())
        lib.hl_timeline_default_stream(0)
    """)
    out, err = child.communicate(timeout=60)
    assert out.split() == ["0"]
    assert "hyperlapse run" in err
    assert os.WTERMSIG(-child.returncode) == 6 or child.returncode == -6
