"""Captured graphs."""

import errno
from typing import Any

import pytest

from hyperlapse.shim import _core, pricing

FAR = 1_000_000_000_000
GAP_NS, GRAPH_GAP_NS, GRAPH_LAUNCH_NS = 1470, 490, 1400


def instant_ns(core: Any, event: int) -> int | None:
    out = core.ffi.new("int64_t *")
    return int(out[0]) if core.lib.hl_timeline_event_instant_ns(event, out) else None


@pytest.fixture
def stream(core: Any, launch: Any) -> int:
    """A stream that is busy until far in the future, so that instants are exact."""
    made = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(made, launch("copy", "d2d", FAR * 1287))
    return int(made)


class Capture:
    def __init__(self, core: Any) -> None:
        self.core = core
        self.stream = core.lib.hl_timeline_stream_create(0, False)

    def __enter__(self) -> "Capture":
        assert self.core.lib.hl_graph_begin(self.stream) == 0
        return self

    def __exit__(self, *unused: object) -> None:
        out = self.core.ffi.new("hl_graph **")
        assert self.core.lib.hl_graph_end(self.stream, out) == 0
        self.graph = out[0]


def duration_ns(core: Any, stream: int, graph: Any, answer: Any = lambda: None) -> int:
    """Virtual time that one launch of the graph takes on a busy stream, less the gap before it."""
    events = [core.lib.hl_timeline_event_create() for _ in range(2)]
    core.lib.hl_timeline_record(events[0], stream)
    core.lib.hl_graph_launch(graph, stream)
    core.lib.hl_timeline_record(events[1], stream)
    answer()
    first, second = (instant_ns(core, event) for event in events)
    assert first is not None
    assert second is not None
    return second - first - GAP_NS


def gaps_ns(nodes: int) -> int:
    return GRAPH_LAUNCH_NS + GRAPH_GAP_NS * (nodes - 1)


class Prices:
    """Answers in the test's own thread."""

    def __init__(self, price: Any) -> None:
        self.asked: list[pricing.Launch] = []
        self._price = price
        self._service = pricing._Service(_core.core(), self)

    def price_launch(self, launch: pricing.Launch) -> pricing.PriceLike:
        self.asked.append(launch)
        return self._price(launch)  # type: ignore[no-any-return]

    def __call__(self) -> None:
        while pricing.statistics().requests != pricing.statistics().answers:
            self._service.answer_some(0)


def test_sum_of_nodes(core: Any, launch: Any, stream: int) -> None:
    prices = Prices(lambda each: pricing.Price(each.args[0], (each.args[0], 0, 0, 0, 0)))
    with Capture(core) as capture:
        for number in range(12):
            core.lib.hl_timeline_launch(capture.stream, launch("kernel", "k", 1000 * (1 + number % 3)))
        core.lib.hl_timeline_launch(capture.stream, launch("memset", "", 0))
        assert pricing.statistics().requests == 0  # kept, not executed
    assert core.lib.hl_graph_nodes(capture.graph) == 13
    expected = 24_000 + 1200 + gaps_ns(13)
    assert duration_ns(core, stream, capture.graph, prices) == expected  # unpriced
    assert duration_ns(core, stream, capture.graph) == expected  # priced, being summed
    assert duration_ns(core, stream, capture.graph) == expected  # summed
    assert len(prices.asked) == 3
    shares, launches, unknown = core.ffi.new("int64_t[5]"), core.ffi.new("uint64_t *"), core.ffi.new("uint64_t *")
    core.lib.hl_timeline_device_time_ns(0, shares)
    core.lib.hl_timeline_device_launches(0, launches, unknown)
    assert shares[0] == 3 * 24_000
    assert launches[0] == 1 + 3 * 13
    core.lib.hl_graph_release(capture.graph)


def test_parts_that_depend_on_the_batch(core: Any, launch: Any, stream: int) -> None:
    """Attention is priced at each launch of the graph, under the annotation of that launch."""

    def price(each: pricing.Launch) -> pricing.Price:
        if each.name == "attention":
            return pricing.Price(len(each.annotation), (0, len(each.annotation), 0, 0, 0), pricing.DEPENDS_BATCH)
        if each.name == "norm":
            return pricing.Price(10 * each.tokens, (0, 0, 0, 10 * each.tokens, 0), pricing.DEPENDS_TOKENS)
        return pricing.Price(1000, (1000, 0, 0, 0, 0))

    prices = Prices(price)
    core.lib.hl_annotate(b"capture", 7, 1)
    with Capture(core) as capture:
        for _ in range(40):
            for name in ("attention", "norm", "mlp"):
                core.lib.hl_timeline_launch(capture.stream, launch("kernel", name, 1))
    for text, tokens in [("a", 8), ("bbb", 8), ("bbb", 16), ("a", 8)]:
        core.lib.hl_annotate(text.encode(), len(text), tokens)
        expected = 40 * (len(text) + 10 * tokens + 1000) + gaps_ns(120)
        assert duration_ns(core, stream, capture.graph, prices) == expected
    core.lib.hl_annotate(core.ffi.NULL, 0, 0)
    asked = [(each.name, each.annotation, each.tokens) for each in prices.asked]
    assert sorted(asked) == [
        ("attention", "a", 8), ("attention", "bbb", 8), ("mlp", "a", 8), ("norm", "a", 8), ("norm", "bbb", 16)
    ]  # fmt: skip


