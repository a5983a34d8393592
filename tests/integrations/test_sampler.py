"""The virtual sampler: ids and values of a step from what its requests ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hyperlapse.integrations.vllm.composition import Sequences, Step
from hyperlapse.integrations.vllm.sampler import Sampled, VirtualSampler
from hyperlapse.integrations.vllm.vocabulary import Vocabulary

SIZE = 1000
SAMPLER = VirtualSampler(Vocabulary.without_tokenizer(SIZE, {999}))


class Engine:
    """One request after the other through prefill and decode steps."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.book = Sequences()

    def step(self, output: Any, grammar: Any = None) -> tuple[Step, Sampled]:
        self.book.update(output)
        step = self.book.compose(output)
        return step, SAMPLER.sample(step, self.book, grammar)

    def generate(self, count: int, prompt: tuple[int, ...] = (1, 2, 3), **params: Any) -> list[int]:
        new = self.scheduler.new("a", prompt, **params)
        _, sampled = self.step(self.scheduler.output({"a": len(prompt)}, [new]))
        ids = [sampled.ids[0][0]]
        for position in range(len(prompt), len(prompt) + count - 1):
            _, sampled = self.step(self.scheduler.output({"a": 1}, cached={"a": position}))
            ids.append(sampled.ids[0][0])
        self.book.update(self.scheduler.output({}, finished=["a"]))
        assert not self.book.scored
        return ids


@pytest.fixture
def engine(scheduler: Any) -> Engine:
    return Engine(scheduler)


