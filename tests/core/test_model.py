"""Random programs against a model of thirty lines: the order of streams, whatever is resolved when.

All work is put on streams that already wait for an event far in the future, so that no instant depends on real time.
"""

import contextlib
import dataclasses
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hyperlapse.shim import _core, devices, pricing

FAR_NS = 1_000_000_000_000
GAP_NS, GRAPH_GAP_NS, GRAPH_LAUNCH_NS = 1470, 490, 1400

DEFAULT, BLOCKING, FREE = "default", "blocking", "free"
# index: (kind, device)
STREAMS = [(DEFAULT, 0), (BLOCKING, 0), (BLOCKING, 0), (FREE, 0), (FREE, 0), (DEFAULT, 1), (BLOCKING, 1), (FREE, 1)]
EVENTS = 4


@dataclass(frozen=True)
class Launch:
    stream: int
    duration_ns: int
    name: str


@dataclass(frozen=True)
class Record:
    stream: int
    event: int


@dataclass(frozen=True)
class Wait:
    stream: int
    event: int


@dataclass(frozen=True)
class Graph:
    stream: int
    durations_ns: tuple[int, ...]


@dataclass(frozen=True)
class Meet:
    streams: tuple[int, int]
    duration_ns: int


@dataclass(frozen=True)
class OpenGate:
    """From here on prices come; before, nothing is resolved."""


Command = Launch | Record | Wait | Graph | Meet | OpenGate


class Model:
    """Instants relative to the event that all streams wait for first."""

    def __init__(self) -> None:
        self.tail = [0] * len(STREAMS)
        self.event: list[int | None] = [None] * EVENTS

    def order(self, stream: int) -> None:
        kind, device = STREAMS[stream]
        others = {DEFAULT: BLOCKING, BLOCKING: DEFAULT}.get(kind)
        before = [self.tail[i] for i, other in enumerate(STREAMS) if other == (others, device)]
        self.tail[stream] = max([self.tail[stream], *before])

    def run(self, command: Command) -> None:
        match command:
            case Launch(stream, duration_ns):
                self.order(stream)
                self.tail[stream] += GAP_NS + duration_ns
            case Graph(stream, durations_ns):
                self.order(stream)
                gaps_ns = GRAPH_LAUNCH_NS + GRAPH_GAP_NS * (len(durations_ns) - 1)
                self.tail[stream] += GAP_NS + gaps_ns + sum(durations_ns)
            case Record(stream, event):
                self.order(stream)
                self.event[event] = self.tail[stream]
            case Wait(stream, event):
                if self.event[event] is not None:
                    self.order(stream)
                    self.tail[stream] = max(self.tail[stream], self.event[event] or 0)
            case Meet(streams, duration_ns):
                for stream in streams:
                    self.order(stream)
                end_ns = max(self.tail[stream] + GAP_NS for stream in streams) + duration_ns
                for stream in streams:
                    self.tail[stream] = end_ns


class Real:
    """The same commands through the core."""

    def __init__(self, core: Any, launch: Any) -> None:
        self.lib, self.ffi, self.launch = core.lib, core.ffi, launch
        self.streams = [
            self.lib.hl_timeline_default_stream(device)
            if kind == DEFAULT
            else self.lib.hl_timeline_stream_create(device, kind == BLOCKING)
            for kind, device in STREAMS
        ]
        self.events = [self.lib.hl_timeline_event_create() for _ in range(EVENTS)]
        self.gate = threading.Event()
        self.sequence = 0
        far = self.lib.hl_timeline_stream_create(0, False)
        self.start = self.lib.hl_timeline_event_create()
        self.lib.hl_timeline_launch(far, launch("kernel", "far", FAR_NS))
        self.lib.hl_timeline_record(self.start, far)
        for stream in self.streams:
            self.lib.hl_timeline_wait_event(stream, self.start)

    def run(self, command: Command) -> None:
        match command:
            case Launch(stream, duration_ns, name):
                each = self.launch("kernel", name, duration_ns, device=STREAMS[stream][1])
                self.lib.hl_timeline_launch(self.streams[stream], each)
            case Graph(stream, durations_ns):
                self.graph(stream, durations_ns)
            case Record(stream, event):
                self.lib.hl_timeline_record(self.events[event], self.streams[stream])
            case Wait(stream, event):
                self.lib.hl_timeline_wait_event(self.streams[stream], self.events[event])
            case Meet(streams, duration_ns):
                self.sequence += 1
                for stream in streams:
                    each = self.launch("collective", "all_reduce,bf16", duration_ns, device=STREAMS[stream][1])
                    self.lib.hl_timeline_rendezvous(self.streams[stream], 7, self.sequence, 2, each)
            case OpenGate():
                self.gate.set()

    def graph(self, stream: int, durations_ns: tuple[int, ...]) -> None:
        capturing = self.lib.hl_timeline_stream_create(STREAMS[stream][1], False)
        assert self.lib.hl_graph_begin(capturing) == 0
        for number, duration_ns in enumerate(durations_ns):
            each = self.launch("kernel", f"g{number % 3}", duration_ns, device=STREAMS[stream][1])
            self.lib.hl_timeline_launch(capturing, each)
        graph = self.ffi.new("hl_graph **")
        assert self.lib.hl_graph_end(capturing, graph) == 0
        self.lib.hl_timeline_stream_destroy(capturing)
        self.lib.hl_graph_launch(graph[0], self.streams[stream])
        self.lib.hl_graph_release(graph[0])

    def instant(self, event: int) -> int | None:
        out = self.ffi.new("int64_t *")
        return int(out[0]) if self.lib.hl_timeline_event_instant_ns(event, out) else None


