"""One run: its shared memory, its time-keeper, and the processes started on its clock.

The launcher is no participant. It lives on real time, starts and ends everything, and is the parent of all of it (a child
subreaper), so that nothing that a run started can outlive it or hide from its time-keeper.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from hyperlapse.shim._core import core, library
from hyperlapse.shim.collective_kernels import publish as publish_collective_kernels
from hyperlapse.shim.environment import participant_environment, service_environment

KEEPER = "hyperlapse-keeper"
_PR_SET_CHILD_SUBREAPER = 36
_START_LIMIT_S = 10.0
_REQUEST_LIMIT_MS = 10_000
_TERM_GRACE_S = 10.0
_LOOK_S = 0.02
_PREFIX = "hyperlapse-"
_SHARED_MEMORY_LEAST_BYTES = 8 << 20


class Mode(enum.IntEnum):
    """How the clock moves; the values of ``hl_clock_mode`` in csrc/core/page.h."""

    REAL = 0
    PARKED = 1
    FROZEN = 2
    FLOW = 3
    HELD = 4
    """Frozen and shared: asking the other hosts for the instant. The time-keeper's own, never asked for."""


class KeeperState(enum.IntEnum):
    STARTING = 0
    RUNNING = 1
    NO_PROGRESS = 2
    STOPPED = 3


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the time-keeper counted. Times in ns; counts since the run began."""

    now_ns: int
    mode: int
    keeper_state: int
    threads: int
    threads_max: int
    external_processes: int
    processes: int
    external_pid: int
    running: int
    holds: int
    jumps: int
    proofs: int
    proofs_refused: int
    second_pass_refused: int
    unwrapped_blocks: int
    spinner_kicks: int
    enumerations: int
    lazy_fires: int
    signals_repeated: int
    trigger_to_wake_ns_total: int
    proof_ns_total: int

    @classmethod
    def of(cls, raw: Any) -> Statistics:
        """From a ``hl_statistics *``."""
        return cls(**{field.name: int(getattr(raw, field.name)) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Event:
    """Something counted during the run: an unsupported call, an unknown kernel, a wait that is not virtual."""

    kind: str
    text: str
    count: int


def run_directories() -> list[Path]:
    """The folders of this user's runs on this host, oldest first. Those of a killed launcher may be among them."""
    found = [path.parent for path in _parent_directory().glob(f"{_PREFIX}*/clock") if path.stat().st_uid == os.getuid()]
    return sorted(found, key=lambda path: path.stat().st_ctime)


def _parent_directory() -> Path:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _make_directory() -> Path:
    """The run's folder. The files in it grow as they are used, and what finds no room then dies of SIGBUS: so a run
    starts only where there is room.
    """
    parent = _parent_directory()
    remedy = "free some of it; in a container give it at least 256 MiB (--shm-size)"
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < _SHARED_MEMORY_LEAST_BYTES:
        raise RunError(
            f"{parent} has {free_bytes >> 10:,} KiB left and a run needs {_SHARED_MEMORY_LEAST_BYTES >> 10:,}: {remedy}"
        )
    try:
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise RunError(f"no folder for the run in {parent}: {error.strerror}; {remedy}") from None


