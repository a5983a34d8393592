"""Follows a growing log file: its new lines, when they came, and its last ones for an error message.

Why: the launcher learns from the server's and the client's logs how far they are. Reading a file costs the writers
nothing, while any question over HTTP or a pipe that fills would take part in the run. It must never read the whole file
again at each look.
"""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 64 * 1024
# An exception's last line, or a message of ours, behind the process name and log header that vLLM puts before it.
_ERROR = re.compile(
    r"(?:\([^)]*\)\s)?(?:(?:ERROR|CRITICAL)\s.*?\]\s)?"
    r"(?P<text>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception):\s.*|hyperlapse: .*)"
)


class LogFollower:
    """The lines of a file as they appear. A file that does not exist yet has no lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""

    def new_lines(self) -> list[str]:
        """The complete lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a file; none when it does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:]


def error_lines(path: Path, count: int) -> list[str]:
    """The last `count` different errors in a log: the last lines of tracebacks, and messages of hyperlapse.

    A server of several processes ends with the traceback of the one that noticed; the cause stands above it.
    """
    found: dict[str, None] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if match := _ERROR.match(line):
                    text = match["text"].strip()
                    found.pop(text, None)
                    found[text] = None
    except FileNotFoundError:
        return []
    return list(found)[-count:]
