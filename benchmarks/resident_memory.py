"""Host memory of each process of a run with a 70B model, both details: the largest proportional set size (PSS).

    python benchmarks/resident_memory.py [--engine PATH] [--details step kernel]

Bound: 1.5 GB for the process that holds the rank (the engine core, with one GPU), measured while it serves: a profile is
made before, by a start of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from pathlib import Path

import psutil

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, BenchRun, run_bench
from hyperlapse.cli.progress import Progress, TerminalProgress

BOUND_BYTES = 1_500_000_000
RANK = "EngineCore"
PERIOD_S = 0.5
FLAGS = ("--gpu-memory-utilization", "0.98", "--max-model-len", "4096", "--max-num-batched-tokens", "2048")


def pss_bytes(pid: int) -> int:
    """Of one process; pages that several share count in equal parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Sampler(threading.Thread):
    """The largest PSS of every descendant of this process, by name."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_bytes: dict[str, int] = {}
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(PERIOD_S):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError, ValueError):
                    name = " ".join(process.cmdline())[:60] or process.name()
                    self.most_bytes[name] = max(self.most_bytes.get(name, 0), pss_bytes(process.pid))

    def end(self) -> None:
        self._end.set()
        self.join()


def sampled(options: BenchOptions, progress: Progress) -> tuple[Sampler, BenchRun]:
    sampler = Sampler()
    sampler.start()
    try:
        return sampler, run_bench(options, progress)
    finally:
        sampler.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--model", default="llama-3.1-70b")
    parser.add_argument("--gpu", default="h200-sxm-141gb")
    parser.add_argument("--details", nargs="+", default=["step", "kernel"], choices=["step", "kernel"])
    given = parser.parse_args()
    good = True
    for detail in given.details:
        options = BenchOptions(
            model=given.model, gpu=given.gpu, engine=given.engine, detail=detail, rate=2.0, requests=10,
            input_len=512, output_len=32, engine_flags=FLAGS,
        )  # fmt: skip
        with TerminalProgress() as progress:
            sampler, run = sampled(options, progress)
            if run.engine.profile == "profiled":
                progress.phase("once more: that start made the profile")
                sampler, run = sampled(options, progress)
        rank_bytes = max((size for name, size in sampler.most_bytes.items() if RANK in name), default=0)
        fits = 0 < rank_bytes <= BOUND_BYTES
        good = good and fits
        print(f"{detail}: {given.model} on one {given.gpu}, {run.result.kv_blocks:,} KV blocks, rank "
              f"{rank_bytes / 1e9:.2f} GB ({BOUND_BYTES / 1e9:g} wanted): {verdict(fits)}")  # fmt: skip
        for name, size in sorted(sampler.most_bytes.items(), key=lambda item: -item[1])[:6]:
            print(f"  {size / 1e9:.2f} GB  {name}")
    finish(good)


if __name__ == "__main__":
    main()
