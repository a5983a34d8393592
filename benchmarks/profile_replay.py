"""Where the real time of a replay goes: the shares of the clock, the engine, its front end, the client and pricing.

    python benchmarks/profile_replay.py FOLDER [--run agg_2rps] [--seconds 120] [--engine PATH]

The kernel counts for every thread what it ran and what it waited for a CPU (/proc/PID/task/TID/schedstat); this script
takes these counts while the client measures. The parts run almost one after the other, so CPU time over real time is
close to a share of real time; two parts may overlap on two cores, and what is left over is waiting for a CPU, wake-ups
and idle moments. Nothing is measured by asking the processes, which would change what they do.
"""

from __future__ import annotations

import argparse
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

from common import finish
from hyperlapse.cli.benchmark import BenchOptions, BenchRun
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.validation.replay import folder_or_stop, print_replay, replay
from hyperlapse.validation.residency import GPU, MODEL

SAMPLE_S = 0.2
# The engine names its processes; nothing else of this project knows these names.
ENGINE_CORE_TITLE = "VLLM::EngineCore"
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Use:
    """CPU time and time spent waiting for a CPU, in nanoseconds."""

    ran_ns: int = 0
    waited_ns: int = 0


def part_of(process: psutil.Process) -> str:
    """The part of the replay that a process of the run is."""
    command = process.cmdline()
    text = " ".join(command)
    if process.name().startswith("hyperlapse-kee"):
        return "clock (time-keeper)"
    if ENGINE_CORE_TITLE in text:
        return "engine core"
    if "cli/client.py" in text or "bench serve" in text:
        return "client"
    if "pricing" in text:
        return "pricing service"
    if "serve" in command:
        return "API server"
    return "other processes of the run"


def look(own: psutil.Process) -> dict[tuple[str, int, str], Use]:
    """What every thread below this process, and this process itself, has used so far: {(part, tid, name): use}."""
    found: dict[tuple[str, int, str], Use] = {}
    for process in [own, *own.children(recursive=True)]:
        try:
            part = "launcher (this script)" if process == own else part_of(process)
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                ran, waited, _ = (task / "schedstat").read_text().split()
                name = "main" if int(task.name) == process.pid else (task / "comm").read_text().strip()
                found[part, int(task.name), name] = Use(int(ran), int(waited))
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
    return found


class Sampler(TerminalProgress):
    """Looks when the measurement begins, and again and again until it ends: the client is gone by then."""

    def __init__(self) -> None:
        super().__init__()
        self._own = psutil.Process()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.before: dict[tuple[str, int, str], Use] = {}
        self.after: dict[tuple[str, int, str], Use] = {}

    def phase(self, text: str) -> None:
        if text == "measuring":
            self.before = look(self._own)
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        elif self._thread is not None and not self._over.is_set():
            self._over.set()
            self._thread.join()
        super().phase(text)

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.after |= look(self._own)

    def used(self) -> dict[str, dict[str, Use]]:
        """Use during the measurement: by part, and within it by thread name."""
        parts: dict[str, dict[str, Use]] = defaultdict(dict)
        for key, use in self.after.items():
            part, _, name = key
            began = self.before.get(key, Use())
            earlier = parts[part].get(name, Use())
            parts[part][name] = Use(
                earlier.ran_ns + use.ran_ns - began.ran_ns, earlier.waited_ns + use.waited_ns - began.waited_ns
            )
        return parts


def print_shares(run: BenchRun, used: dict[str, dict[str, Use]]) -> None:
    real_ns = run.result.real_s * NANOSECONDS
    print(f"{'part':<36}{'CPU s':>8}{'of real time':>14}{'waited for a CPU, s':>22}")
    rows = sorted(used.items(), key=lambda item: -sum(use.ran_ns for use in item[1].values()))
    total_ns = 0
    for part, threads in rows:
        ran_ns = sum(use.ran_ns for use in threads.values())
        waited_ns = sum(use.waited_ns for use in threads.values())
        total_ns += ran_ns
        print(f"{part:<36}{ran_ns / 1e9:>8.2f}{ran_ns / real_ns:>14.1%}{waited_ns / 1e9:>22.2f}")
        for name, use in sorted(threads.items(), key=lambda item: -item[1].ran_ns)[:4]:
            if len(threads) > 1 and use.ran_ns > 0.002 * real_ns:
                print(
                    f"    {name:<32}{use.ran_ns / 1e9:>8.2f}{use.ran_ns / real_ns:>14.1%}{use.waited_ns / 1e9:>22.2f}"
                )
    print(f"{'all':<36}{total_ns / 1e9:>8.2f}{total_ns / real_ns:>14.1%}  of {run.result.real_s:.2f} s real")
    clock = run.clock
    jumps = max(clock["jumps"], 1)
    print(
        f"{clock['jumps']} jumps for {run.engine.steps} steps; proofs of quiet {clock['proofs']}, refused "
        f"{clock['proofs_refused']}; a proof takes {clock['proof_ns_total'] / max(clock['proofs'], 1) / 1e3:.0f} µs; "
        f"from the last sleeper to the wake-up {clock['trigger_to_wake_ns_total'] / jumps / 1e3:.0f} µs a jump, "
        f"{clock['trigger_to_wake_ns_total'] / real_ns:.1%} of real time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--run", default="agg_2rps")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--detail", default="step")
    parser.add_argument("--engine")
    given = parser.parse_args()
    options = BenchOptions(model=MODEL, gpu=GPU, detail=given.detail, engine=given.engine)
    with Sampler() as progress:
        done = replay(folder_or_stop(given.folder), given.run, given.seconds, options, progress)
    print_replay(done)
    print_shares(done.emulated, progress.used())
    finish(True)


if __name__ == "__main__":
    main()
