"""The real vLLM server with our workers: what comes out, and what the engine says about itself.

The clock stays real and a step takes 1 ms, so that the tests speak plain HTTP. Times are tested elsewhere (tests/cli,
benchmarks); here it is values: exact lengths, chunked prefill, prefix cache, preemption and resumption, refusals, and
that both details give the engine the same KV cache.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.pricing_process import PricingProcess
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.serving import HOST, free_port, loopback_environment, start_server
from hyperlapse.integrations.vllm import serve_args
from hyperlapse.shim.launcher import Mode, Run
from hyperlapse.shim.models import resolve_model

pytestmark = pytest.mark.engine

RECORDED_BLOCKS = 18_038  # vLLM 0.23.0 on a real H100 with Qwen3-14B at its defaults, recorded run


@dataclass
class Serving:
    run: Run
    process: Any
    port: int
    log: Path

    def post(self, route: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", route, json.dumps({"model": "m", **body}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def complete(self, prompt: Sequence[int], tokens: int, **more: Any) -> list[list[int]]:
        """The ids of each choice, asked for by the number of tokens, ends ignored."""
        options = {"max_tokens": tokens, "ignore_eos": True, "return_token_ids": True, **more}
        status, answer = self.post("/v1/completions", {"prompt": list(prompt), **options})
        assert status == 200, answer
        return [choice["token_ids"] for choice in answer["choices"]]

    def records(self) -> list[dict[str, Any]]:
        """What the engine's processes wrote into the run directory."""
        files = sorted(self.run.directory.glob("engine-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]

    def record(self, kind: str) -> dict[str, Any]:
        return next(record for record in self.records() if record["kind"] == kind)


@contextlib.contextmanager
def serving(engine: EngineEnvironment, folder: Path, detail: str, *flags: str) -> Iterator[Serving]:
    model = resolve_model("qwen3-14b")
    with Run("h100-sxm-80gb") as run:
        PricingProcess.start(run, "1ms,1us", folder / "pricing.log", models=[model.config_path])
        run.set_mode(Mode.REAL)
        port, log = free_port(), folder / "server.log"
        serve = serve_args(
            model.directory, detail, executable=engine.command, served_model_name="m", port=port, extra=flags
        )
        environment = {**serve.environment, **loopback_environment()}
        server = start_server(run, serve.argv, environment, port=port, log=log, progress=Silent())
        yield Serving(run, server.process, port, log)


@pytest.fixture(scope="module")
def small(engine: EngineEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """1,920 tokens of KV cache and 256 tokens a step: everything that can be tight is."""
    flags = ("--num-gpu-blocks-override", "121", "--max-model-len", "1024", "--max-num-batched-tokens", "256")
    with serving(engine, tmp_path_factory.mktemp("small"), "step", *flags) as server:
        yield server


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 7919 + i * 31) % 100_000 + 1000 for i in range(length)]


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


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/v1/completions", {"logprobs": 0}),
        ("/v1/completions", {"logprobs": 1}),
        ("/v1/completions", {"prompt_logprobs": 1}),
        ("/v1/completions", {"structured_outputs": {"choice": ["a", "b"]}}),
        ("/v1/chat/completions", {"logprobs": True}),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
    ],
)
def test_what_needs_logits_is_refused_and_the_server_lives(small: Serving, route: str, fields: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "one"}]
    asked = {"messages": messages} if "chat" in route else {"prompt": "one"}
    status, answer = small.post(route, {**asked, "max_tokens": 2, **fields})
    assert status == 400
    assert "virtual GPUs" in answer["error"]["message"]
    assert len(small.complete(prompt(9, 10), 2)[0]) == 2


def test_what_the_engine_says_about_itself(small: Serving) -> None:
    small.complete(prompt(6, 20), 5)
    engine = small.record("engine")
    assert (engine["kv_blocks"], engine["block_size"], engine["max_num_batched_tokens"]) == (121, 16, 256)
    worker = small.record("worker")
    assert worker["detail"] == "step"
    assert worker["profile"] in {"cached", "profiled"}
    imports = [record for record in small.records() if record["kind"] == "imports"]
    assert len(imports) >= 2  # API server and engine core
    assert all(record["cpu_ns"] > 1_000_000_000 for record in imports)
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


def test_both_details_find_the_kv_cache_of_the_real_card(
    engine: EngineEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blocks, ids = {}, {}
    for detail in ("kernel", "step"):
        with serving(engine, tmp_path_factory.mktemp(detail), detail) as server:
            blocks[detail] = server.record("engine")["kv_blocks"]
            ids[detail] = server.complete(prompt(8, 600), 12)
    assert blocks["kernel"] == blocks["step"]
    assert abs(blocks["step"] - RECORDED_BLOCKS) <= 0.01 * RECORDED_BLOCKS
    assert ids["kernel"] == ids["step"]
