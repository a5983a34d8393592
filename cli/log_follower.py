"""Follows a growing log file: its new lines, when they came, and its last ones for an error message.

Why: the launcher learns from the server's and the client's logs how far they are. Reading a file costs the writers
nothing, while any question over HTTP or a pipe that fills would take part in the run. It must never read the whole file
again at each look.
"""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 64 * 1024


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
