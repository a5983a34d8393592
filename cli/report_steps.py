"""The engine's steps of a run, joined from what three parts know of them.

Why: the worker's log has each step's instants and batch, the engine's statistics have the state of its scheduler, and
the predictor knows what a batch costs and why. Pricing every batch again after the run costs the run nothing, and
checks it: with the step detail a price that differs from the step's duration on the virtual device is a mistake of the
emulation, and the report says so. It must never ask the engine anything, and never guess: what was not found is None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperlapse.cli.engine_log import PATTERN
from hyperlapse.cli.result import COVERAGES
from hyperlapse.shim.step_log import LoggedStep, StepLogError, read_logs

if TYPE_CHECKING:
    from hyperlapse.predictor.composition import BatchComposition

TOLD_EVERY = 20_000


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine's scheduler said when a step was over. kv_usage: share of the KV-cache blocks; preemptions: of
    this step.
    """

    t_ns: int
    running: int | None
    waiting: int | None
    kv_usage: float | None
    preemptions: int


@dataclass(slots=True)
class OperatorTime:
    """An operator over a whole run. error90_ns: its error in nine of ten cases, all its executions erring together."""

    name: str
    executions: int = 0
    total_ns: int = 0
    error90_ns: float = 0.0
    coverage_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COVERAGES, 0))


@dataclass(frozen=True, slots=True)
class Priced:
    """What the predictor says of a batch. coverage_ns: in the order of COVERAGES; sums to duration_ns. error90_ratio:
    nine in ten errors are smaller.
    """

    duration_ns: int
    coverage_ns: tuple[int, ...]
    error90_ratio: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Instants are virtual nanoseconds from the start of the measurement."""

    device: int
    launch_ns: int
    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int
    requests: int
    state: EngineState | None
    price: Priced | None

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


class Pricer:
    """Prices batches with the predictor that priced the run, and adds up their operators."""

    def __init__(self, gpu: str) -> None:
        from hyperlapse.cli.priced_device import engine_predictor

        self._predictor = engine_predictor(gpu)
        self._operators: dict[str, OperatorTime] = {}

    def price(self, key: str, batch: BatchComposition) -> Priced:
        """What one step costs. key: the model key of the worker's log. Raises PredictorError."""
        step = self._predictor.step_predictor_of(key).predict(batch)
        for operator in step.operators:
            total = self._operators.get(operator.name)
            if total is None:
                total = self._operators[operator.name] = OperatorTime(operator.name)
            total_ns, prediction = operator.total_ns, operator.prediction
            total.executions += operator.count
            total.total_ns += total_ns
            total.error90_ns += total_ns * prediction.error90_ratio
            total.coverage_ns[COVERAGES[prediction.coverage]] += total_ns
        return Priced(step.duration_ns, tuple(step.coverage_ns), step.error90_ratio)

    def operators(self) -> list[OperatorTime]:
        """Of all batches that were priced, the longest first."""
        return sorted(self._operators.values(), key=lambda operator: (-operator.total_ns, operator.name))


def read_steps(
    folder: Path, start_ns: int, pricer: Pricer | None, tell: Callable[[int], None] = lambda _steps: None
) -> list[Step]:
    """The steps that a run's workers logged in `folder`, from `start_ns` (virtual) on. tell: called with the number of
    steps now and then. Raises StepLogError, PredictorError.
    """
    from hyperlapse.predictor.composition import BatchComposition

    logs = read_logs(folder)
    if not logs:
        raise StepLogError(f"{folder} holds no step log: the worker has not written one")
    states = read_states(folder)
    by_engine = len(states) == len(logs) > 1
    steps: list[Step] = []
    for position, log in enumerate(logs):
        device, key = int(log.header.get("device", 0)), str(log.header["model_key"])
        free_ns = 0
        for step, state in join(log, states.get(position if by_engine else 0, [])):
            began_ns = max(step.launch_ns, free_ns)
            free_ns = max(free_ns, step.end_ns)
            if step.launch_ns < start_ns:
                continue  # start-up and warm-up
            batch = BatchComposition.parse(step.batch)
            prefill, decode, requests = batch_tokens(batch)
            steps.append(
                Step(
                    device=device,
                    launch_ns=step.launch_ns - start_ns,
                    start_ns=began_ns - start_ns,
                    end_ns=step.end_ns - start_ns,
                    prefill_tokens=prefill,
                    decode_tokens=decode,
                    requests=requests,
                    state=state,
                    price=pricer.price(key, batch) if pricer is not None else None,
                )
            )
            if len(steps) % TOLD_EVERY == 0:
                tell(len(steps))
    steps.sort(key=lambda step: (step.launch_ns, step.device))
    return steps


def join(steps: Iterable[LoggedStep], states: Sequence[EngineState]) -> Iterator[tuple[LoggedStep, EngineState | None]]:
    """Each step and the scheduler's state after it: the engine reports once a step, in order, when its results are there."""
    at = 0
    for step in steps:
        while at < len(states) and states[at].t_ns < step.end_ns:
            at += 1
        yield step, states[at] if at < len(states) else None
        at += 1


def batch_tokens(batch: BatchComposition) -> tuple[int, int, int]:
    """(prefill tokens, decode tokens, sequences). One new token over a context is a decode; the last token of a cut prompt,
    alone in its chunk, cannot be told from one.
    """
    prefill = decode = sequences = 0
    for group in batch.groups:
        sequences += group.count
        if group.new == 1 and group.context:
            decode += group.count
        else:
            prefill += group.new * group.count
    return prefill, decode, sequences


def read_states(folder: Path) -> dict[int, list[EngineState]]:
    """By engine index, in the order of time."""
    found: dict[int, list[EngineState]] = {}
    counted: dict[tuple[str, int], int] = {}
    for path, record in _engine_records(folder):
        if record["kind"] != "step":
            continue
        engine = record.get("engine_index", 0)
        total, before = record.get("preemptions", 0), counted.get((path.name, engine), 0)
        counted[path.name, engine] = total
        found.setdefault(engine, []).append(
            EngineState(
                record["t_ns"], record.get("running"), record.get("waiting"), record.get("kv_usage"), total - before
            )
        )
    for states in found.values():
        states.sort(key=lambda state: state.t_ns)
    return found


def read_phases_ns(folder: Path, start_ns: int) -> dict[str, int] | None:
    """Time that the requests which finished from `start_ns` on spent in the engine, by phase; None: not reported."""
    totals = dict.fromkeys(("queued", "prefill", "decode"), 0)
    reported = False
    for _, record in _engine_records(folder):
        if record["kind"] == "step" and record["t_ns"] >= start_ns and "queued_ns" in record:
            reported = True
            for phase in totals:
                totals[phase] += record[f"{phase}_ns"]
    return totals if reported else None


def _engine_records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob(PATTERN)):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # else the writer was ended in the middle of it
                    yield path, json.loads(line)


def union_ns(intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint intervals in order that cover what these cover."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = merged[-1][0], end
        elif end > begin:
            merged.append((begin, end))
    return merged


def length_ns(intervals: Sequence[tuple[int, int]]) -> int:
    """Of disjoint intervals."""
    return sum(end - begin for begin, end in intervals)
