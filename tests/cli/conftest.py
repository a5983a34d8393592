"""A completions server in a process of its own, and the client script run as the launcher runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("completions_server.py")


@pytest.fixture
def server() -> Iterator[Callable[..., int]]:
    """start(*options) -> port."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> int:
        process = subprocess.Popen([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline().rsplit(" ", 1)[1])

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
