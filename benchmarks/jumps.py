"""A run in which everybody waits 1,000 times for 100 virtual milliseconds: real time in all, and for a jump.

    python benchmarks/jumps.py [--processes 3]

Bound: under 1 s of real time.
"""

from __future__ import annotations

import argparse
import sys
import time

from common import finish, verdict
from hyperlapse.shim.launcher import Mode, Run

WAITS = 1000
PROGRAM = f"import time\nfor _ in range({WAITS}): time.sleep(0.1)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=3)
    options = parser.parse_args()
    with Run() as run:
        began_ns = run.now_ns()
        before = run.statistics()
        run.set_mode(Mode.FROZEN)
        began_s = time.monotonic()
        programs = [run.spawn([sys.executable, "-I", "-c", PROGRAM]) for _ in range(options.processes)]
        statuses = [program.wait() for program in programs]
        real_s = time.monotonic() - began_s
        after = run.statistics()
        virtual_s = (run.now_ns() - began_ns) / 1e9
    jumps = after.jumps - before.jumps
    waited = virtual_s >= WAITS * 0.1 and not any(statuses)
    good = waited and real_s < 1.0
    print(
        f"{options.processes} processes, {WAITS} waits of 100 ms each: {virtual_s:.3f} s virtual in {real_s:.3f} s "
        f"real (interpreters' start included), {jumps} jumps, {real_s / max(jumps, 1) * 1e6:.0f} µs real for a jump: "
        f"{verdict(good)}"
    )
    if not waited:
        print(f"  the programs did not wait: exit statuses {statuses}, {virtual_s:.3f} s virtual")
    finish(good)


if __name__ == "__main__":
    main()
