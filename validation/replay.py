"""Replays a recording on virtual GPUs and prints it beside the emulated run.

    python -m hyperlapse.validation.replay FOLDER --run agg_2rps --run agg_4rps --seconds 120

FOLDER holds the residency-vllm recordings (validation/residency.py says where they come from); without it,
$HYPERLAPSE_RECORDED/residency-vllm.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from hyperlapse.cli.benchmark import BenchError, BenchOptions, BenchRun, make_folder, run_bench
from hyperlapse.cli.progress import Progress, TerminalProgress
from hyperlapse.cli.workload import write_trace
from hyperlapse.validation.residency import (
    FOLDER_VARIABLE,
    GPU,
    MODEL,
    Comparison,
    RecordedRequest,
    RecordingError,
    compare,
    read_recording,
    recorded_folder,
    recorded_metrics,
    to_trace,
    trace_file,
)


@dataclass(frozen=True, slots=True)
class Replay:
    """A recording and its emulated run."""

    run: str
    recorded: Sequence[RecordedRequest]
    emulated: BenchRun
    comparisons: Sequence[Comparison]


def replay(folder: Path, run: str, seconds: float, options: BenchOptions, progress: Progress | None = None) -> Replay:
    """Replays the first `seconds` of a run. `options.trace` is set here. Raises RecordingError, BenchError."""
    recorded = read_recording(trace_file(folder, run), seconds)
    output = make_folder(options.output)
    trace = output / f"{run}.jsonl"
    write_trace(trace, to_trace(recorded))
    emulated = run_bench(dataclasses.replace(options, trace=trace, rate=None, output=output / "bench"), progress)
    return Replay(run, recorded, emulated, compare(recorded_metrics(recorded), emulated.result.metrics))


def print_replay(done: Replay) -> None:
    """Prints recorded beside emulated."""
    from rich.console import Console
    from rich.table import Table

    result = done.emulated.result
    table = Table(title=f"{done.run}: {len(done.recorded)} requests, {result.detail} detail", title_justify="left")
    for name in ("measure, ms", "recorded", "emulated", "error", "allowed"):
        table.add_column(name, justify="left" if name.startswith("measure") else "right")
    for row in done.comparisons:
        table.add_row(
            row.name,
            f"{row.recorded_ms:,.2f}",
            f"{row.emulated_ms:,.2f}",
            f"{row.error:+.1%}",
            f"{row.allowed:.0%}" + ("" if row.within else "  missed"),
        )
    Console(width=100).print(table)
    print(
        f"KV-cache blocks {result.kv_blocks}, preemptions {result.preemptions}; {result.virtual_s:.1f} s virtual in "
        f"{result.real_s:.1f} s real: {result.speedup:.2f} times real time; start-up {result.startup_s:.1f} s; "
        f"logs: {done.emulated.folder}"
    )


def folder_or_stop(given: Path | None) -> Path:
    """The folder of the recordings. Raises click.UsageError where there is none."""
    folder = given or recorded_folder()
    if folder is None or not folder.is_dir():
        raise click.UsageError(
            f"no recordings: name the residency-vllm folder, or set {FOLDER_VARIABLE} to the folder that holds it"
        )
    return folder


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--run", "runs", multiple=True, default=("agg_2rps", "agg_4rps"), show_default=True)
@click.option("--seconds", type=float, default=120.0, show_default=True, help="Of each recording, from its first send.")
@click.option("--detail", type=click.Choice(["kernel", "step"]), default="step", show_default=True)
@click.option("--engine", metavar="PATH", help="The engine's environment or its Python.")
@click.option("--host-time-ns", type=click.IntRange(min=0), help="Instead of the calibrated constant.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a run.")
def command(
    folder: Path | None,
    runs: Sequence[str],
    seconds: float,
    detail: str,
    engine: str | None,
    host_time_ns: int | None,
    as_json: bool,
) -> None:
    """Replay recorded runs and print recorded beside emulated. Exit status 1 when a measure misses its bound."""
    options = BenchOptions(model=MODEL, gpu=GPU, detail=detail, engine=engine, host_time_ns=host_time_ns)
    within = True
    try:
        for run in runs:
            with TerminalProgress() as progress:
                done = replay(folder_or_stop(folder), run, seconds, options, progress)
            within = within and all(row.within for row in done.comparisons)
            if as_json:
                print(json.dumps(as_object(done)), flush=True)
            else:
                print_replay(done)
    except (RecordingError, BenchError) as error:
        print(f"hyperlapse: {error}", file=sys.stderr)
        sys.exit(getattr(error, "status", 2))
    sys.exit(0 if within else 1)


def as_object(done: Replay) -> dict[str, object]:
    """A replay as JSON."""
    return {
        "run": done.run,
        "comparisons": [
            dataclasses.asdict(row) | {"error": row.error, "within": row.within} for row in done.comparisons
        ],
        "result": done.emulated.result.as_json(),
    }


if __name__ == "__main__":
    command()
