"""The timeline on a frozen virtual clock: participants, a time-keeper, and a pricing service of its own process."""

import itertools
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.shim import _core, devices, environment, launcher

MS = 1_000_000
S = 1000 * MS

PARTICIPANT = """
    import os, sys, threading, time
    from hyperlapse.shim import _core, pricing
    core = _core.core()
    ffi, lib = core.ffi, core.lib
    names = {}
    def launch(kind, name, *args, device=0):
        kept = names.setdefault(name, ffi.new("char[]", name.encode()))
        number = {text: value for value, text in pricing.KINDS.items()}[kind]
        return ffi.new("hl_launch *", {"kind": number, "device": device, "name": kept, "arg": args})
    def say(*words): print(*words, flush=True)
"""
SERVICE = """
    import os, signal, sys, threading, time
    from hyperlapse.shim import pricing
    class Predictor:
        def price_launch(self, launch):
            time.sleep(float(os.environ["PRICE_TAKES_S"]))  # real time: must not be seen
            return pricing.Price(launch.args[0], (launch.args[0], 0, 0, 0, 0))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pricing.serve(os.environ["HYPERLAPSE_RUN_DIR"], Predictor(), stop)
"""


@pytest.fixture
def run(core_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in (*environment.CLOCK_LIBRARIES, launcher.KEEPER):
        if not _core.library(name).exists():
            pytest.skip(f"{name} is not built: install the package")
    if core_library != _core.library(_core.CORE_LIBRARY):
        pytest.skip("the installed core is older than its sources: install the package again")
    monkeypatch.setenv("PRICE_TAKES_S", "0.003")
    with launcher.Run() as made:
        facts = devices.facts_of(devices.load("h100-sxm-80gb"), 2)
        assert _core.core().lib.hl_device_segment_create(os.fsencode(made.directory), facts, 2) == 0
        made.spawn_service([sys.executable, "-c", textwrap.dedent(SERVICE)])
        made.set_mode(launcher.Mode.PARKED)
        yield made


def spawn(run: Any, body: str) -> Any:
    source = textwrap.dedent(PARTICIPANT) + textwrap.dedent(body)
    return run.spawn([sys.executable, "-c", source], stdout=-1, stderr=-1, text=True)


def test_no_jump_over_a_price_that_has_just_come(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A price that comes while the time-keeper proves that all are asleep: its waiter must be seen. Idle threads widen the
    window, the decoy is where a wrong jump would land.
    """
    (late,) = results(
        run,
        """
        for _ in range(40):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        def decoy():
            while True: time.sleep(0.0005)
        threading.Thread(target=decoy, daemon=True).start()
        stream, late = lib.hl_timeline_default_stream(0), 0
        for i in range(400):
            began_ns, duration_ns = time.monotonic_ns(), 10_000 + i
            lib.hl_timeline_launch(stream, launch("kernel", "k", duration_ns))
            lib.hl_timeline_stream_wait(stream)
            late += time.monotonic_ns() - began_ns != duration_ns
        say(late)
        """,
    )
    assert late == ["0"]


def results(run: Any, *bodies: str) -> list[list[str]]:
    """Output words of participants that start together when all have said so."""
    children = [spawn(run, 'say("ready"); time.sleep(1)\n' + textwrap.dedent(body)) for body in bodies]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
    time.sleep(0.1)
    run.set_mode(launcher.Mode.FROZEN)
    outputs = []
    for child in children:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        outputs.append(out.split())
    run.check()
    return outputs


def test_steps_take_their_virtual_time(run: Any) -> None:
    """Each step's price is asked for while the clock is held, and a decoy's timers do not make it gallop."""
    steps, decoy = (
        """
        stream, each = lib.hl_timeline_default_stream(0), launch("step", "m", 10_000_000)
        began = time.monotonic_ns()
        for number in range(100):
            text = f"v1 seqs=1:{number}".encode()
            lib.hl_annotate(text, len(text), 1)
            lib.hl_timeline_launch(stream, each)
            lib.hl_timeline_stream_wait(stream)
        say(time.monotonic_ns() - began)
    """,
        """
        for _ in range(1000):
            time.sleep(0.001)
    """,
    )
    (took, *_), _ = results(run, steps, decoy)
    assert int(took) == 100 * 10 * MS
    assert run.statistics().holds == 0


def test_long_kernels_pass_at_once(run: Any) -> None:
    began = time.monotonic()
    ((waited, polled, called, event),) = results(
        run,
        """
        stream = lib.hl_timeline_stream_create(0, False)
        def spend():
            began = time.monotonic_ns()
            lib.hl_timeline_launch(stream, launch("kernel", "k", 3600 * 10**9))
            return began
        began = spend()
        lib.hl_timeline_stream_wait(stream)
        say(time.monotonic_ns() - began)
        began = spend()
        while lib.hl_timeline_stream_query(stream):
            pass
        say(time.monotonic_ns() - began)
        began = spend()
        seen = []
        @ffi.callback("void(void *)")
        def callback(argument):
            seen.append(time.monotonic_ns())
        lib.hl_timeline_host_callback(stream, callback, ffi.NULL)
        lib.hl_timeline_device_wait(0)
        say(seen[0] - began)
        event = lib.hl_timeline_event_create()
        began = spend()
        lib.hl_timeline_record(event, stream)
        lib.hl_timeline_event_wait(event)
        say(time.monotonic_ns() - began)
    """,
    )
    assert (int(waited), int(polled), int(called), int(event)) == (3600 * S,) * 4
    assert time.monotonic() - began < 600


def test_ranks_meet_at_one_virtual_instant(run: Any) -> None:
    rank = """
        stream = lib.hl_timeline_stream_create({rank}, False)
        for number in range(20):
            lib.hl_timeline_launch(stream, launch("kernel", "k", {compute}, device={rank}))
            each = launch("collective", "all_reduce", 1_000_000, 2, device={rank})
            lib.hl_timeline_rendezvous(stream, 1, number, 2, each)
            lib.hl_timeline_stream_wait(stream)
            say(time.monotonic_ns())
    """
    first, second = results(run, rank.format(rank=0, compute=5_000_000), rank.format(rank=1, compute=50_000_000))
    assert first == second
    instants = [int(word) for word in first]
    # the slower rank's compute, the gap, the collective
    assert {after - before for before, after in itertools.pairwise(instants)} == {51 * MS + 1470}


def test_two_runs_are_equal(run: Any) -> None:
    body = """
        streams = [lib.hl_timeline_stream_create(0, bool(i % 2)) for i in range(4)]
        event, began = lib.hl_timeline_event_create(), time.monotonic_ns()
        for number in range(200):
            stream = streams[number * 7 % 4]
            lib.hl_timeline_launch(stream, launch("kernel", f"k{number % 13}", 10_000 + number * 31))
            lib.hl_timeline_record(event, stream)
            lib.hl_timeline_wait_event(streams[number * 5 % 4], event)
            if number % 10 == 0:
                lib.hl_timeline_event_wait(event)
                say(time.monotonic_ns() - began)
    """
    (first,) = results(run, body)
    run.set_mode(launcher.Mode.PARKED)
    (second,) = results(run, body)  # its prices are in the table by now
    assert first == second
    assert len(first) == 20
