"""Many runs in which compilers come and go under a frozen clock, beside busy loops: does any lose virtual time?

    python benchmarks/soak_processes.py [--runs 40] [--burners 3]

A thread sleeps for 10 virtual seconds while its program runs gcc eight times; gcc starts cc1, as and ld by vfork and
exec. All of that is work, no waiting, so no virtual time may pass: a jump to the sleeper's deadline is a proof of quiet
that was wrong. Bound: none lost. (Before the proof asked the kernel who is on a run queue, 1 of 25 to 40 runs lost its 10 s.)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish, verdict
from hyperlapse.shim.launcher import Mode, Run

COMPILATIONS = 8
PROGRAM = f"""
import subprocess, threading, time
threading.Thread(target=lambda: time.sleep(10), daemon=True).start()
began = time.monotonic()
for _ in range({COMPILATIONS}):
    subprocess.run(["gcc", "-O1", "empty.c", "-o", "empty"], check=True)
print(time.monotonic() - began)
"""


def lost_s(folder: Path) -> float:
    """Virtual seconds that one run lost."""
    with Run() as run:
        run.set_mode(Mode.FROZEN)
        program = run.spawn([sys.executable, "-c", PROGRAM], cwd=folder, stdout=subprocess.PIPE)
        output, _ = program.communicate()
        if program.returncode != 0:
            raise SystemExit(f"the program failed with exit status {program.returncode}")
    return float(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--burners", type=int, default=3)
    options = parser.parse_args()
    burners = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(options.burners)]
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="hyperlapse-soak-") as scratch:
            (Path(scratch) / "empty.c").write_text("int main(void) { return 0; }\n")
            losses = [lost_s(Path(scratch)) for _ in range(options.runs)]
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    lost = [loss for loss in losses if loss]
    print(
        f"{options.runs} runs of {COMPILATIONS} compilations beside {options.burners} busy loops, "
        f"{(time.monotonic() - began_s) / options.runs:.2f} s real each: {len(lost)} lost virtual time"
        f"{f' (at most {max(lost):g} s)' if lost else ''}: {verdict(not lost)}"
    )
    finish(not lost)


if __name__ == "__main__":
    main()
