"""A finished run for tests of reports: its records, its step log and its engine's statistics, as a run leaves them.

The batches are those of a small continuous-batching loop, and a step takes what the real predictor says of its batch, so
that a report made of it must find no step that differs from its price.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from hyperlapse.cli.benchmark import BenchOptions, BenchRun
from hyperlapse.cli.engine_log import EngineStatistics
from hyperlapse.cli.metrics import RequestRecord, measure
from hyperlapse.cli.priced_device import engine_predictor
from hyperlapse.cli.result import BenchResult, coverage_shares
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.shim.models import resolve_model
from hyperlapse.shim.step_log import StepLog

ZERO_NS = 100_000 * 10**9
GPU = "h100-sxm-80gb"


def make_run(
    folder: Path,
    *,
    requests: int = 40,
    rate_per_s: float = 6.0,
    output_tokens: int = 24,
    seed: int = 0,
    seats: int = 16,
) -> BenchRun:
    """Writes what a run with recorded steps leaves in `folder` (made here) and returns the run."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    config = resolve_model("qwen3-14b").config_path
    key = f"{config}|tp=1|dtype=bfloat16|kv=auto|block=16|engine=vllm-0.23.0"
    predictor = engine_predictor(GPU).step_predictor_of(key)
    log = StepLog(folder / "steps-1-0.bin", {"device": 0, "detail": "step", "model_key": key})
    arrival_ns, arrivals = 0, []
    for _ in range(requests):
        arrivals.append((arrival_ns, rng.randrange(200, 1500)))
        arrival_ns += round(rng.expovariate(rate_per_s) * 1e9)
    waiting = list(range(requests))
    running: list[int] = []
    tokens: list[list[int]] = [[] for _ in range(requests)]
    states = []
    coverage_ns = [0] * 5
    now_ns = 0
    while waiting or running:
        if not running:
            now_ns = max(now_ns, arrivals[waiting[0]][0])
        arrived = [index for index in waiting if arrivals[index][0] <= now_ns]
        new = arrived[: seats - len(running)]
        queued = len(arrived) - len(new)  # who comes during the step is not in the scheduler's queue yet
        waiting = [index for index in waiting if index not in new]
        groups = [f"1:{arrivals[index][1] + len(tokens[index])}" for index in running]
        groups += [f"{arrivals[index][1]}:0" for index in new]
        size = len(running) + sum(arrivals[index][1] for index in new)
        graph = "none" if new else "full"
        batch = f"v1 graph={graph} tokens={size} rows={len(groups)} seqs={','.join(groups)}"
        price = predictor.predict(BatchComposition.parse(batch))
        coverage_ns = [a + b for a, b in zip(coverage_ns, price.coverage_ns, strict=True)]
        end_ns = now_ns + price.duration_ns
        log.add(ZERO_NS + now_ns, ZERO_NS + end_ns, batch.encode())
        running += new
        now_ns = end_ns
        for index in running:
            tokens[index].append(now_ns)
        done = [index for index in running if len(tokens[index]) == output_tokens]
        running = [index for index in running if index not in done]
        state: dict[str, Any] = {
            "kind": "step", "t_ns": ZERO_NS + now_ns, "engine_index": 0, "running": len(running), "waiting": queued,
            "kv_usage": len(running) / 100, "preemptions": 0, "finished": len(done),
        }  # fmt: skip
        if done:
            state |= {"queued_ns": 1000 * len(done), "prefill_ns": 10**7 * len(done), "decode_ns": 10**8 * len(done)}
        states.append(state)
    lines = [json.dumps(state) for state in states]
    # as an engine that is ended leaves it: the last line cut off
    (folder / "engine-1.jsonl").write_text("\n".join(lines) + '\n{"kind":"st', encoding="utf-8")
    records = [
        RequestRecord(index, sent, sent, tuple(tokens[index]), prompt, output_tokens)
        for index, (sent, prompt) in enumerate(arrivals)
    ]
    coverage = dict(
        zip(("measured", "interpolated", "extrapolated", "analytical", "unknown"), coverage_ns, strict=True)
    )
    result = BenchResult(
        engine="vllm", engine_version="0.23.0", model="qwen3-14b", gpu=GPU, gpus=1, detail="step", clock="frozen",
        compile_cache="warm", seed=seed,
        metrics=measure(records), kv_blocks=12_345, kv_block_size=16, preemptions=0, real_s=2.0, startup_s=9.0,
        coverage=coverage_shares(coverage), requests_file=str(folder / "requests.jsonl"),
        provenance={
            "hyperlapse_version": "0.1.0", "python_version": "3.11.7", "engine_versions": {"torch": "2.11.0"},
            "engine_flags": [], "server_command": ["vllm", "serve"], "client_command": ["vllm", "bench", "serve"],
            "model_sha256": "0" * 64, "device_profile": {"name": GPU, "sha256": "1" * 64}, "predictor": "kernel database",
            "host_time": {"api_request_delay_ns": 7_000_000},
        },
    )  # fmt: skip
    statistics = EngineStatistics(12_345, 16, 0, len(states), 0, 8192, seats, "cached")
    options = BenchOptions(
        rate=rate_per_s,
        requests=requests,
        output_len=output_tokens,
        seed=seed,
        record_steps=True,
        host_time_ns=7_000_000,
    )
    return BenchRun(
        result=result, records=records, folder=folder, phases_s={"server": 9.0}, clock={"jumps": len(states)},
        engine=statistics, events=[], options=options, start_ns=ZERO_NS, device_time_ns=coverage,
    )  # fmt: skip
