"""What a run is doing now, seen from outside: its clock, its processes, and what each of their threads waits for.

It must never stop or wake anybody: everything is read from the clock page without a lock, so that a line may be stale by
the time it is printed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hyperlapse.shim._core import core
from hyperlapse.shim.launcher import Statistics, run_directories

_NEVER_NS = 2**63 - 1  # HL_NEVER_NS in csrc/core/clock.h
_THREADS_MAX = 4096  # HL_SLOTS_MAX in csrc/core/page.h
_STATES = ("runs", "waits", "blocks in a call that is not virtual")  # hl_slot_state


class NoRunError(ValueError):
    """There is no such run; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ThreadView:
    """A thread that has waited on the virtual clock. waits_for: empty while it runs; deadline_ns: virtual, None for a wait
    without one; background: a timer that makes no jump of its own; jumps: made for this thread since the run began.
    """

    tid: int
    state: str
    waits_for: str
    deadline_ns: int | None
    background: bool
    jumps: int


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A participant. name: as the process calls itself."""

    pid: int
    name: str
    threads: tuple[ThreadView, ...]

    @property
    def running(self) -> int:
        """Threads that do not wait, as they themselves say: a hint, as everywhere in the clock page."""
        return sum(thread.state != "waits" for thread in self.threads)

    @property
    def next(self) -> ThreadView | None:
        """The thread with the earliest deadline; background timers do not count."""
        waiting = [each for each in self.threads if each.deadline_ns is not None and not each.background]
        return min(waiting, key=lambda each: each.deadline_ns or 0, default=None)

    @property
    def jumps(self) -> int:
        return sum(thread.jumps for thread in self.threads)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. real_ns: monotonic, of this host."""

    real_ns: int
    clock: Statistics
    processes: tuple[ProcessView, ...]


class Observer:
    """Looks at the run of a directory, for as long as it is mapped, which outlives the run. Raises NoRunError."""

    def __init__(self, run_directory: Path) -> None:
        if not (run_directory / "clock").is_file():
            raise NoRunError(f"{run_directory} is no run directory (it has no clock page)")
        os.environ.pop("HYPERLAPSE_RUN_DIR", None)  # an observer is no participant
        self._core = core()
        self._directory = run_directory
        self._page: Any = self._core.lib.hl_page_map(os.fsencode(run_directory))
        if not self._page:
            raise NoRunError(f"the clock page in {run_directory} is of another version of hyperlapse")
        self._views: Any = self._core.ffi.new("hl_thread_view[]", _THREADS_MAX)

    @property
    def ended(self) -> bool:
        return not (self._directory / "clock").exists()

    def look(self) -> Snapshot:
        lib, ffi = self._core.lib, self._core.ffi
        counted = ffi.new("hl_statistics *")
        lib.hl_control_statistics(self._page, counted)
        clock = Statistics.of(counted)
        threads: dict[int, list[ThreadView]] = {}
        pids = ffi.new("int32_t[]", 512)
        for index in range(lib.hl_control_processes(self._page, pids, 512)):
            threads[pids[index]] = []
        for index in range(lib.hl_control_threads(self._page, self._views, _THREADS_MAX)):
            view = self._views[index]
            waits = view.state == 1
            threads.setdefault(view.pid, []).append(
                ThreadView(
                    view.tid,
                    _STATES[view.state] if view.state < len(_STATES) else "?",
                    ffi.string(lib.hl_clock_reason_text(view.reason)).decode() if waits else "",
                    view.deadline_ns if waits and view.deadline_ns != _NEVER_NS else None,
                    bool(view.lazy),
                    view.jumps,
                )
            )
        processes = tuple(ProcessView(pid, _name(pid), tuple(found)) for pid, found in sorted(threads.items()))
        return Snapshot(time.monotonic_ns(), clock, tuple(each for each in processes if each.name))


def only_run() -> Path:
    """The directory of the one run on this host. Raises NoRunError for none and for several."""
    found = run_directories()
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoRunError("no run on this host: start one with `hyperlapse run` or `hyperlapse bench`")
    listed = "\n".join(f"  hyperlapse top {each}" for each in found)
    raise NoRunError(f"{len(found)} runs on this host: name one\n{listed}")


def _name(pid: int) -> str:
    """What the process calls itself; empty for one that has ended."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        title = process.name()
    except psutil.Error:
        return ""
    if words and words[0].startswith(title):  # a title that it gave itself
        return words[0]
    if words and Path(words[0]).name.startswith("python"):  # what it runs says more
        rest = [word for word in words[1:] if not word.startswith("-") or word in ("-c", "-m")]
        words = rest or words
    return " ".join([Path(words[0]).name, *words[1:2]] if words else [title])[:60]
