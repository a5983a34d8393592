"""Real time of one jump of the clock: two C programs, 8 and 32 Python processes, each sleeping 10 virtual ms at a time.

    python benchmarks/jump_cost.py [--seconds 4]

All of it counts: the sleepers' own code, the proof that everybody sleeps, the wake-ups. Bounds: medians under 25, 120 and
400 µs, on two cores that nothing else uses. The median is over slices of 20 ms of real time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import finish, verdict
from hyperlapse.shim.launcher import Mode, Run

SLICE_S = 0.02
START_LIMIT_S = 120.0
C_PROGRAM = """
#include <unistd.h>
int main(void) { for (;;) usleep(10000); }
"""
PYTHON_PROGRAM = "import time\nwhile True: time.sleep(0.01)"


def jump_us(command: Sequence[str], processes: int, seconds: float) -> tuple[float, int]:
    """The median real µs of a jump, and the threads that each proof looks at."""
    slices = []
    with Run() as run:
        run.set_mode(Mode.REAL)
        for _ in range(processes):
            run.spawn(command)
        limit_s = time.monotonic() + START_LIMIT_S
        while len(run.participants()) < processes and time.monotonic() < limit_s:
            time.sleep(SLICE_S)
        time.sleep(0.1 * processes)  # the interpreters' start
        run.set_mode(Mode.FROZEN)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            before, began_s = run.statistics(), time.monotonic()
            time.sleep(SLICE_S)
            jumps = run.statistics().jumps - before.jumps
            if jumps:
                slices.append((time.monotonic() - began_s) / jumps * 1e6)
        threads = run.statistics().threads
    if not slices:
        raise SystemExit("the clock did not jump at all")
    return statistics.median(slices), threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="hyperlapse-jump-") as scratch:
        program = Path(scratch) / "sleeper"
        subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", program], input=C_PROGRAM.encode(), check=True)
        python = [sys.executable, "-I", "-c", PYTHON_PROGRAM]
        cases = (("C", [str(program)], 2, 25.0), ("Python", python, 8, 120.0), ("Python", python, 32, 400.0))
        for name, command, processes, bound in cases:
            median_us, threads = jump_us(command, processes, given.seconds)
            good = good and median_us < bound
            print(
                f"{processes} {name} processes ({threads} threads looked at): {median_us:.0f} µs a jump, "
                f"{bound:.0f} wanted: {verdict(median_us < bound)}"
            )
    finish(good)


if __name__ == "__main__":
    main()
