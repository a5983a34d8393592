"""The same frozen run twice, on two servers.

    python benchmarks/determinism.py [--engine PATH] [--detail step|kernel]

Bound: every arrival, TTFT and ITL equal to 1 ns.
"""

from __future__ import annotations

import argparse

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, run_bench
from hyperlapse.cli.metrics import RequestRecord
from hyperlapse.cli.progress import TerminalProgress


def largest_differences(first: list[RequestRecord], second: list[RequestRecord]) -> dict[str, int]:
    """The largest difference, in nanoseconds, of sends, TTFTs and gaps between two runs of one workload.

    Sends count from the first one: where a run's measurement begins on its clock is the client's affair.
    """
    ours, theirs = (sorted(run, key=lambda record: record.index) for run in (first, second))
    zero, other_zero = (min(record.send_ns for record in run) for run in (ours, theirs))
    found = {"arrival": 0, "TTFT": 0, "ITL": 0}
    for one, two in zip(ours, theirs, strict=True):
        found["arrival"] = max(found["arrival"], abs((one.send_ns - zero) - (two.send_ns - other_zero)))
        found["TTFT"] = max(found["TTFT"], abs(one.ttft_ns - two.ttft_ns))
        for gap, other_gap in zip(one.itl_ns, two.itl_ns, strict=True):
            found["ITL"] = max(found["ITL"], abs(gap - other_gap))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--detail", default="step")
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    bench = BenchOptions(
        engine=options.engine, detail=options.detail, rate=options.rate, requests=options.requests, seed=1
    )
    runs = []
    for _ in range(2):
        with TerminalProgress() as progress:
            runs.append(run_bench(bench, progress))
    found = largest_differences(runs[0].records, runs[1].records)
    good = all(value <= 1 for value in found.values())
    text = ", ".join(f"{name} {value} ns" for name, value in found.items())
    print(
        f"{options.requests} requests at {options.rate:g}/s, {options.detail} detail, twice: largest difference "
        f"{text}: {verdict(good)}"
    )
    finish(good)


if __name__ == "__main__":
    main()
