"""The content of report.json: a finished run as one object.

Why: everything that a report shows or that two reports are compared by stands in this object and nowhere else, so that
other programs can use it too. Its shape is `report.schema.json`, which tests check; a change that a reader could trip over
raises VERSION. Requests and steps are columns (arrays of equal length), a tenth of what objects would take. All
instants are virtual nanoseconds from the start of the measurement. It must never hold a number without an origin: what was
not reported is null.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperlapse.cli.metrics import RequestRecord
from hyperlapse.cli.report_steps import (
    OperatorTime,
    Pricer,
    Step,
    length_ns,
    read_phases_ns,
    read_steps,
    union_ns,
)
from hyperlapse.cli.result import COVERAGES, files_sha256

if TYPE_CHECKING:
    from hyperlapse.cli.benchmark import BenchOptions, BenchRun
    from hyperlapse.cli.progress import Progress

SCHEMA = "hyperlapse-report"
VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
THROUGHPUTS = ("requests_per_s", "output_tokens_per_s")
CONFIDENCE = 0.9
FOLLOWS_LOAD = "follows the offered load: no request waited for a place in the batch"
PHASES_EXCEED = "phases-exceed-latency"
# what rounding of the engine's seconds, which are floats, may come to
ROUNDING_NS = 1000.0


class ReportError(Exception):
    """A report that cannot be made or read; the text is for the user."""


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """Where one device's time went, from the first send to the last token: in steps, waiting while requests were there,
    and with nothing to do.
    """

    span_ns: int
    busy_ns: int
    waiting_ns: int
    empty_ns: int


def build_report(run: BenchRun, progress: Progress) -> dict[str, Any]:
    """The object. Raises ReportError."""
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.shim.step_log import EVENT, StepLogError

    options = run.options
    lost = [event for event in run.events if event.kind == EVENT]
    if lost:
        raise ReportError(f"the steps were not all recorded: {lost[0].text}")
    if run.start_ns is None:
        raise ReportError(f"the client did not say when its measurement started. Logs: {run.folder}")
    progress.phase("reading and pricing the engine's steps for the report")
    pricer = None if options.fixed_step is not None else Pricer(options.gpu)

    def tell(count: int) -> None:
        progress.phase(f"reading and pricing the engine's steps for the report: {count:,}")

    try:
        steps = read_steps(run.folder, run.start_ns, pricer, tell)
    except (StepLogError, PredictorError, OSError) as error:
        raise ReportError(f"{error}\nLogs: {run.folder}") from None
    if not steps:
        raise ReportError(f"the engine logged no step of the measurement. Logs: {run.folder}")
    progress.phase("putting the report together")
    result = run.result.as_json()
    budget = device_budget(run.records, steps)
    operators = pricer.operators() if pricer is not None else []
    estimate = error_estimate(options, steps) if pricer is not None else None
    host = host_time(run, steps)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "result": result,
        "workload": workload(options, len(run.records)),
        "environment": environment(),
        "metrics": with_estimates(result, estimate),
        "estimate": estimate,
        "device_time": device_time(run, steps, budget, operators),
        "host_time": host,
        "real_time": {
            "startup_s": result["startup_s"],
            "measurement_s": result["real_s"],
            "phases_s": dict(run.phases_s),
            "clock": dict(run.clock),
        },
        "events": events_of(run, host),
        "requests": request_columns(run.records),
        "steps": step_columns(steps),
    }


def workload(options: BenchOptions, requests: int) -> dict[str, Any]:
    """What was asked of the server; what a trace gives is null."""
    random = options.trace is None
    return {
        "kind": "random" if random else "trace",
        "requests": requests,
        "rate_per_s": options.rate if random else None,
        "concurrency": options.concurrency if random else options.max_in_flight,
        "input_tokens": options.input_len if random else None,
        "output_tokens": options.output_len if random else None,
        "seed": options.seed,
        "trace": None if random else str(options.trace),
    }


def environment() -> dict[str, Any]:
    """Of the emulating machine and the project itself."""
    import psutil

    root = Path(__file__).resolve().parent.parent
    sources = sorted(path for part in root.iterdir() if part.is_dir() for path in part.glob("*.py"))
    return {
        "host_cpu": _cpu_name(),
        "host_cpus": os.cpu_count(),
        "host_memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "hyperlapse_commit": _commit(root),
        "hyperlapse_sources_sha256": files_sha256(sources),
    }


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit(root: Path) -> str | None:
    """Of a source tree (an editable install); an installed wheel has none."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def device_budget(records: Sequence[RequestRecord], steps: Sequence[Step]) -> DeviceBudget:
    """The time of the first device (each rank of an engine runs the same steps)."""
    good = [record for record in records if record.ok]
    begin, end = min(record.send_ns for record in good), max(record.token_ns[-1] for record in good)
    first = min(step.device for step in steps)
    busy = union_ns([(max(s.start_ns, begin), min(s.end_ns, end)) for s in steps if s.device == first])
    present = union_ns([(record.send_ns, record.token_ns[-1]) for record in good])
    either = union_ns([*busy, *present])
    busy_ns, either_ns = length_ns(busy), length_ns(either)
    return DeviceBudget(end - begin, busy_ns, either_ns - busy_ns, end - begin - either_ns)


