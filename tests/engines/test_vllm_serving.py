"""The real vLLM server with our workers: what comes out, and what the engine says about itself.

Times are tested elsewhere (tests/cli, benchmarks); here it is values: exact lengths, chunked prefill, prefix cache,
preemption and resumption. What else a request can ask for: test_vllm_features.py. That both details agree:
test_vllm_details.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment
from tests.engines.serving import SMALL, Serving, prompt, serving

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def small(engine: EngineEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """1,920 tokens of KV cache and 256 tokens a step: everything that can be tight is."""
    with serving(engine, tmp_path_factory.mktemp("small"), "step", *SMALL) as server:
        yield server


def test_lengths_are_met_and_ids_vary(small: Serving) -> None:
    (ids,) = small.complete(prompt(1, 50), 40)
    assert len(ids) == 40
    assert len(set(ids)) > 35
    assert all(0 <= token < 151_643 for token in ids)


def test_the_same_prompt_gives_the_same_ids(small: Serving) -> None:
    assert small.complete(prompt(2, 30), 20) == small.complete(prompt(2, 30), 20)
    assert small.complete(prompt(2, 30), 20) != small.complete(prompt(3, 30), 20)


def test_a_prompt_longer_than_a_step_is_cut_and_still_gives_its_ids(small: Serving) -> None:
    (ids,) = small.complete(prompt(4, 900), 10)
    assert len(ids) == 10


def test_several_choices(small: Serving) -> None:
    choices = small.complete(prompt(5, 40), 7, n=3)
    assert [len(ids) for ids in choices] == [7, 7, 7]
    assert len({tuple(ids) for ids in choices}) == 3


def test_text_prompts_and_chat(small: Serving) -> None:
    status, answer = small.post(
        "/v1/completions", {"prompt": "one two three four", "max_tokens": 5, "ignore_eos": True}
    )
    assert (status, answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (200, 4, 5)
    assert len(answer["choices"][0]["text"].split()) == 5
    messages = [{"role": "user", "content": "hello there"}]
    status, answer = small.post("/v1/chat/completions", {"messages": messages, "max_tokens": 3})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 3)


def test_preempted_requests_go_on_with_the_same_ids(small: Serving) -> None:
    prompts = [prompt(100 + i, 300) for i in range(6)]
    alone = [small.complete(each, 200) for each in prompts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda each: small.complete(each, 200), prompts))
    assert together == alone
    assert max(record["preemptions"] for record in small.records() if record["kind"] == "step") > 0


def test_what_the_engine_says_about_itself(small: Serving) -> None:
    small.complete(prompt(6, 20), 5)
    engine = small.record("engine")
    assert (engine["kv_blocks"], engine["block_size"], engine["max_num_batched_tokens"]) == (121, 16, 256)
    worker = small.record("worker")
    assert worker["detail"] == "step"
    assert worker["profile"] in {"cached", "profiled"}
    imports = [record for record in small.records() if record["kind"] == "imports"]
    # API server and engine core; a process that was forked to make a profile found everything imported
    assert sum(record["cpu_ns"] > 1_000_000_000 for record in imports) >= 2, imports
    steps = [record for record in small.records() if record["kind"] == "step"]
    assert sum(record.get("output_tokens", 0) for record in steps) > 0
    assert [record["t_ns"] for record in steps] == sorted(record["t_ns"] for record in steps)


def test_nothing_is_lost_when_the_server_is_ended(small: Serving) -> None:
    """Runs last in this module: the server is gone afterwards."""
    finished = sum(record.get("finished", 0) for record in small.records())
    small.complete(prompt(7, 20), 5)
    os.kill(small.process.pid, signal.SIGTERM)
    small.process.wait(60)
    assert sum(record.get("finished", 0) for record in small.records()) == finished + 1
