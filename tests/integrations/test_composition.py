"""From the scheduler's output to the annotation and the sampled ids."""

from __future__ import annotations

import pytest

from hyperlapse.integrations.vllm.composition import Sequences, Step
from hyperlapse.integrations.vllm.sampler import VirtualSampler
from hyperlapse.integrations.vllm.vocabulary import Vocabulary

SAMPLER = VirtualSampler(Vocabulary.without_tokenizer(151_936, {151_645}))


def sequences() -> Sequences:
    return Sequences()


def sampled(book: Sequences, step: Step) -> list[list[int]]:
    return SAMPLER.sample(step, book).ids


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
    assert sampled(book, step) == [[]]
    last = scheduler.output({"a": 40}, cached={"a": 60})
    book.update(last)
    step = book.compose(last)
    assert (step.new, step.context, step.samples) == ([40], [60], [True])
    assert len(sampled(book, step)[0]) == 1


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
        return sampled(book, book.compose(output))

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


def test_model_runner_v1_gets_a_resumed_request_among_those_that_it_knows(scheduler) -> None:
    prompt = list(range(50))

    def ids(book: Sequences, output) -> list[list[int]]:
        book.update(output)
        return sampled(book, book.compose(output))

    book = sequences()
    first = ids(book, scheduler.output({"a": 50}, [scheduler.new_v1("a", prompt)]))
    second = ids(book, scheduler.output({"a": 1}, cached={"a": 50}))
    third = ids(book, scheduler.output({"a": 1}, cached={"a": 51}))
    assert [len(row) for row in (*first, *second, *third)] == [1, 1, 1]
    book.update(scheduler.output({}, preempted=["a"]))
    assert len(book) == 0
    assert ids(book, scheduler.resumed_v1("a", tokens=52, output=2, scheduled=40)) == [[]]
    assert ids(book, scheduler.output({"a": 12}, cached={"a": 40})) == third


def test_model_runner_v1_resumes_a_request_that_never_ended_its_prompt(scheduler) -> None:
    book = sequences()
    book.update(scheduler.output({"a": 20}, [scheduler.new_v1("a", range(50))]))
    book.update(scheduler.output({}, preempted=["a"]))
    output = scheduler.resumed_v1("a", tokens=50, output=0, scheduled=50)
    book.update(output)
    assert book.compose(output).samples == [True]


def test_equal_prompts_at_the_same_time_get_different_ids_and_later_the_same_again(scheduler) -> None:
    book = sequences()

    def first_ids(*names: str) -> list[list[int]]:
        output = scheduler.output(dict.fromkeys(names, 3), [scheduler.new(name, [1, 2, 3]) for name in names])
        book.update(output)
        return sampled(book, book.compose(output))

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
        return sampled(book, book.compose(output))[0][0]

    assert first_id("bench-1-0", [1, 2, 3]) == first_id("bench-2-7", [1, 2, 3])
    assert first_id("a", [1, 2, 3]) != first_id("a", [1, 2, 4])


@pytest.mark.parametrize(
    ("new", "context", "any_batch", "decodes"),
    [
        ([1, 1, 1], [9, 3, 5], 1, 1),
        ([1, 1], [9, 0], 1, None),  # a prompt of one token
        ([1, 2], [9, 3], None, None),
        ([4], [0], 4, None),
        ([4], [8], 4, None),
    ],
)
def test_uniform_tokens(new: list[int], context: list[int], any_batch: int | None, decodes: int | None) -> None:
    step = Step(["x"] * len(new), new, context, [True] * len(new))
    assert step.uniform_tokens(prefills_too=True) == any_batch
    assert step.uniform_tokens(prefills_too=False) == decodes
