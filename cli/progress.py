"""Progress of a long command on standard error: which phase it is in, and how many requests are done.

Why: a run takes minutes and its numbers come at the end. It must never write to standard output, which belongs to the
result, and must stay readable where standard error is a file: there each phase is one plain line and there is no bar.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self


class Progress(Protocol):
    """What a running command reports."""

    def phase(self, text: str) -> None:
        """A new phase begins."""

    def requests(self, done: int, total: int, virtual_s: float) -> None:
        """`done` of `total` requests are finished, `virtual_s` seconds into the measurement."""


class Silent:
    """Reports nothing."""

    def phase(self, text: str) -> None:
        pass

    def requests(self, done: int, total: int, virtual_s: float) -> None:
        pass


class TerminalProgress:
    """A bar on a terminal, plain lines elsewhere. Use it as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[virtual]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, visible=False, virtual="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, text: str) -> None:
        if not self._console.is_terminal:
            print(f"hyperlapse: {text}", file=sys.stderr, flush=True)
        self._bar.reset(self._task, total=None, description=text, visible=True, virtual="")

    def requests(self, done: int, total: int, virtual_s: float) -> None:
        self._bar.update(self._task, completed=done, total=total, virtual=f"{virtual_s:,.1f} s virtual")