def test_ids_vary_and_repeat_for_the_same_prompt(engine: Engine) -> None:
    ids = engine.generate(40)
    assert len(set(ids)) > 30
    assert engine.generate(40) == ids
    assert engine.generate(40, (1, 2, 4)) != ids
    assert all(SIZE // 8 <= token < SIZE // 2 for token in ids)


def test_stop_ids_are_not_sampled_unless_nothing_else_is_allowed(engine: Engine) -> None:
    stops = set(range(0, SIZE, 2))
    assert not stops & set(engine.generate(50, all_stop_token_ids=stops))
    assert engine.generate(3, allowed_token_ids=[999]) == [999] * 3
    assert engine.generate(3, all_stop_token_ids=set(range(SIZE)))  # every id ends it: it ends, and nothing raises


def test_allowed_ids(engine: Engine) -> None:
    assert set(engine.generate(40, allowed_token_ids=[5, 6])) == {5, 6}
    assert set(engine.generate(40, allowed_token_ids=[5, 6], all_stop_token_ids={5})) == {6}


def test_decisive_biases_only(engine: Engine) -> None:
    free = engine.generate(20)
    assert engine.generate(20, logit_bias=dict.fromkeys(free, -5)) == free
    assert not set(engine.generate(20, logit_bias=dict.fromkeys(free, -100.0))) & set(free)
    assert engine.generate(3, logit_bias={7: 100.0, 8: 1.0}) == [7, 7, 7]


def test_bad_words(engine: Engine) -> None:
    free = engine.generate(20)
    assert free[4] not in engine.generate(20, bad_words_token_ids=[[free[4]]])
    changed = engine.generate(20, bad_words_token_ids=[[free[3], free[4]], [9, 9, 9, 9]])
    assert changed[:4] == free[:4]
    assert changed[4] != free[4]


def test_bad_words_hold_after_a_preemption(engine: Engine, scheduler: Any) -> None:
    free = engine.generate(6)
    params = {"bad_words_token_ids": [[free[3], free[4]]]}
    expected = engine.generate(6, **params)
    engine.step(scheduler.output({"a": 3}, [scheduler.new("a", (1, 2, 3), **params)]))
    for position in range(3, 6):
        engine.step(scheduler.output({"a": 1}, cached={"a": position}))
    engine.book.update(scheduler.output({}, preempted=["a"]))
    resumed = scheduler.new("a", (1, 2, 3), prefill=7, **params)
    _, sampled = engine.step(scheduler.output({"a": 7}, [resumed]))
    assert sampled.ids == [[expected[4]]]


def test_predetermined_ids(engine: Engine) -> None:
    free = engine.generate(4)
    assert engine.generate(4, trace_decode_token_ids=[11, 12]) == [11, 12, *free[2:]]


def test_grammar_masks_apply_to_their_own_request(engine: Engine, scheduler: Any) -> None:
    mask = np.zeros((1, (SIZE + 31) // 32), dtype=np.int32)
    mask[0, 0] = 1 << 5
    grammar = SimpleNamespace(structured_output_request_ids=["b"], grammar_bitmask=mask)
    new = [scheduler.new(name, [1, 2, ord(name)]) for name in "ab"]
    _, sampled = engine.step(scheduler.output({"a": 3, "b": 3}, new), grammar)
    assert sampled.ids[1] == [5]
    assert sampled.ids[0][0] >= SIZE // 8
    full = SimpleNamespace(structured_output_request_ids=["b"], grammar_bitmask=np.full_like(mask, -1))
    _, sampled = engine.step(scheduler.output({"b": 1}, cached={"b": 3}), full)
    assert sampled.ids[0][0] != 999


def test_log_probabilities(engine: Engine, scheduler: Any) -> None:
    new = [scheduler.new("a", [1, 2, 3], num_logprobs=2), scheduler.new("b", [1, 2, 4]), scheduler.new("c", range(9))]
    step, sampled = engine.step(scheduler.output({"a": 3, "b": 3, "c": 4}, new))
    assert step.request_ids == ["a", "b", "c"]
    assert sampled.ids[2] == []  # an unfinished prefill
    assert sampled.scores is not None
    assert sampled.scores.ids.shape == (3, 3)
    assert sampled.scores.ids[0, 0] == sampled.scores.ids[0, 1] == sampled.ids[0][0]
    assert not sampled.prompts
    engine.book.update(scheduler.output({}, finished=["a"]))
    _, sampled = engine.step(scheduler.output({"b": 1}, cached={"b": 3}))
    assert sampled.scores is None


def test_log_probabilities_of_named_ids_and_of_all(engine: Engine, scheduler: Any) -> None:
    asked = {"num_logprobs": 3, "logprob_token_ids": [4, 5, 6]}
    _, sampled = engine.step(scheduler.output({"a": 3}, [scheduler.new("a", [1, 2, 3], **asked)]))
    assert sampled.scores is not None
    assert sampled.scores.ids[0].tolist() == [sampled.ids[0][0], 4, 5, 6]
    _, sampled = engine.step(scheduler.output({"b": 3}, [scheduler.new("b", [1, 2, 3], num_logprobs=-1)]))
    assert sampled.scores is not None
    assert sorted(sampled.scores.ids[0, 1:].tolist()) == list(range(SIZE))


def test_log_probabilities_of_a_prompt_come_once_with_its_last_chunk(engine: Engine, scheduler: Any) -> None:
    prompt = list(range(100, 110))
    first = scheduler.output({"a": 6}, [scheduler.new("a", prompt, prompt_logprobs=2)])
    step, sampled = engine.step(first)
    assert not sampled.prompts
    assert engine.book.prompt_logit_rows(step) == 6
    step, sampled = engine.step(scheduler.output({"a": 4}, cached={"a": 6}))
    rows = sampled.prompts["a"]
    assert rows.ids.shape == (9, 3)
    assert rows.ids[:, 0].tolist() == prompt[1:]
    assert step.text("none", 4, engine.book.prompt_logit_rows(step)) == b"v1 graph=none tokens=4 rows=4 seqs=4:6"
    step, sampled = engine.step(scheduler.output({"a": 1}, cached={"a": 10}))
    assert not sampled.prompts
    assert engine.book.prompt_logit_rows(step) == 0
    engine.book.update(scheduler.output({}, preempted=["a"]))
    resumed = scheduler.new("a", prompt, prefill=12, prompt_logprobs=2)
    _, sampled = engine.step(scheduler.output({"a": 12}, [resumed]))
    assert not sampled.prompts
    _, sampled = engine.step(scheduler.output({"b": 1}, [scheduler.new("b", [5], prompt_logprobs=2)]))
    assert not sampled.prompts  # a prompt of one token has nothing before it


def test_rows_in_another_order_keep_what_is_theirs(engine: Engine, scheduler: Any) -> None:
    requests = [scheduler.new(name, [number, 7], num_logprobs=2) for number, name in enumerate("abc")]
    _, sampled = engine.step(scheduler.output({"a": 2, "b": 2, "c": 2}, requests))
    turned = sampled.in_order(["c", "a", "b"])
    assert turned.request_ids == ["c", "a", "b"]
    assert turned.ids == [sampled.ids[2], sampled.ids[0], sampled.ids[1]]
    assert turned.scores is not None
    assert sampled.scores is not None
    assert [row[0] for row in turned.scores.ids] == [row[0] for row in turned.ids]
    assert not np.array_equal(turned.scores.ids, sampled.scores.ids)
    with pytest.raises(KeyError):
        sampled.in_order(["c", "a", "x"])