def device_time(
    run: BenchRun, steps: Sequence[Step], budget: DeviceBudget, operators: Sequence[OperatorTime]
) -> dict[str, Any]:
    """Where the device's time went. With the kernel detail operators are the step model's account of the same batches,
    and the launched kernels' own total is `launched_ns`.
    """
    from hyperlapse.predictor.prediction import family_of

    priced = [step for step in steps if step.price is not None]
    differing = sum(step.price is not None and step.price.duration_ns != step.duration_ns for step in steps)
    return {
        "span_ns": budget.span_ns,
        "busy_ns": budget.busy_ns,
        "waiting_ns": budget.waiting_ns,
        "empty_ns": budget.empty_ns,
        "launched_ns": sum(run.device_time_ns.values()),
        "launched_coverage_ns": {name: run.device_time_ns[name] for name in COVERAGES},
        "steps": len(steps),
        "steps_ns": sum(step.duration_ns for step in steps),
        "priced_ns": sum(step.price.duration_ns for step in priced if step.price) if priced else None,
        # a check of the emulation; kernel by kernel, prices and steps need not agree to the nanosecond
        "steps_unlike_their_price": differing if run.options.detail == "step" and priced else None,
        "operators": [
            {
                "name": operator.name,
                "family": family_of(operator.name),
                "executions": operator.executions,
                "total_ns": operator.total_ns,
                "error90_ratio": operator.error90_ns / operator.total_ns if operator.total_ns else 0.0,
                "coverage_ns": dict(operator.coverage_ns),
            }
            for operator in operators
        ],
    }


def host_time(run: BenchRun, steps: Sequence[Step]) -> dict[str, Any]:
    """What was charged for the CPU side, and where the time of a mean request went."""
    from hyperlapse.cli.benchmark import host_time as charged_by
    from hyperlapse.coordinator import host_time as calibrated

    good = [record for record in run.records if record.ok]
    known = {constant.name: constant for constant in calibrated.constants(run.result.engine)}
    counts = {"request": len(good), "step": len(steps), "token": sum(len(record.token_ns) for record in good)}
    charged = []
    per_request_ns = 0.0
    for rule, each_ns in charged_by(run.options, run.result.engine).items():
        unit = known[rule].unit.rpartition(" ")[2] if rule in known else "request"
        count = counts.get(unit)
        total_ns = None if count is None else count * each_ns
        charged.append(
            {"rule": rule, "each_ns": each_ns, "per": unit, "count": count, "total_ns": total_ns}
            | ({"charged": known[rule].charged, "origin": known[rule].origin} if rule in known else {})
        )
        if unit == "request":
            per_request_ns += each_ns
    phases = read_phases_ns(run.folder, run.start_ns or 0)
    e2e_ns = sum(record.e2e_ns for record in good) / len(good)
    means = None
    if phases is not None:
        means = {name: value / len(good) for name, value in phases.items()}
        means["charged"] = per_request_ns
        means["rest"] = e2e_ns - sum(means.values())  # below 0: events_of() tells
        means["e2e"] = e2e_ns
    return {"charged": charged, "request_mean_ns": means}