class Run:
    """Context manager of one run.

    gpu: device profile name or YAML path, None for a run without GPUs (the clock alone); gpus: how many;
    no_progress_s: real seconds after which a run in which nobody can go on is ended, 0 for never; outside: people or
    programs outside of the run may answer what its processes wait for (an idle server is then no deadlock);
    collective_kernels: what engines know of kernels in which GPUs meet (collective_kernels.py).
    Raises RunError when shared memory or the time-keeper cannot be had, devices.UnknownDevice for an unknown GPU.
    """

    def __init__(
        self,
        gpu: str | None = None,
        gpus: int = 1,
        *,
        no_progress_s: int = 10,
        outside: bool = False,
        collective_kernels: Iterable[Path] = (),
    ) -> None:
        self._core = core()
        self.gpu, self.gpus = gpu, gpus
        self._keeper: subprocess.Popen[bytes] | None = None
        self._services: list[subprocess.Popen[Any]] = []
        self._followed: set[int] = set()
        self._spawned: list[subprocess.Popen[bytes]] = []
        # Children that this process had before are none of the run's: they neither hold its clock nor end with it.
        self._foreign = {process.pid for process in psutil.Process().children()}
        self._page: Any = None
        facts = None
        if gpu is not None:
            from hyperlapse.shim import devices

            facts = devices.facts_of(devices.load(gpu), gpus)
        self.directory = _make_directory()
        try:
            if facts is not None:
                publish_collective_kernels(self.directory, collective_kernels)
            self._create(facts, no_progress_s, outside)
        except BaseException:
            self.close()
            raise

    def _create(self, facts: Any, no_progress_s: int, outside: bool) -> None:
        directory = str(self.directory).encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise RunError("this kernel has no child subreapers (PR_SET_CHILD_SUBREAPER): Linux 3.4 or newer is needed")
        status = self._core.lib.hl_page_create(directory, os.getpid())
        if status != 0:
            raise RunError(
                f"cannot create the clock page in {self.directory}: {os.strerror(-status)}; free some of /dev/shm"
            )
        if facts is not None:
            status = self._core.lib.hl_device_segment_create(directory, facts, self.gpus)
            if status != 0:
                raise RunError(
                    f"cannot create the device segment in {self.directory}: {os.strerror(-status)}; "
                    "in a container give /dev/shm at least 256 MiB (--shm-size)"
                )
        self._page = self._core.lib.hl_page_map(directory)
        self._core.lib.hl_control_options(self._page, no_progress_s, int(outside))
        for pid in self._foreign:
            if self._core.lib.hl_control_exempt(self._page, pid) != 0:
                raise RunError("this process has too many other children; start the run from a process of its own")
        keeper = library(KEEPER)
        if not keeper.exists():
            raise RunError(f"{keeper} is missing: install the package with pip, which builds it")
        # in a session of its own: a signal to the command's process group must not stop the clock first
        self._keeper = subprocess.Popen(
            [str(keeper), str(self.directory)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        limit = time.monotonic() + _START_LIMIT_S
        while self.statistics().keeper_state != KeeperState.RUNNING:
            if self._keeper.poll() is not None or time.monotonic() > limit:
                raise RunError(
                    f"the time-keeper did not start (exit status {self._keeper.poll()}); see its message above"
                )
            time.sleep(0.002)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment of a participant: this process's own, ``extra`` over it, and what puts it on the clock."""
        return participant_environment(
            self.directory, {**os.environ, **(extra or {})}, virtual_gpus=self.gpu is not None
        )

    def spawn(
        self, command: Sequence[str], extra_environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Starts a participant. ``options`` go to subprocess.Popen. Raises FileNotFoundError, PermissionError."""
        process: subprocess.Popen[bytes] = subprocess.Popen(
            list(command), env=self.environ(extra_environment), **options
        )
        self._spawned.append(process)
        return process

    def spawn_service(self, command: Sequence[str], *, followed: bool = False, **options: Any) -> subprocess.Popen[Any]:
        """Starts a helper of the launcher on real time, which never holds the clock (the pricing service, a node agent).

        followed: the caller sees by itself when it ends; else check() raises.
        """
        options.setdefault("stdin", subprocess.DEVNULL)
        # a session of its own: Ctrl-C is the command's, and prices are needed until it has ended
        process = subprocess.Popen(
            list(command), env=service_environment(self.directory, os.environ), start_new_session=True, **options
        )
        if self._core.lib.hl_control_exempt(self._page, process.pid) != 0:
            process.kill()
            raise RunError("too many services of one run; start a new run")
        self._services.append(process)
        if followed:
            self._followed.add(process.pid)
        return process

    def set_mode(self, mode: Mode, *, epoch_ns: int = 0) -> None:
        """Changes how the clock moves; ``epoch_ns`` > 0 also moves a stopped clock forward to that virtual
        instant, and its date to that of HL_PAGE_EPOCH_DATE_NS (csrc/core/page.h).
        """
        status = self._core.lib.hl_control_set_mode(self._page, int(mode), epoch_ns, _REQUEST_LIMIT_MS)
        if status != 0:
            raise RunError("the time-keeper does not answer; has it been killed?")

    def statistics(self) -> Statistics:
        raw = self._core.ffi.new("hl_statistics *")
        self._core.lib.hl_control_statistics(self._page, raw)
        return Statistics.of(raw)

    def now_ns(self) -> int:
        """The virtual CLOCK_MONOTONIC."""
        return self.statistics().now_ns

    def events(self) -> list[Event]:
        """What was counted so far, in the order of first appearance."""
        kind, text = self._core.ffi.new("char[32]"), self._core.ffi.new("char[200]")
        count = self._core.ffi.new("uint64_t *")
        found, index = [], 0
        while self._core.lib.hl_control_event(self._page, index, kind, text, count):
            found.append(
                Event(
                    self._core.ffi.string(kind).decode(), self._core.ffi.string(text).decode(errors="replace"), count[0]
                )
            )
            index += 1
        return found

    def participants(self) -> list[int]:
        """Process ids that are registered on the clock."""
        pids = self._core.ffi.new("int32_t[512]")
        return [pids[i] for i in range(self._core.lib.hl_control_processes(self._page, pids, 512))]

    def check(self) -> None:
        """Raises RunError when the run cannot go on: no progress, or one of its own parts died."""
        if self.statistics().keeper_state == KeeperState.NO_PROGRESS:
            raise RunError("the run makes no progress (report above)")
        if self._keeper is not None and self._keeper.poll() is not None:
            raise RunError(f"the time-keeper died (exit status {self._keeper.returncode}); the run cannot go on")
        for service in self._services:
            if service.pid not in self._followed and service.poll() is not None:
                raise RunError(f"the pricing service died (exit status {service.returncode}); see its message above")

    def _descendants(self) -> list[psutil.Process]:
        own = {process.pid for process in [self._keeper, *self._services] if process is not None}
        found = []
        for child in psutil.Process().children():
            if child.pid not in own | self._foreign:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += [child, *child.children(recursive=True)]
        return found

    def stop_processes(self) -> None:
        """Ends every participant: asks, on real time (their own shutdown timers must run), then kills."""
        alive = self._descendants()
        if alive and self._page is not None and self._keeper is not None and self._keeper.poll() is None:
            with contextlib.suppress(RunError):
                self.set_mode(Mode.REAL)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        self._wait_for(alive)
        alive = self._descendants()
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._wait_for(alive)
        self._reap_orphans()

    def _wait_for(self, processes: Sequence[psutil.Process]) -> None:
        """Waits for their end. A child of ours is reaped through its Popen: whoever reaps it takes its exit status away."""
        limit = time.monotonic() + _TERM_GRACE_S
        while time.monotonic() < limit:
            for process in self._spawned:
                process.poll()
            self._reap_orphans()
            if not any(process.is_running() for process in processes):
                return
            time.sleep(_LOOK_S)

    def _reap_orphans(self) -> None:
        """Orphans of the run became our children (subreaper); leave no zombies of theirs."""
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                ours = process.pid not in self._foreign and not self._is_popen(process.pid)
                if ours and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)

    def _is_popen(self, pid: int) -> bool:
        return any(p is not None and p.pid == pid for p in [self._keeper, *self._services, *self._spawned])

    def close(self) -> None:
        """Ends everything that the run started and removes its shared memory. May be called twice."""
        if self._page is not None:
            self.stop_processes()
        for process in [*self._services, self._keeper]:
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_TERM_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._services.clear()
        self._keeper = None
        if self._page is not None:
            self._core.lib.hl_control_unmap(self._page)
            self._page = None
        shutil.rmtree(self.directory, ignore_errors=True)


def exit_status(returncode: int) -> int:
    """The status a shell would show: 128 + signal for a process that a signal ended."""
    return 128 - returncode if returncode < 0 else returncode
