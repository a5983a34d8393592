"""Predicted against recorded durations of an engine's steps, by kind of step.

    python benchmarks/gpu/compare_steps.py RECORDING ... --model qwen3-14b --gpu h100-sxm-80gb --engine-version 0.23.0

RECORDING is a folder that engine_trace wrote on a GPU host (trace.*.jsonl) with the server's log (server.log), from which
the sizes of captured graphs are read. A step's recorded duration is device time between two CUDA events, before its first
kernel and after its last one, so it holds whatever the host was late with. A step whose launches took the host longer than
HOST_LIMITED of that time says nothing about kernels: it is counted and left out of the errors.

Nothing here is fitted, and nothing is judged: the script prints and ends with 0 unless a recording cannot be read.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from hyperlapse.cli.priced_device import engine_predictor
from hyperlapse.predictor.composition import BatchComposition, SequenceGroup
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.shim.models import resolve_model

HOST_LIMITED = 0.8
_SIZES = re.compile(r"'cudagraph_capture_sizes': \[([0-9, ]+)\]")

Batch = tuple[tuple[int, int, int], ...]
"""(new tokens, tokens before them, sequences) of each group."""


class RecordingError(Exception):
    """A recording that cannot be used; the text names the file and says what is missing."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step. device_ns: from before its first kernel to after its last; host_ns: what launching its forward took."""

    batch: Batch
    device_ns: int
    host_ns: int

    @property
    def host_limited(self) -> bool:
        return self.host_ns > HOST_LIMITED * self.device_ns


def read_steps(trace: Path) -> Iterator[RecordedStep]:
    """The steps of one process's trace that ran to their end. Raises RecordingError."""
    launched: dict[int, tuple[Batch, int]] = {}
    with trace.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                kind, *values = json.loads(line)
                if kind == "exec":
                    step, begin_ns, end_ns, _cpu_ns, batch, *_ = values
                    launched[step] = (tuple((new, past, count) for new, past, count in batch), end_ns - begin_ns)
                elif kind == "gpu":
                    step, before_ms, _forward_ms, after_ms = values
                    if step in launched:
                        found, host_ns = launched.pop(step)
                        yield RecordedStep(found, round((after_ms - before_ms) * 1e6), host_ns)
            except (ValueError, TypeError) as error:
                raise RecordingError(f"{trace}, line {number}: not a record of engine_trace ({error})") from error


def capture_sizes(log: Path) -> tuple[int, ...]:
    """Sizes of captured graphs, as the engine prints its configuration. Raises RecordingError."""
    found = _SIZES.search(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else None
    if found is None:
        raise RecordingError(f"{log}: no cudagraph_capture_sizes; keep the server's output beside its trace")
    return tuple(sorted(int(size) for size in found[1].split(",")))


def composition(batch: Batch, sizes: Sequence[int]) -> BatchComposition:
    """The batch as the engine runs it at its defaults: full graphs for decodes, pieces where prefills fit, else none."""
    groups = [SequenceGroup(new, past, count) for new, past, count in batch]
    tokens = sum(new * count for new, _, count in batch)
    padded = next((size for size in sizes if size >= tokens), None)
    if padded is None:
        return BatchComposition.of(groups, graph="none")
    decode = all(new == 1 and past > 0 for new, past, _ in batch)
    return BatchComposition.of(groups, graph="full" if decode else "piecewise", tokens=padded)


def kind_of(batch: Batch) -> tuple[int, str]:
    """What the table calls such a step, after the number that it is sorted by."""
    decodes = sum(count for new, past, count in batch if new == 1 and past > 0)
    prefills = [(new, past, count) for new, past, count in batch if not (new == 1 and past > 0)]
    tokens = sum(new * count for new, _, count in prefills)
    if not prefills:
        for order, limit in enumerate((1, 8, 32, 128)):
            if decodes <= limit:
                return order, f"decode, {'1 sequence' if limit == 1 else f'up to {limit} sequences'}"
        return 4, "decode, more sequences"
    size = "up to 512" if tokens <= 512 else "up to 4,096" if tokens <= 4096 else "more than 4,096"
    order = {"up to 512": 0, "up to 4,096": 1, "more than 4,096": 2}[size]
    if any(past for _, past, _ in prefills):
        return 30 + order, f"prefill over past KV, {size} tokens"
    if decodes:
        return 20 + order, f"prefill and decodes, {size} tokens"
    return 10 + order, f"prefill, {size} tokens"


def predicted_ns(steps: StepPredictor, sizes: Sequence[int]) -> functools._lru_cache_wrapper[int]:
    @functools.cache
    def price(batch: Batch) -> int:
        return steps.predict(composition(batch, sizes)).duration_ns

    return price


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING")
    parser.add_argument("--model", default="qwen3-14b")
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    parser.add_argument("--engine-version", default="0.23.0", help="vLLM's, whose steps and tables are used")
    options = parser.parse_args()
    predictor = engine_predictor(options.gpu, engine=f"vllm-{options.engine_version}")
    model = ModelConfig.from_json(resolve_model(options.model).config_path, dtype="auto", kv="auto")
    steps = predictor.step_predictor(model)
    errors: dict[tuple[int, str], list[float]] = defaultdict(list)
    device_ns: dict[tuple[int, str], int] = defaultdict(int)
    counts: dict[tuple[int, str], int] = defaultdict(int)
    try:
        for recording in options.recordings:
            traces = sorted(recording.glob("trace.*.jsonl"))
            if not traces:
                raise RecordingError(f"{recording}: no trace.*.jsonl; see benchmarks/gpu/README.md for how to record")
            price = predicted_ns(steps, capture_sizes(recording / "server.log"))
            for step in (step for trace in traces for step in read_steps(trace)):
                kind = kind_of(step.batch)
                counts[kind] += 1
                device_ns[kind] += step.device_ns
                if not step.host_limited:
                    errors[kind].append(price(step.batch) / step.device_ns - 1)
    except RecordingError as error:
        sys.exit(str(error))
    whole_ns = sum(device_ns.values())
    print("| step | recorded | of these limited by the host | error: median | 10 % | 90 % | share of device time |")
    print("|---|---|---|---|---|---|---|")
    for kind in sorted(counts):
        found = errors[kind]
        cells = ["-", "-", "-"]
        if found:
            low, *_, high = quantiles(found, n=10, method="inclusive") if len(found) > 1 else (found[0], found[0])
            cells = [f"{value:+.1%}" for value in (median(found), low, high)]
        print(f"| {kind[1]} | {counts[kind]:,} | {counts[kind] - len(found):,} | "
              f"{' | '.join(cells)} | {device_ns[kind] / whole_ns:.1%} |")  # fmt: skip


if __name__ == "__main__":
    main()
