"""A real server in a run of its own, spoken to over plain HTTP: the clock stays real."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.pricing_process import PricingProcess
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.serving import HOST, free_port, loopback_environment, start_server
from hyperlapse.integrations import collective_kernels
from hyperlapse.integrations.vllm import serve_args
from hyperlapse.shim.launcher import Mode, Run
from hyperlapse.shim.models import resolve_model

# Eager, because the profile of another configuration would be compiled once more.
SMALL = (
    *("--num-gpu-blocks-override", "121", "--max-model-len", "1024", "--max-num-batched-tokens", "256"),
    "--enforce-eager",
)
KNOWN_STEPS = "1ms,1us"


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
def serving(
    engine: EngineEnvironment,
    folder: Path,
    detail: str,
    *flags: str,
    fixed_step: str | None = KNOWN_STEPS,
    gpu: str = "h100-sxm-80gb",
    gpus: int = 1,
    environment: Mapping[str, str] = MappingProxyType({}),
    model_name: str = "qwen3-14b",
) -> Iterator[Serving]:
    """A server with this model on virtual GPUs that share its layers. fixed_step: None to price its kernels and steps."""
    model = resolve_model(model_name)
    with Run(gpu, gpus, collective_kernels=collective_kernels()) as run:
        PricingProcess.start(
            run, fixed_step, folder / "pricing.log", models=[model.config_path], tensor_parallel_size=gpus
        )
        run.set_mode(Mode.REAL)
        port, log = free_port(), folder / "server.log"
        serve = serve_args(
            model.directory,
            detail,
            executable=engine.command,
            served_model_name="m",
            port=port,
            gpus=gpus,
            extra=flags,
        )
        every = {**serve.environment, **loopback_environment(), **environment}
        server = start_server(run, serve.argv, every, port=port, log=log, progress=Silent())
        yield Serving(run, server.process, port, log)


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 7919 + i * 31) % 100_000 + 1000 for i in range(length)]
