"""From the scheduler's output to the annotation and the sampled ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.integrations.vllm.composition import Sequences, Step, TokenRange, UnsupportedRequestError
from hyperlapse.predictor.composition import BatchComposition

TOKENS = TokenRange.of_vocabulary(151_936, {151_645})


def sequences() -> Sequences:
    return Sequences(TOKENS)


def test_step_is_in_the_runners_order_fewest_tokens_first_and_stable(scheduler) -> None:
    book = sequences()
    requests = [scheduler.new("a", range(100)), scheduler.new("b", range(7)), scheduler.new("c", range(100))]
    output = scheduler.output({"a": 100, "b": 7, "c": 100}, requests)
    book.update(output)
    step = book.compose(output)
    assert step.request_ids == ["b", "a", "c"]
    assert (step.new, step.context, step.samples) == ([7, 100, 100], [0, 0, 0], [True, True, True])
    assert step.text("none", 207) == b"v1 graph=none tokens=207 rows=3 seqs=7:0,100:0x2"


def test_chunked_prefill_samples_only_after_its_last_chunk(scheduler) -> None:
    book = sequences()
    first = scheduler.output({"a": 60}, [scheduler.new("a", range(100))])
    book.update(first)
    step = book.compose(first)
    assert step.samples == [False]
    assert book.sampled(step) == [[]]
    last = scheduler.output({"a": 40}, cached={"a": 60})
    book.update(last)
    step = book.compose(last)
    assert (step.new, step.context, step.samples) == ([40], [60], [True])
    assert len(book.sampled(step)[0]) == 1


def test_prefix_cache_hit_counts_as_context(scheduler) -> None:
    book = sequences()
    output = scheduler.output({"a": 16}, [scheduler.new("a", range(1024), computed=1008)])
    book.update(output)
    step = book.compose(output)
    assert (step.context, step.samples) == ([1008], [True])


def test_resumed_request_prefills_what_it_had_generated_and_goes_on_with_the_same_ids(scheduler) -> None:
    prompt = list(range(50))

    def ids(book: Sequences, output) -> list[list[int]]:
        book.update(output)
        return book.sampled(book.compose(output))

    book = sequences()
    first = ids(book, scheduler.output({"a": 50}, [scheduler.new("a", prompt)]))
    second = ids(book, scheduler.output({"a": 1}, cached={"a": 50}))
    third = ids(book, scheduler.output({"a": 1}, cached={"a": 51}))
    book.update(scheduler.output({}, preempted=["a"]))
    assert len(book) == 0
    resumed = scheduler.new("a", prompt, prefill=52)
    chunk = scheduler.output({"a": 40}, [resumed])
    assert ids(book, chunk) == [[]]
    assert ids(book, scheduler.output({"a": 12}, cached={"a": 40})) == third
    assert len({*first[0], *second[0], *third[0]}) == 3


def test_equal_prompts_at_the_same_time_get_different_ids_and_later_the_same_again(scheduler) -> None:
    book = sequences()

    def first_ids(*names: str) -> list[list[int]]:
        output = scheduler.output(dict.fromkeys(names, 3), [scheduler.new(name, [1, 2, 3]) for name in names])
        book.update(output)
        return book.sampled(book.compose(output))

    choices = first_ids("0_a", "1_a", "2_a")
    assert len({ids[0] for ids in choices}) == 3
    book.update(scheduler.output({}, preempted=["1_a"]))
    book.update(scheduler.output({}, finished=["0_a"]))
    assert first_ids("1_a") == [choices[1]]
    assert first_ids("b") == [choices[0]]
    book.update(scheduler.output({}, preempted=["b"]))
    book.update(scheduler.output({}, finished=["1_a", "2_a", "b"]))
    assert len(book) == 0
    assert not book._twins
    assert not book._preempted


def test_finished_requests_are_forgotten(scheduler) -> None:
    book = sequences()
    output = scheduler.output({"a": 5}, [scheduler.new("a", range(5))])
    book.update(output)
    book.update(scheduler.output({}, finished=["a"]))
    assert len(book) == 0


def test_ids_come_from_the_prompt_and_not_from_the_request_id(scheduler) -> None:
    def first_id(request_id: str, prompt: list[int]) -> int:
        book = sequences()
        output = scheduler.output({request_id: len(prompt)}, [scheduler.new(request_id, prompt)])
        book.update(output)
        return book.sampled(book.compose(output))[0][0]

    assert first_id("bench-1-0", [1, 2, 3]) == first_id("bench-2-7", [1, 2, 3])
    assert first_id("a", [1, 2, 3]) != first_id("a", [1, 2, 4])


@given(seed=st.integers(0, 2**32 - 1), position=st.integers(0, 200_000))
def test_ids_are_inside_the_range_and_never_a_stop_id(seed: int, position: int) -> None:
    tokens = TokenRange(8, 12, frozenset({9}))
    assert tokens.token(seed, position, frozenset({10})) in {8, 11}


def test_a_request_that_stops_at_every_id_is_refused() -> None:
    with pytest.raises(ValueError, match="every id between 8 and 10"):
        TokenRange(8, 10, frozenset({9})).token(1, 1, frozenset({8}))


def test_ids_vary_along_a_sequence() -> None:
    assert len({TOKENS.token(7, position) for position in range(1000)}) > 950


def test_requests_of_the_older_model_runner_are_refused(scheduler) -> None:
    request = scheduler.new("a", range(3))
    request.prefill_token_ids = None
    with pytest.raises(UnsupportedRequestError, match="model runner V2"):
        sequences().update(scheduler.output({"a": 3}, [request]))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=40), st.integers(0, 64))
def test_the_predictor_reads_what_we_write(pairs: list[tuple[int, int]], padding: int) -> None:
    pairs = sorted(pairs, key=lambda pair: pair[0])
    new, context = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    step = Step([str(i) for i in range(len(pairs))], new, context, [True] * len(pairs))
    batch = BatchComposition.parse(step.text("piecewise", step.tokens + padding).decode())
    assert (batch.graph, batch.tokens, batch.rows) == ("piecewise", sum(new) + padding, len(pairs))
    assert [(g.new, g.context) for g in batch.groups for _ in range(g.count)] == pairs


@pytest.mark.parametrize(("new", "uniform"), [([1, 1, 1], 1), ([1, 2], None), ([4], 4)])
def test_uniform_tokens(new: list[int], uniform: int | None) -> None:
    assert Step(["x"] * len(new), new, [0] * len(new), [True] * len(new)).uniform_tokens() == uniform