@contextlib.contextmanager
def fresh_run(bind: Any, launcher: Any) -> Iterator[tuple[Any, Any, pricing._Service]]:
    with tempfile.TemporaryDirectory() as directory:
        facts = devices.facts_of(devices.load("h100-sxm-80gb"), 2)
        assert bind.lib.hl_device_segment_create(os.fsencode(directory), facts, 2) == 0
        pricing.attach(Path(directory))
        yield bind, launcher, pricing._Service(_core.core(), _Exact())


class _Exact:
    def price_launch(self, launch: pricing.Launch) -> pricing.Price:
        return pricing.Price(launch.args[0], (0, launch.args[0], 0, 0, 0), int(launch.name[-1] == "1"))


streams = st.integers(0, len(STREAMS) - 1)
events = st.integers(0, EVENTS - 1)
durations = st.sampled_from([0, 1, 1000, 12_345, 999_999])
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Launch, streams, durations, st.sampled_from(["k0", "k1"])),
    st.builds(Record, streams, events),
    st.builds(Wait, streams, events),
    st.builds(Graph, streams, st.lists(durations, min_size=1, max_size=5).map(tuple)),
    # ranks on one device could wait for each other by the order with the default stream, as on a card
    st.builds(Meet, st.tuples(st.integers(0, 4), st.integers(5, 7)), durations),
    st.just(OpenGate()),
)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(commands, max_size=40))
@example(program=[OpenGate(), Launch(1, 1000, "k0"), Launch(0, 1000, "k0"), Record(0, 0)])
@example(program=[Launch(1, 1000, "k0"), Launch(0, 1000, "k0"), OpenGate(), Launch(2, 1000, "k0"), Record(2, 0)])
@example(program=[Launch(0, 1000, "k0"), Launch(1, 12_345, "k0"), Launch(0, 1, "k0"), Record(0, 0)])
def test_program_matches_the_model(core: Any, launch: Any, program: list[Command]) -> None:
    model = Model()
    with fresh_run(core, launch) as (bound, launcher, service):
        real = Real(bound, launcher)
        for command in program:
            real.run(command)
            model.run(command)
            if real.gate.is_set():
                service.answer_some(0)
        ends = []
        for stream in real.streams:
            ends.append(bound.lib.hl_timeline_event_create())
            bound.lib.hl_timeline_record(ends[-1], stream)
        for stream in range(len(STREAMS)):
            model.order(stream)
        while pricing.statistics().requests != pricing.statistics().answers:
            service.answer_some(0)
        start_ns = real.instant(real.start)
        assert start_ns is not None
        for event, expected in zip(real.events, model.event, strict=True):
            instant = real.instant(event)
            assert (None if instant is None else instant - start_ns) == expected
        found = [real.instant(event) for event in ends]
        assert [None if at is None else at - start_ns for at in found] == model.tail
        shares = bound.ffi.new("int64_t[5]")
        total_ns = 0
        for device in range(2):
            bound.lib.hl_timeline_device_time_ns(device, shares)
            total_ns += sum(shares)
        assert total_ns - FAR_NS == sum(map(device_time_ns, program))
        assert not service.failed


def device_time_ns(command: Command) -> int:
    values = dataclasses.asdict(command)
    ranks = len(values.get("streams", (0,)))
    return int(sum(values.get("durations_ns", (values.get("duration_ns", 0),)))) * ranks
