"""Recorded beside emulated, and how much faster than the recording the emulation is.

    python benchmarks/replay_residency.py FOLDER [--seconds 120] [--engine PATH]

FOLDER: the residency-vllm recordings (hyperlapse/validation/residency.py). Bounds: mean TPOT and E2E within 5 %, mean
TTFT within 10 %, the p99 of each within 15 %; the replay of 2 requests/s at least 5 times faster than the recording.
The host-time constant is calibrated on idle requests of agg_2rps, so the TTFT of agg_2rps is no check.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.validation.replay import folder_or_stop, print_replay, replay
from hyperlapse.validation.residency import GPU, MODEL, RUNS

SPEED_RUN, SPEED_BOUND = "agg_2rps", 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--detail", default="step")
    parser.add_argument("--engine")
    parser.add_argument("--run", action="append", dest="runs")
    given = parser.parse_args()
    folder = folder_or_stop(given.folder)
    good = True
    for name in given.runs or RUNS:
        options = BenchOptions(model=MODEL, gpu=GPU, detail=given.detail, engine=given.engine)
        with TerminalProgress() as progress:
            done = replay(folder, name, given.seconds, options, progress)
        print_replay(done)
        for row in done.comparisons:
            calibrated_on = name == "agg_2rps" and "TTFT" in row.name
            good = good and (row.within or calibrated_on)
        if name == SPEED_RUN and given.detail == "step":
            fast = done.emulated.result.speedup >= SPEED_BOUND
            good = good and fast
            print(f"speed: {done.emulated.result.speedup:.2f} times the recording: {verdict(fast)}")
            clock = done.emulated.clock
            print(f"  {clock['jumps']} jumps, {clock['trigger_to_wake_ns_total'] / 1e9:.2f} s of them real; "
                  f"{done.emulated.engine.steps} steps")  # fmt: skip
    finish(good)


if __name__ == "__main__":
    main()
