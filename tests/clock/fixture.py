"""Each test of time runs twice: natively and on the virtual clock, with the same assertions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
HYPERLAPSE = [sys.executable, "-m", "hyperlapse.cli.main"]
LIMIT_S = 60


@dataclass(frozen=True)
class Clock:
    """Runs a program natively or on the virtual clock."""

    virtual: bool
    build: Path

    def command(self, command: Sequence[str]) -> list[str]:
        return [*HYPERLAPSE, "run", "--gpu", "none", "--", *command] if self.virtual else list(command)

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(command), capture_output=True, text=True, timeout=LIMIT_S, check=False, **options
        )

    def compiled(self, name: str) -> str:
        """tests/clock/programs/NAME.c, compiled once a session."""
        program = self.build / name
        if not program.exists():
            subprocess.run(["gcc", "-std=gnu11", "-O1", "-pthread", "-o", program, PROGRAMS / f"{name}.c"], check=True)
        return str(program)

    def measure(self, name: str, *arguments: str) -> dict[str, float]:
        """What a program of tests/clock/programs prints as JSON: {case: elapsed seconds}."""
        command = (
            [self.compiled(name)]
            if (PROGRAMS / f"{name}.c").exists()
            else [sys.executable, str(PROGRAMS / f"{name}.py")]
        )
        done = self.run(*command, *arguments)
        assert done.returncode == 0, done.stderr
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def assert_elapsed(self, elapsed_s: float, expected_s: float) -> None:
        """Not early; on the virtual clock, not later than the kernel's own 1 µs (a busy machine is late natively)."""
        assert elapsed_s >= expected_s - 1e-9
        assert not self.virtual or elapsed_s <= expected_s + 5e-6


@pytest.fixture(scope="session")
def build_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock-programs")


@pytest.fixture(params=["native", "virtual"])
def clock(request: pytest.FixtureRequest, build_directory: Path) -> Clock:
    return Clock(request.param == "virtual", build_directory)


@pytest.fixture
def virtual_clock(build_directory: Path) -> Clock:
    return Clock(True, build_directory)
