"""What reading the clock costs a program on the virtual clock, beside the same program without it.

    python benchmarks/clock_read.py

Bound: under 60 ns for clock_gettime in a frozen run. The best of many rounds: other load only adds to it.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from common import finish, verdict
from hyperlapse.shim.launcher import Mode, Run

BOUND_NS = 60.0
# The counter of the processor, because the program's own clocks stand still.
PROGRAM = r"""
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>
int main(void)
{
    enum { ROUNDS = 2000, READS = 1000 };
    struct timespec now;
    unsigned long long best = ~0ull;
    for (int round = 0; round < ROUNDS; round++) {
        unsigned long long began = __rdtsc();
        for (int read = 0; read < READS; read++)
            clock_gettime(CLOCK_MONOTONIC, &now);
        unsigned long long took = __rdtsc() - began;
        best = took < best ? took : best;
    }
    printf("%llu\n", best / READS);
}
"""


def cycles_per_ns() -> float:
    """Of the processor's counter, which runs at a constant rate."""
    code = (
        "#include <stdio.h>\n#include <time.h>\n#include <x86intrin.h>\n"
        "int main(void) { struct timespec t = {0, 200000000}, a, b; clock_gettime(CLOCK_MONOTONIC, &a);"
        " unsigned long long c = __rdtsc(); nanosleep(&t, 0); c = __rdtsc() - c; clock_gettime(CLOCK_MONOTONIC, &b);"
        ' printf("%f", (double)c / ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec))); }'
    )
    with tempfile.TemporaryDirectory() as scratch:
        return float(subprocess.check_output([compiled(Path(scratch), code)]))


def compiled(folder: Path, code: str) -> str:
    (folder / "program.c").write_text(code)
    subprocess.run(["gcc", "-O2", "program.c", "-o", "program"], cwd=folder, check=True)
    return str(folder / "program")


def main() -> None:
    rate = cycles_per_ns()
    with tempfile.TemporaryDirectory(prefix="hyperlapse-read-") as scratch, Run() as run:
        program = compiled(Path(scratch), PROGRAM)
        native_ns = int(subprocess.check_output([program])) / rate
        run.set_mode(Mode.FROZEN)
        process = run.spawn([program], stdout=subprocess.PIPE)
        output, _ = process.communicate()
    virtual_ns = int(output) / rate
    good = virtual_ns < BOUND_NS
    print(f"clock_gettime: {virtual_ns:.1f} ns frozen, {native_ns:.1f} ns without hyperlapse: {verdict(good)}")
    finish(good)


if __name__ == "__main__":
    main()
