"""Every step of an engine, written by its worker and read by the launcher after the run.

Why: a report shows each step's virtual start, its duration and its batch, and only the worker knows them. The file is
mapped into the worker's memory: a record costs no system call, which would give up the interpreter's lock and let
threads change places, and it is in the page cache at once, so that no signal can lose it. Rejected: JSON lines (a
write each), and prices in the records (the price of a step is often not known when it is launched; the launcher
prices the batches again and compares).

It must never end a run: where the disk is full, the log stops, says so in the run's events, and no report is made of
it. It must never be written without being asked for (HYPERLAPSE_STEP_LOG, a folder).

Layout, little-endian: magic, the header's length and the header (a JSON object); then records: length of the whole
record (4 bytes), two instants (8 bytes each), the batch composition (ASCII). A length of 0 is the end.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ENVIRONMENT_VARIABLE = "HYPERLAPSE_STEP_LOG"
EVENT = "step-log"
MAGIC = b"HLSTEPS1"
PATTERN = "steps-*.bin"
GROW_BYTES = 1 << 20

_HEAD = struct.Struct("<8sI")
_RECORD = struct.Struct("<Iqq")


class StepLogError(Exception):
    """A file that is no step log; the message names it."""


class StepLog:
    """The log of one worker. Written by one thread."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._offset = 0
        self._open = True
        self._map = self._grown(GROW_BYTES)
        text = json.dumps(header).encode()
        _HEAD.pack_into(self._map, 0, MAGIC, len(text))
        self._offset = _HEAD.size + len(text)
        self._map[_HEAD.size : self._offset] = text

    @classmethod
    def of_run(cls, device: int, **header: Any) -> Self | None:
        """The log of this process's work on a device; None when no log was asked for. Raises OSError."""
        folder = os.environ.get(ENVIRONMENT_VARIABLE)
        if not folder:
            return None
        return cls(Path(folder, f"steps-{os.getpid()}-{device}.bin"), {"device": device, **header})

    def add(self, launch_ns: int, end_ns: int, batch: bytes) -> None:
        """A step that was launched and has ended. Instants are those of the virtual clock."""
        if not self._open:
            return
        length = _RECORD.size + len(batch)
        if self._offset + length + 4 > self._size:
            try:
                self._map = self._grown(self._size + max(GROW_BYTES, length + 4))
            except OSError as error:
                self._stop(error)
                return
        at, end = self._offset, self._offset + length
        self._map[at + _RECORD.size : end] = batch
        _RECORD.pack_into(self._map, at, length, launch_ns, end_ns)
        self._offset = end

    def _grown(self, size: int) -> mmap.mmap:
        # Space first: a write into a mapped hole of a full disk is a SIGBUS.
        os.posix_fallocate(self._file, self._size, size - self._size)
        self._size = size
        return mmap.mmap(self._file, size)

    def _stop(self, error: OSError) -> None:
        self._open = False
        from hyperlapse.shim._core import core

        core().lib.hl_report_event(EVENT.encode(), f"{self._path} cannot grow: {error.strerror}".encode())


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """launch_ns: when the engine launched it; end_ns: when its last work on the device ended; batch: the text of
    docs/batch-composition.md.
    """

    launch_ns: int
    end_ns: int
    batch: str


@dataclass(frozen=True, slots=True)
class LoggedSteps:
    """One worker's log. `header`: what the worker said of itself."""

    header: dict[str, Any]
    path: Path
    _first: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises StepLogError, OSError."""
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise StepLogError(f"{path} is no step log: it is cut off")
            magic, length = _HEAD.unpack(head)
            if magic != MAGIC:
                raise StepLogError(f"{path} is no step log of this version of hyperlapse")
            header = json.loads(file.read(length))
        return cls(header, path, _HEAD.size + length)

    def __iter__(self) -> Iterator[LoggedStep]:
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, size = self._first, len(data)
            while at + _RECORD.size <= size:
                length, launch_ns, end_ns = _RECORD.unpack_from(data, at)
                if length == 0:
                    return
                if length < _RECORD.size or at + length > size:
                    raise StepLogError(f"{self.path}: the record at byte {at} is broken")
                yield LoggedStep(launch_ns, end_ns, data[at + _RECORD.size : at + length].decode("ascii"))
                at += length


def read_logs(folder: Path) -> list[LoggedSteps]:
    """The logs in a folder, ordered by device and process."""
    logs = [LoggedSteps.open(path) for path in folder.glob(PATTERN)]
    return sorted(logs, key=lambda log: (log.header.get("device", 0), log.path.name))
