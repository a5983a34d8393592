"""Prints the host-time constant: what an idle request's time to first token has beside device time.

    python -m hyperlapse.validation.calibrate_host_time FOLDER

The constant is the median recorded TTFT of the requests of `agg_2rps` that found the server idle, less the emulated
TTFT of the same requests with no host time charged. It is the only number that the project takes from these recordings;
so afterwards `agg_4rps` counts as a check and the TTFT of `agg_2rps` does not. It covers what the frozen clock does not
see: HTTP, tokenisation, scheduling, launching the prefill, sampling and the output path of one request of about 1,000
tokens on the recording's host.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import click

from hyperlapse.cli.benchmark import BenchError, BenchOptions, host_time_rule
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.validation.replay import folder_or_stop, replay
from hyperlapse.validation.residency import GPU, MODEL, RecordingError, idle_requests

RUN = "agg_2rps"


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=120.0, show_default=True, help="Of the recording, from its first send.")
@click.option("--detail", type=click.Choice(["kernel", "step"]), default="step", show_default=True)
@click.option("--engine", metavar="PATH", help="The engine's environment or its Python.")
def command(folder: Path | None, seconds: float, detail: str, engine: str | None) -> None:
    """Calibrate the host time of a request from the idle requests of agg_2rps."""
    options = BenchOptions(model=MODEL, gpu=GPU, detail=detail, engine=engine, host_time_ns=0)
    try:
        with TerminalProgress() as progress:
            done = replay(folder_or_stop(folder), RUN, seconds, options, progress)
    except (RecordingError, BenchError) as error:
        print(f"hyperlapse: {error}", file=sys.stderr)
        sys.exit(getattr(error, "status", 2))
    emulated = sorted(done.emulated.records, key=lambda record: record.index)
    idle = idle_requests(done.recorded)
    recorded_us = [done.recorded[index].first_token_us - done.recorded[index].send_us for index in idle]
    emulated_ns = [emulated[index].ttft_ns for index in idle]
    recorded_ns = statistics.median(recorded_us) * 1000
    device_ns = statistics.median(emulated_ns)
    print(f"{len(idle)} of {len(done.recorded)} requests found the server idle")
    print(f"recorded TTFT, median: {recorded_ns / 1e6:.3f} ms")
    print(f"emulated TTFT without host time, median: {device_ns / 1e6:.3f} ms")
    print(f"{host_time_rule(done.emulated.result.engine)} = {round(recorded_ns - device_ns)}")


if __name__ == "__main__":
    command()
