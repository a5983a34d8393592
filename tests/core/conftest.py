"""Fixtures of the core's tests: the library, a run directory with devices and a real clock, and a service to price.

The installed library is used. An editable install does not rebuild by itself, so where a source is newer than the
library, or there is no library, one is compiled for the session.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.shim import _core, devices, pricing

ROOT = Path(__file__).resolve().parents[2]

GAP_NS = 1470
GRAPH_GAP_NS = 490
GRAPH_LAUNCH_NS = 1400


@pytest.fixture(scope="session", autouse=True)
def core_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the core library that the tests use; `core()` returns it too."""
    path = _core.library(_core.CORE_LIBRARY)
    newest = max(source.stat().st_mtime for source in (ROOT / "csrc/core").iterdir())
    if not path.exists() or path.stat().st_mtime < newest:
        path = tmp_path_factory.mktemp("core") / _core.CORE_LIBRARY
        sources = [str(source) for source in sorted((ROOT / "csrc/core").glob("*.c"))]
        flags = [
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-D_GNU_SOURCE",
            "-fPIC",
            "-fvisibility=hidden",
        ]
        subprocess.run(["cc", *flags, "-shared", "-o", str(path), *sources, "-lpthread", "-ldl"], check=True)
        bound = _core.Core(path)
        _core.core.cache_clear()
        _core.core = pricing.core = devices.core = lambda: bound  # type: ignore[assignment]
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with two H100s and no clock: time is real."""
    facts = devices.facts_of(devices.load("h100-sxm-80gb"), 2)
    assert _core.core().lib.hl_device_segment_create(os.fsencode(tmp_path), facts, 2) == 0
    return tmp_path


@pytest.fixture
def core(run_dir: Path) -> Any:
    """The core in this process, attached to a fresh run."""
    pricing.attach(run_dir)
    return _core.core()


class Service:
    """A pricing service in a thread of the test. Each launch costs what `price` says; `asked` has them in order."""

    def __init__(self, run_dir: Path, price: Callable[[pricing.Launch], pricing.PriceLike]) -> None:
        self.asked: list[pricing.Launch] = []
        self._price = price
        self._stop = threading.Event()
        self._run_dir = run_dir
        self.gate = threading.Event()
        self.gate.set()
        self.report: pricing.ServiceReport | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def price_launch(self, launch: pricing.Launch) -> pricing.PriceLike:
        self.asked.append(launch)
        self.gate.wait(120)
        return self._price(launch)

    def _serve(self) -> None:
        # `serve` would map the segment anew, and the tests' own streams live in the present mapping
        service = pricing._Service(_core.core(), self)
        while not self._stop.is_set():
            service.answer_some(20)
        self.report = pricing.ServiceReport(service.answered, dict(service.unknown), dict(service.failed))

    def stop(self) -> pricing.ServiceReport:
        self.gate.set()
        self._stop.set()
        self._thread.join(120)
        assert self.report is not None
        return self.report


def measured(duration_ns: int, depends: int = 0) -> pricing.Price:
    return pricing.Price(duration_ns, (duration_ns, 0, 0, 0, 0), depends)


@pytest.fixture
def service(core: Any, run_dir: Path) -> Iterator[Callable[..., Service]]:
    """Starts services; without an argument every launch costs args[0] ns, measured."""
    started: list[Service] = []

    def start(price: Callable[[pricing.Launch], pricing.PriceLike] | None = None) -> Service:
        started.append(Service(run_dir, price or (lambda launch: measured(launch.args[0]))))
        return started[-1]

    yield start
    for each in started:
        each.stop()


class Launcher:
    """Launches with names that live as long as the process, as the core asks."""

    names: dict[str, Any] = {}  # noqa: RUF012 - shared on purpose: the core keeps their addresses

    def __init__(self, core: Any) -> None:
        self._core = core

    def __call__(self, kind: str, name: str, *args: int, device: int = 0) -> Any:
        kept = self.names.setdefault(name, self._core.ffi.new("char[]", name.encode()))
        number = {text: value for value, text in pricing.KINDS.items()}[kind]
        return self._core.ffi.new("hl_launch *", {"kind": number, "device": device, "name": kept, "arg": args})


@pytest.fixture
def launch(core: Any) -> Launcher:
    return Launcher(core)


@pytest.fixture
def program(run_dir: Path, core_library: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a Python program in a process of its own, attached to the run; it finds `ffi`, `lib` and `launch`."""
    preamble = f"""
        import os, sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
        from hyperlapse.shim import _core, devices, pricing
        bound = _core.Core(Path({str(core_library)!r}))
        _core.core = pricing.core = devices.core = lambda: bound
        from conftest import Launcher
        core = _core.core()
        ffi, lib = core.ffi, core.lib
        launch = Launcher(core)
        def say(*words): print(*words, flush=True)
    """

    def start(body: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "HYPERLAPSE_RUN_DIR": str(run_dir)}
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(body)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start