def events_of(run: BenchRun, host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the run counted, and what its parts say about each other."""
    found: list[dict[str, Any]] = [
        {"kind": event.kind, "count": event.count, "text": event.text} for event in run.events
    ]
    means = host["request_mean_ns"]
    if means is not None and means["rest"] < -ROUNDING_NS:
        over_ms, e2e_ms = -means["rest"] / 1e6, means["e2e"] / 1e6
        text = (
            f"the engine's phases and the charged host time of a mean request are {over_ms:,.3f} ms more than its latency of "
            f"{e2e_ms:,.3f} ms: do not trust its parts, and please report this"
        )
        found.append({"kind": PHASES_EXCEED, "count": 1, "text": text})
    return found


def error_estimate(options: BenchOptions, steps: Sequence[Step]) -> dict[str, Any]:
    """How far the figures may be from the real GPU's because of predicted durations: relative half-widths that hold in
    nine of ten cases, null with a reason in `without_interval`. What the host-time model may be off by is not in it.

    Steps of a run err together (the same kernels again and again), so their errors are averaged, not the smaller for
    their number. A queue makes an error of the steps larger, so the share of the time with requests waiting goes in.
    """
    from hyperlapse.predictor.uncertainty import metric_errors

    priced_ns = sum(step.price.duration_ns for step in steps if step.price)
    error_ns = sum(step.price.duration_ns * step.price.error90_ratio for step in steps if step.price)
    ratio = error_ns / priced_ns if priced_ns else 0.0
    total_ns = sum(step.duration_ns for step in steps)
    queued_ns = sum(step.duration_ns for step in steps if step.state is not None and step.state.waiting)
    queue_share = queued_ns / total_ns if total_ns else 0.0
    ratios = metric_errors(ratio, queue_share)
    random = options.trace is None
    if (random and options.rate is None) or (options.concurrency if random else options.max_in_flight) is not None:
        ratios["throughput"] = ratio  # the client holds requests back until others have ended: the load follows the GPU
    return {
        "confidence": CONFIDENCE,
        "device_time_ratio": ratio,
        "queue_share": queue_share,
        "metric_ratios": ratios,
        "without_interval": {name: FOLLOWS_LOAD for name, value in ratios.items() if value is None},
    }


def with_estimates(result: Mapping[str, Any], estimate: Mapping[str, Any] | None) -> dict[str, Any]:
    """Each figure with its interval; without an estimate low and high are null."""
    ratios = estimate["metric_ratios"] if estimate is not None else {}

    def figure(value: float | None, ratio: float | None) -> dict[str, float | None]:
        if value is None or ratio is None:
            return {"value": value, "low": None, "high": None}
        return {"value": value, "low": value / (1 + ratio), "high": value * (1 + ratio)}

    figures: dict[str, Any] = {
        name: {
            key: figure(value, ratios.get(name.removesuffix("_ms"))) for key, value in result["metrics"][name].items()
        }
        for name in LATENCIES
    }
    for name in THROUGHPUTS:
        figures[name] = figure(result["throughput"][name], ratios.get("throughput"))
    return figures


def request_columns(records: Sequence[RequestRecord]) -> dict[str, list[Any]]:
    """A column for each fact, a row for each request, in the order of sending."""
    return {
        "index": [record.index for record in records],
        "arrival_ns": [record.arrival_ns for record in records],
        "send_ns": [record.send_ns for record in records],
        "ttft_ns": [record.ttft_ns if record.ok else None for record in records],
        "e2e_ns": [record.e2e_ns if record.ok else None for record in records],
        "token_ns": [list(record.token_ns) for record in records],
        "prompt_tokens": [record.prompt_tokens for record in records],
        "output_tokens": [record.output_tokens for record in records],
        "status": ["ok" if record.ok else "failed" for record in records],
        "error": [record.error for record in records],
    }


def step_columns(steps: Sequence[Step]) -> dict[str, list[Any]]:
    """A column for each fact, a row for each engine step, in the order of launching."""
    states = [step.state for step in steps]
    prices = [step.price for step in steps]
    return {
        "device": [step.device for step in steps],
        "launch_ns": [step.launch_ns for step in steps],
        "start_ns": [step.start_ns for step in steps],
        "duration_ns": [step.duration_ns for step in steps],
        "prefill_tokens": [step.prefill_tokens for step in steps],
        "decode_tokens": [step.decode_tokens for step in steps],
        "requests": [step.requests for step in steps],
        "running": [state.running if state else None for state in states],
        "waiting": [state.waiting if state else None for state in states],
        "kv_usage": [state.kv_usage if state else None for state in states],
        "preemptions": [state.preemptions if state else None for state in states],
        "price_ns": [price.duration_ns if price else None for price in prices],
        **{
            f"{name}_ns": [price.coverage_ns[index] if price else None for price in prices]
            for index, name in enumerate(COVERAGES)
        },
        "error90_ratio": [round(price.error90_ratio, 5) if price else None for price in prices],
    }
