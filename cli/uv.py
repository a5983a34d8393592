"""Runs uv, the installer that makes engine environments: where it is, what it says, and its end with ours.

It must never leave an installer running: an interrupt ends uv before it goes on to the caller.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

_END_LIMIT_S = 5.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class UvError(Exception):
    """uv is missing or failed; the text holds its own words."""


def find_uv() -> str:
    """Uv beside this Python, in its environment, or on PATH. Raises UvError."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise UvError(
            "uv makes the engine environments and was found neither beside this Python nor on PATH: pip install uv"
        )
    return found


def run_uv(
    command: Sequence[str], lock: IO[str], tell: Callable[[str], None] | None = None, *, text: str | None = None
) -> str:
    """What uv prints. Its messages go to `tell` line by line; `text` is its standard input; `lock` stays locked while
    uv lives. Raises UvError with its last messages.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write((text or "").encode())
        given.seek(0)
        process = subprocess.Popen(
            list(command),
            stdin=given,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        assert process.stderr is not None
        try:
            messages = []
            for raw in process.stderr:
                line = _COLOURS.sub("", raw).strip()
                if line:
                    messages.append(line)
                    if tell is not None:
                        tell(line)
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        if status != 0:
            raise UvError("uv failed: " + "\n".join(messages[-15:] or [f"exit status {status}"]))
        output.seek(0)
        return output.read().decode("utf-8", "replace")


def _end(process: subprocess.Popen[str]) -> None:
    """Ends uv and the builds that it started: they are one process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_LIMIT_S)
