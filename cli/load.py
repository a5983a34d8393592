"""The load generator of a benchmark: which command it is, and how its results become records.

Why: random workloads come from the stock `vllm bench serve`, traces from our client (`cli/client.py` says why the stock
one cannot replay them); everything after this module treats both alike. It must never start anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperlapse.cli import client_script
from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.log_follower import last_lines
from hyperlapse.cli.metrics import RequestRecord, read_requests, stock_records
from hyperlapse.cli.workload import NANOSECONDS_PER_S, TokenRange, TraceRequest, write_workload

STOCK_STARTED = "Starting main benchmark run..."
STOCK_ENDED = "Serving Benchmark Result"
STOCK_RESULT = "stock-result.json"
# --timed-trace-chunk-hash-size: tokens that one hash id of a timed trace stands for.
STOCK_CHUNK = 16
REQUESTS_FILE = "requests.jsonl"
# Far above any request's index: the warm-up's prompt is nobody else's, so no request finds it in the prefix cache.
WARMUP_INDEX = 1 << 40
WARMUP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class RandomLoad:
    """Requests of equal lengths (tokens), at a Poisson rate (requests/s), at most `concurrency` in flight."""

    requests: int
    input_len: int
    output_len: int
    rate: float | None
    concurrency: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A load generator's command; its log's lines around the measurement; how many requests of which output length."""

    command: list[str]
    started: str
    ended: str
    total: int
    wanted_tokens: Mapping[int, int]
    folder: Path
    stock: bool

    def records(self) -> list[RequestRecord]:
        """What the client recorded, in the order of sending. Raises FileNotFoundError when it wrote nothing."""
        if not self.stock:
            return read_requests(self.folder / REQUESTS_FILE)
        result = json.loads((self.folder / STOCK_RESULT).read_text(encoding="utf-8"))
        return sorted(stock_records(result), key=lambda record: (record.send_ns, record.index))

    def start_ns(self, log: Path) -> int | None:
        """The instant of the virtual clock that the records' instants count from; None: the client did not say."""
        if self.stock:
            result = json.loads((self.folder / STOCK_RESULT).read_text(encoding="utf-8"))
            return round(min(result["start_times"]) * NANOSECONDS_PER_S) if result["start_times"] else None
        prefix = f"{client_script.ENDED_LINE} {client_script.START_PREFIX}"
        for line in reversed(last_lines(log, 10)):
            if line.startswith(prefix):
                return int(line.removeprefix(prefix))
        return None


def stock_plan(
    load: RandomLoad, engine: EngineEnvironment, base_url: str, folder: Path, *, model: Path, served_name: str
) -> LoadPlan:
    """The stock `vllm bench serve` with the data set `random`."""
    command = _stock_command(engine, base_url, folder, model=model, served_name=served_name)
    command += [
        "--dataset-name", "random",
        "--random-input-len", str(load.input_len),
        "--random-output-len", str(load.output_len),
        "--num-prompts", str(load.requests),
        "--seed", str(load.seed),
    ]  # fmt: skip
    if load.rate is not None:
        command += ["--request-rate", repr(load.rate)]
    if load.concurrency is not None:
        command += ["--max-concurrency", str(load.concurrency)]
    wanted = dict.fromkeys(range(load.requests), load.output_len)
    return LoadPlan(command, STOCK_STARTED, STOCK_ENDED, load.requests, wanted, folder, stock=True)


def _stock_command(
    engine: EngineEnvironment, base_url: str, folder: Path, *, model: Path, served_name: str
) -> list[str]:
    return [
        *engine.command, "bench", "serve",
        "--backend", "openai",
        "--base-url", base_url,
        "--model", str(model),
        "--served-model-name", served_name,
        "--ignore-eos",
        "--save-result", "--save-detailed",
        "--result-dir", str(folder),
        "--result-filename", STOCK_RESULT,
        "--percentile-metrics", "ttft,tpot,itl,e2el",
        "--metric-percentiles", "50,90,99",
        "--disable-tqdm",
    ]  # fmt: skip


def stock_trace_plan(
    requests: Sequence[TraceRequest],
    engine: EngineEnvironment,
    base_url: str,
    folder: Path,
    *,
    model: Path,
    served_name: str,
    max_in_flight: int | None,
) -> LoadPlan:
    """The stock client with its data set `timed_trace`, to compare the clients; for a made-up tokenizer only.

    Its prompts are its own (and differ from process to process), arrivals and lengths are the trace's.
    """
    trace = folder / "timed-trace.jsonl"
    with trace.open("w", encoding="ascii") as file:
        for index, request in enumerate(requests):
            blocks = -(-request.prompt_tokens // STOCK_CHUNK)
            line = {
                "timestamp": request.arrival_ns / NANOSECONDS_PER_S,
                "input_length": request.prompt_tokens,
                "output_length": request.output_tokens,
                "hash_ids": [index * 10**6 + block for block in range(blocks)],
            }
            file.write(json.dumps(line) + "\n")
    command = _stock_command(engine, base_url, folder, model=model, served_name=served_name)
    command += ["--dataset-name", "timed_trace", "--dataset-path", str(trace), "--num-prompts", str(len(requests))]
    if max_in_flight is not None:
        command += ["--max-concurrency", str(max_in_flight)]
    wanted = {index: request.output_tokens for index, request in enumerate(requests)}
    return LoadPlan(command, STOCK_STARTED, STOCK_ENDED, len(requests), wanted, folder, stock=True)


def trace_plan(
    requests: Sequence[TraceRequest],
    engine: EngineEnvironment,
    base_url: str,
    folder: Path,
    *,
    served_name: str,
    tokens: TokenRange,
    seed: int,
    text: bool,
    max_in_flight: int | None,
) -> LoadPlan:
    """Our client, with the workload and one warm-up request written into `folder`."""
    workload, warmups = folder / "workload.jsonl", folder / "warmup.jsonl"
    write_workload(workload, requests, seed, tokens, text=text)
    write_workload(warmups, [TraceRequest(0, WARMUP_TOKENS, 2)], seed, tokens, text=text, first_index=WARMUP_INDEX)
    command = [
        # -P: the script's own folder must not be on sys.path, its modules have names that others have too.
        str(engine.python), "-P", str(client_script.path()),
        "--base-url", base_url,
        "--model", served_name,
        "--workload", str(workload),
        "--warmups", str(warmups),
        "--output", str(folder / REQUESTS_FILE),
    ]  # fmt: skip
    if max_in_flight is not None:
        command += ["--max-in-flight", str(max_in_flight)]
    wanted = {index: request.output_tokens for index, request in enumerate(requests)}
    return LoadPlan(
        command, client_script.STARTED_LINE, client_script.ENDED_LINE, len(requests), wanted, folder, stock=False
    )
