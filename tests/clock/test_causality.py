"""No message is overtaken by a jump; starting processes loses no virtual time; two runs are the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.clock.fixture import PROGRAMS, Clock


@pytest.mark.parametrize("kind", ["tcp", "unix", "nagle"])
def test_messages_arrive_at_the_instant_they_were_sent(virtual_clock: Clock, kind: str) -> None:
    assert virtual_clock.measure("ping_pong", "edges", kind) == {"late": 0, "worst_ns": 0}


def test_starting_processes_takes_no_virtual_time(virtual_clock: Clock, tmp_path: Path) -> None:
    """Gcc starts cc1, as and ld by vfork and exec that no wrapper sees; prototypes lost up to 2,760 virtual s here."""
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    program = """
import subprocess, threading, time
threading.Thread(target=lambda: time.sleep(10), daemon=True).start()
began = time.monotonic()
for _ in range(8):
    subprocess.run(["gcc", "-O1", "empty.c", "-o", "empty"], check=True)
print(time.monotonic() - began)
"""
    done = virtual_clock.run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0.0


def test_two_runs_give_the_same_instants(virtual_clock: Clock) -> None:
    program = """
import asyncio, random, time
async def client(seed):
    source, stamps = random.Random(seed), []
    for _ in range(50):
        await asyncio.sleep(source.random() / 10)
        stamps.append(time.monotonic() - began)
    return stamps
async def main():
    print(await asyncio.gather(*(client(seed) for seed in range(20))))
began = time.monotonic()
asyncio.run(main())
"""
    first, second = (virtual_clock.run(sys.executable, "-c", program) for _ in range(2))
    assert first.returncode == 0, first.stderr

    def rounded(text: str) -> str:  # the clock's start differs: doubles differ in their last bits
        return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number.group()):.9f}", text)

    assert rounded(first.stdout) == rounded(second.stdout)


def test_virtual_seconds_cost_little_real_time_and_the_clock_is_consistent(virtual_clock: Clock) -> None:
    program = """
import time
real = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
wall, mono = time.time(), time.monotonic()
for _ in range(1000):
    time.sleep(3.6)
assert abs((time.time() - wall) - (time.monotonic() - mono)) < 1e-5
assert time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) - real < 30  # CPU clocks stay real
print(time.monotonic() - mono)
"""
    done = virtual_clock.run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(3600.001, abs=1e-5)


def test_programs_directory_is_complete() -> None:
    assert {path.stem for path in PROGRAMS.iterdir() if path.suffix in (".c", ".py")} == {
        "waits",
        "timers",
        "interrupted",
        "python_waits",
        "ping_pong",
        "forks",
        "skipped",
        "broken_proc",
        "edges",
    }