def test_sums_are_redone_when_a_kernel_turns_out_to_depend(core: Any, launch: Any, stream: int) -> None:
    depends = 0
    prices = Prices(
        lambda each: pricing.Price(100 + len(each.annotation), (100 + len(each.annotation), 0, 0, 0, 0), depends)
    )
    with Capture(core) as capture:
        core.lib.hl_timeline_launch(capture.stream, launch("kernel", "k", 1))
    for _ in range(2):
        assert duration_ns(core, stream, capture.graph, prices) == 100 + gaps_ns(1)
    depends = pricing.DEPENDS_BATCH
    core.lib.hl_timeline_launch(stream, launch("kernel", "k", 2))
    prices()
    core.lib.hl_annotate(b"abc", 3, 1)
    assert duration_ns(core, stream, capture.graph, prices) == 103 + gaps_ns(1)
    core.lib.hl_annotate(core.ffi.NULL, 0, 0)


def test_streams_join_through_events(core: Any, launch: Any, stream: int) -> None:
    lib = core.lib
    side, event, back = (
        lib.hl_timeline_stream_create(0, False),
        lib.hl_timeline_event_create(),
        lib.hl_timeline_event_create(),
    )
    with Capture(core) as capture:
        lib.hl_timeline_launch(capture.stream, launch("copy", "d2d", 0))
        lib.hl_timeline_record(event, capture.stream)
        assert not lib.hl_graph_capturing(side)
        lib.hl_timeline_wait_event(side, event)
        assert lib.hl_graph_capture_id(side) == lib.hl_graph_capture_id(capture.stream) != 0
        lib.hl_timeline_launch(side, launch("copy", "d2d", 0))
        lib.hl_timeline_record(back, side)
        lib.hl_timeline_wait_event(capture.stream, back)
        out = core.ffi.new("hl_graph **")
        assert lib.hl_graph_end(side, out) == -errno.EINVAL
    assert not lib.hl_graph_capturing(side)
    assert not lib.hl_graph_capturing(capture.stream)
    assert lib.hl_graph_nodes(capture.graph) == 2
    assert duration_ns(core, stream, capture.graph) == 2400 + gaps_ns(2)


def test_begin_and_end_errors(core: Any) -> None:
    stream, out = core.lib.hl_timeline_stream_create(0, False), core.ffi.new("hl_graph **")
    assert core.lib.hl_graph_end(stream, out) == -errno.EINVAL
    assert core.lib.hl_graph_begin(stream) == 0
    assert core.lib.hl_graph_begin(stream) == -errno.EALREADY
    assert core.lib.hl_graph_end(stream, out) == 0
    assert core.lib.hl_graph_nodes(out[0]) == 0


def test_empty_graph_takes_no_time(core: Any, stream: int) -> None:
    with Capture(core) as capture:
        pass
    events = [core.lib.hl_timeline_event_create() for _ in range(2)]
    core.lib.hl_timeline_record(events[0], stream)
    core.lib.hl_graph_launch(capture.graph, stream)
    core.lib.hl_timeline_record(events[1], stream)
    assert instant_ns(core, events[0]) == instant_ns(core, events[1])


def test_graph_inside_a_graph(core: Any, launch: Any, stream: int) -> None:
    with Capture(core) as inner:
        for _ in range(3):
            core.lib.hl_timeline_launch(inner.stream, launch("copy", "d2d", 0))
    with Capture(core) as outer:
        core.lib.hl_timeline_launch(outer.stream, launch("copy", "d2d", 0))
        core.lib.hl_graph_launch(inner.graph, outer.stream)
    core.lib.hl_graph_release(inner.graph)
    assert core.lib.hl_graph_nodes(outer.graph) == 4
    assert duration_ns(core, stream, outer.graph) == 4 * 1200 + gaps_ns(4)


def test_callbacks_in_graphs_run_at_each_launch(core: Any) -> None:
    ran: list[int] = []

    @core.ffi.callback("void(void *)")
    def callback(argument: Any) -> None:
        ran.append(len(ran))

    with Capture(core) as capture:
        core.lib.hl_timeline_host_callback(capture.stream, callback, core.ffi.NULL)
    assert ran == []
    idle = core.lib.hl_timeline_stream_create(0, False)
    for _ in range(3):
        core.lib.hl_graph_launch(capture.graph, idle)
    core.lib.hl_timeline_stream_wait(idle)
    assert ran == [0, 1, 2]


def test_collectives_in_graphs_meet_at_each_launch(core: Any, launch: Any, stream: int) -> None:
    """Two ranks (here of one process, on two devices) replay graphs that they captured alike."""
    prices = Prices(lambda each: pricing.Price(each.args[0], (each.args[0], 0, 0, 0, 0)))
    other = core.lib.hl_timeline_stream_create(1, False)
    core.lib.hl_timeline_launch(other, launch("copy", "d2d", 2 * FAR * 1287, device=1))
    graphs = []
    for device in range(2):
        with Capture(core) as capture:
            for number in range(3):
                core.lib.hl_timeline_launch(capture.stream, launch("kernel", "k", 1000, device=device))
                collective = launch("collective", "all_reduce,bf16", 4000, 2, device=device)
                core.lib.hl_timeline_rendezvous(capture.stream, 5, number, 2, collective)
        graphs.append(capture.graph)
    ends = []
    for _ in range(2):
        for graph, on in zip(graphs, (stream, other), strict=True):
            core.lib.hl_graph_launch(graph, on)
    for on in (stream, other):
        ends.append(core.lib.hl_timeline_event_create())
        core.lib.hl_timeline_record(ends[-1], on)
    prices()
    first, second = (instant_ns(core, event) for event in ends)
    assert first is not None
    assert first == second
    begin = core.lib.hl_timeline_event_create()
    core.lib.hl_timeline_record(begin, other)
    # the second device's stream is the later one, and everything follows it without waiting
    assert len(prices.asked) == 2
