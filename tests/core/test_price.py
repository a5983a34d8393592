"""Keys, misses, holds, and what prices depend on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.shim import _core, pricing

TOKENS, BATCH = pricing.DEPENDS_TOKENS, pricing.DEPENDS_BATCH
UNKNOWN = 4


def annotate(core: Any, text: str | None, tokens: int = 0) -> None:
    raw = core.ffi.NULL if text is None else text.encode()
    assert core.lib.hl_annotate(raw, len(text or ""), tokens) == 0


@pytest.fixture(autouse=True)
def no_annotation(core: Any) -> Any:
    yield
    annotate(core, None)


def find(core: Any, launch: Any) -> int | None:
    price = core.ffi.new("hl_price *")
    return int(price.duration_ns) if core.lib.hl_price_find(launch, price) else None


def settle(core: Any, *launches: Any) -> None:
    stream = core.lib.hl_timeline_stream_create(0, False)
    for each in launches:
        core.lib.hl_timeline_launch(stream, each)
    core.lib.hl_timeline_stream_wait(stream)
    core.lib.hl_timeline_stream_destroy(stream)


@pytest.mark.parametrize(
    ("copy", "size", "expected_ns"),
    [
        (("copy", "h2d"), 0, 1200),
        (("copy", "h2d"), 1, 1201),
        (("copy", "h2d"), 53_140_000, 1200 + 1_000_000),
        (("copy", "d2h"), 54_060_000, 1200 + 1_000_000),
        (("copy", "d2d"), 1_484_000_000, 1200 + 1_000_000),
        (("copy", "p2p"), 375_000_000, 1200 + 1_000_000),
        (("memset", ""), 2_968_000_000, 1200 + 1_000_000),
        (("copy", "h2d"), 2**62, 1200 + -(-(2**62) * 10**9 // 53_140_000_000)),
        (("copy", "h2d"), -1, 1200),
    ],
)
def test_copies_are_physics(core: Any, launch: Any, copy: tuple[str, str], size: int, expected_ns: int) -> None:
    assert find(core, launch(*copy, size)) == expected_ns
    assert pricing.statistics().requests == 0


def test_miss_then_hit(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    each = launch("kernel", "k", 1000, 2, 3, 4, 5, 6, 7)
    assert find(core, each) is None
    settle(core, each, each, each)
    assert find(core, each) == 1000
    assert len(pricer.asked) == 1
    assert pricer.asked[0] == pricing.Launch("kernel", 0, "k", (1000, 2, 3, 4, 5, 6, 7, 0), 0, "")


@pytest.mark.parametrize("place", range(8))
def test_every_argument_is_in_the_key(core: Any, service: Any, launch: Any, place: int) -> None:
    service()
    arguments = [1000] * 8
    settle(core, launch("kernel", "k", *arguments))
    arguments[place] += 1
    assert find(core, launch("kernel", "k", *arguments)) is None


def test_kind_and_name_are_in_the_key(core: Any, service: Any, launch: Any) -> None:
    service()
    settle(core, launch("kernel", "k", 1000))
    assert find(core, launch("gemm", "k", 1000)) is None
    assert find(core, launch("collective", "k", 1000)) is None
    assert find(core, launch("kernel", "kk", 1000)) is None
    assert find(core, launch("kernel", "k", 1000, device=1)) == 1000  # the same product


def test_static_kernels_are_priced_once(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    each = launch("kernel", "static", 1000)
    for step in range(5):
        annotate(core, f"v1 seqs=1:{step}", 8 * step)
        settle(core, each)
    assert len(pricer.asked) == 1
    assert pricer.asked[0].annotation == "v1 seqs=1:0"


def test_kernels_that_depend_on_tokens(core: Any, service: Any, launch: Any) -> None:
    pricer = service(lambda each: pricing.Price(each.tokens, (0, 0, 0, each.tokens, 0), TOKENS))
    each = launch("kernel", "norm", 1)
    for tokens, text in [(8, "a"), (8, "b"), (16, "a"), (8, "c"), (16, "d")]:
        annotate(core, text, tokens)
        settle(core, each)
        assert find(core, each) == tokens
    assert [asked.tokens for asked in pricer.asked] == [8, 16]


def test_kernels_that_depend_on_the_batch(core: Any, service: Any, launch: Any) -> None:
    pricer = service(lambda each: pricing.Price(len(each.annotation), (len(each.annotation), 0, 0, 0, 0), BATCH))
    each = launch("kernel", "attention", 1)
    for text in ["a", "bb", "a", "bb", "ccc"]:
        annotate(core, text, 8)
        settle(core, each)
        assert find(core, each) == len(text)
    assert [asked.annotation for asked in pricer.asked] == ["a", "bb", "ccc"]


def test_gemms_do_not_see_the_annotation(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    for text in ["a", "b"]:
        annotate(core, text, 8)
        settle(core, launch("gemm", "bf16,bf16,bf16,f32", 1000, 5120, 5120, 1, 0, 0))
    assert [(asked.annotation, asked.tokens) for asked in pricer.asked] == [("", 0)]


def test_steps_are_priced_by_the_annotation(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    for text in ["a", "b", "b"]:
        annotate(core, text, 8)
        settle(core, launch("step", "model", 1000))
    assert [asked.annotation for asked in pricer.asked] == ["a", "b"]


def test_dependence_learnt_later_is_honoured(core: Any, service: Any, launch: Any) -> None:
    """A name that was said to be static and then turns out not to be: old prices are not used any more."""
    depends = iter([0, BATCH, BATCH])
    pricer = service(lambda each: pricing.Price(each.args[0], (each.args[0], 0, 0, 0, 0), next(depends)))
    annotate(core, "a", 8)
    settle(core, launch("kernel", "k", 1000))
    settle(core, launch("kernel", "k", 2000))
    assert find(core, launch("kernel", "k", 1000)) is None
    assert find(core, launch("kernel", "k", 2000)) == 2000
    annotate(core, "b", 8)
    assert find(core, launch("kernel", "k", 2000)) is None
    assert len(pricer.asked) == 2


def test_annotation_limits(core: Any, service: Any, launch: Any) -> None:
    assert core.lib.hl_annotate(b"x" * 16384, 16384, 1) == 0
    assert core.lib.hl_annotate(b"x" * 16385, 16385, 1) < 0
    pricer = service()
    settle(core, launch("step", "model", 1))
    assert pricer.asked[0].annotation == "x" * 16384


def test_long_names_are_told_apart(core: Any, service: Any, launch: Any) -> None:
    pricer = service()
    first, second = "n" * 1500 + "1", "n" * 1500 + "2"
    settle(core, launch("kernel", first, 1), launch("kernel", second, 1))
    assert [asked.name for asked in pricer.asked] == ["n" * 1023] * 2


def test_one_shot_prices_do_not_push_out_lasting_ones(core: Any, service: Any, launch: Any) -> None:
    service()
    lasting = [launch("gemm", "bf16", 1, 1 + i) for i in range(1000)]
    settle(core, *lasting)
    stream = core.lib.hl_timeline_stream_create(0, False)
    each = launch("step", "model", 1)
    for number in range(30_000):
        annotate(core, f"v1 seqs=1:{number}", 8)
        core.lib.hl_timeline_launch(stream, each)
    core.lib.hl_timeline_stream_wait(stream)
    assert all(find(core, each) == 1 for each in lasting)
    assert pricing.statistics().requests == 31_000


def test_full_table_evicts_and_stays_right(core: Any, launch: Any) -> None:
    """More lasting prices than there is room for: some are asked for again, none is wrong."""
    ffi, lib = core.ffi, core.lib
    stream, name, count = lib.hl_timeline_stream_create(0, False), launch("gemm", "bf16", 0), 0
    request, price = ffi.new("hl_price_request *"), ffi.new("hl_price *")
    while pricing.statistics().lasting_evictions < 100:
        for _ in range(1000):
            count += 1
            name.arg[0] = count
            lib.hl_timeline_launch(stream, name)
        while lib.hl_price_take(request, 0):
            price.duration_ns = price.coverage_ns[0] = request.arg[0] * 7
            lib.hl_price_answer(request.index, price)
        assert count < 400_000
    assert count > 50_000
    found = 0
    for number in range(1, count + 1, 17):
        name.arg[0] = number
        at = find(core, name)
        assert at in (None, number * 7)
        found += at is not None
    assert found > count // 17 * 0.98


@pytest.mark.parametrize("failure", ["raises", "malformed", "negative"])
def test_a_failing_predictor_is_loud_and_does_not_hang(
    core: Any, service: Any, launch: Any, failure: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def price(each: pricing.Launch) -> pricing.Price:
        if each.name == "good":
            return pricing.Price(5, (5, 0, 0, 0, 0))
        if failure == "raises":
            raise KeyError("no such layer")
        return pricing.Price(10, (4, 0, 0, 0, 0)) if failure == "malformed" else pricing.Price(-1, (-1, 0, 0, 0, 0))

    pricer = service(price)
    settle(core, launch("kernel", "bad", 1), launch("kernel", "bad", 2), launch("kernel", "good", 1))
    assert find(core, launch("kernel", "bad", 1)) == 0
    launches, unknown = core.ffi.new("uint64_t *"), core.ffi.new("uint64_t *")
    core.lib.hl_timeline_device_launches(0, launches, unknown)
    assert (launches[0], unknown[0]) == (3, 2)
    report = pricer.stop()
    assert report.failed == {"kernel bad": 2}
    assert report.unknown == {"kernel bad": 2}
    assert report.answered == 3
    err = capfd.readouterr().err
    assert err.count("hyperlapse: the predictor failed on") == 1  # each place once
    assert "Traceback" in err
    assert ("no such layer" in err) == (failure == "raises")


def test_batch_predictors_are_used(core: Any, launch: Any) -> None:
    class Batch:
        sizes: list[int] = []  # noqa: RUF012 - one object

        def price_launch(self, each: pricing.Launch) -> pricing.Price:
            return self.price_launches([each])[0]

        def price_launches(self, launches: list[pricing.Launch]) -> list[pricing.Price]:
            self.sizes.append(len(launches))
            return [pricing.Price(each.args[0], (0, 0, each.args[0], 0, 0)) for each in launches]

    stream = core.lib.hl_timeline_stream_create(0, False)
    for number in range(150):
        core.lib.hl_timeline_launch(stream, launch("kernel", "k", 1000 + number))
    service = pricing._Service(_core.core(), Batch())
    while pricing.statistics().requests != pricing.statistics().answers:
        service.answer_some(0)
    assert Batch.sizes == [64, 64, 22]
    assert find(core, launch("kernel", "k", 1007)) == 1007


def test_a_second_service_finishes_what_the_first_began(core: Any, launch: Any, service: Any) -> None:
    stream = core.lib.hl_timeline_stream_create(0, False)
    core.lib.hl_timeline_launch(stream, launch("kernel", "a", 1000))
    core.lib.hl_timeline_launch(stream, launch("kernel", "b", 2000))
    request = core.ffi.new("hl_price_request *")
    assert core.lib.hl_price_take(request, 1000)  # and dies
    assert core.lib.hl_price_take(request, 1000)
    assert not core.lib.hl_price_take(request, 1)
    core.lib.hl_price_serve(os.getpid())
    pricer = service()
    core.lib.hl_timeline_stream_wait(stream)
    assert sorted(asked.name for asked in pricer.asked) == ["a", "b"]
    assert pricing.statistics().service_pid == os.getpid()


def test_serve_ends_when_told(run_dir: Path) -> None:
    class Event:
        looks = 0

        def is_set(self) -> bool:
            self.looks += 1
            return self.looks > 2

    class Nothing:
        def price_launch(self, launch: pricing.Launch) -> pricing.Price:
            raise AssertionError

    assert pricing.serve(run_dir, Nothing(), Event()) == pricing.ServiceReport(0, {}, {})
    assert pricing.statistics().service_pid == 0


def test_service_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(pricing.PricingError, match="has it ended"):
        pricing.attach(tmp_path / "nowhere")


def test_misses_hold_the_clock(core: Any, run_dir: Path, program: Callable[[str], Any]) -> None:
    """One hold for each request on its way, given back with the answer."""
    assert core.lib.hl_page_create(os.fsencode(run_dir), os.getpid()) == 0
    page = core.lib.hl_page_map(os.fsencode(run_dir))
    statistics = core.ffi.new("hl_statistics *")

    def holds() -> int:
        core.lib.hl_control_statistics(page, statistics)
        return int(statistics.holds)

    child = program("""
        stream = lib.hl_timeline_stream_create(0, False)
        for name in ["a", "a", "b", "a"]:
            lib.hl_timeline_launch(stream, launch("kernel", name, 1000))
        lib.hl_timeline_launch(stream, launch("copy", "h2d", 1000))
        say("launched")
        lib.hl_timeline_stream_wait(stream)
        say("done")
        sys.stdin.read()
    """)
    assert child.stdout.readline() == "launched\n", child.stderr.read()
    service = program("""
        request, price = ffi.new("hl_price_request *"), ffi.new("hl_price *")
        for line in sys.stdin:
            if not lib.hl_price_take(request, 1000):
                break
            say(request.pid)
            sys.stdin.readline()
            lib.hl_price_answer(request.index, price)
            say("answered")
    """)
    assert holds() == 2
    for expected in (1, 0):
        print("take", file=service.stdin, flush=True)
        assert int(service.stdout.readline()) == child.pid
        assert holds() == expected + 1
        print("answer", file=service.stdin, flush=True)
        assert service.stdout.readline() == "answered\n"
        assert holds() == expected
    assert child.stdout.readline() == "done\n"
    service.communicate("")
    child.communicate("")
    core.lib.hl_control_unmap(page)
