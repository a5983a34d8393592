"""Real time of one jump of a clock that several nodes share: each node runs one C program that sleeps 10 virtual ms at a time.

    python benchmarks/jumps_across_nodes.py [--seconds 4] [--nodes 2 4]

All of it counts: the proofs on every node, the reports to the coordinator over gRPC, its grants, the wake-ups. The nodes
are runs of their own on this machine, each with its time-keeper and node agent, on loopback addresses of their own; the
coordinator runs in this process and notes when it grants. Bounds: medians under 1 ms for two nodes, 2 ms for four, on two
cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish, verdict
from hyperlapse.coordinator.agreement import Agreement, Decision
from hyperlapse.coordinator.service import Coordinator, Settings, serve

BOUNDS_MS = {2: 1.0, 4: 2.0}
C_PROGRAM = """
#include <unistd.h>
int main(void) { for (;;) usleep(10000); }
"""


class Noting(Agreement):
    """Notes the real instant of every grant."""

    granted_s: list[float] = []  # noqa: RUF012 - of the run that is being measured

    def decide(self, now_s: float) -> Decision:
        before = self.jumps
        decision = super().decide(now_s)
        if self.jumps > before:
            Noting.granted_s.append(now_s)
        return decision


def measure(program: Path, nodes: int, seconds: float) -> tuple[float, int]:
    """The median real ms of a jump, and how many there were."""
    Noting.granted_s = []
    processes: list[subprocess.Popen[bytes]] = []

    def started(coordinator: Coordinator, port: int) -> None:
        for rank in range(nodes):
            command = [sys.executable, "-m", "hyperlapse.cli.main", "run", "--gpu", "none", "--coordinator"]
            command += [f"127.0.0.1:{port}", "--node-rank", str(rank), "--nodes", str(nodes)]
            command += ["--node-address", f"127.0.1.{rank + 1}", "--", str(program)]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

        async def end() -> None:
            limit_s = time.monotonic() + 60
            while not Noting.granted_s and time.monotonic() < limit_s:
                await asyncio.sleep(0.05)
            await asyncio.sleep(seconds)
            coordinator.interrupt()

        tasks.append(asyncio.get_running_loop().create_task(end()))

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(
        serve(Settings(nodes, agreement=Noting), "127.0.0.1:0", say=lambda line: None, started=started)  # noqa: ARG005
    )
    for process in processes:
        process.wait(60)
    between_ms = [(b - a) * 1e3 for a, b in zip(Noting.granted_s, Noting.granted_s[1:], strict=False)]
    if not between_ms:
        raise SystemExit("the clock did not jump at all")
    return statistics.median(between_ms), len(Noting.granted_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--nodes", type=int, nargs="+", default=sorted(BOUNDS_MS))
    given = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="hyperlapse-jump-") as scratch:
        program = Path(scratch) / "sleeper"
        subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", program], input=C_PROGRAM.encode(), check=True)
        for nodes in given.nodes:
            median_ms, jumps = measure(program, nodes, given.seconds)
            bound_ms = BOUNDS_MS.get(nodes, float("inf"))
            good = good and median_ms < bound_ms
            print(
                f"{nodes} nodes: {median_ms:.2f} ms a jump (median of {jumps}), {bound_ms:g} wanted: "
                f"{verdict(median_ms < bound_ms)}"
            )
    finish(good)


if __name__ == "__main__":
    main()
