"""Programs on virtual GPUs and the real clock: the libraries, a run directory, a pricing service that remembers.

The installed libraries are used. An editable install does not rebuild by itself, so where a source is newer than they
are, they are built for the session; on a machine that cannot build them, the installed ones are used all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment, EngineNotFoundError, find_engine
from hyperlapse.shim import _core, collective_kernels, devices, environment, pricing

ROOT = Path(__file__).resolve().parents[2]
GEMM_NS, OTHER_NS = 40_000, 2_000


def builders() -> list[str]:
    """Paths of cmake and ninja, on PATH or beside this Python; fewer where one is missing."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return [path for name in ("cmake", "ninja") if (path := shutil.which(name, path=places))]


def build(folder: Path, *options: str) -> Path:
    """Builds our C libraries into a folder; the folder that they are installed in."""
    cmake, ninja = builders()
    for command in (
        [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *options,
        ],
        [cmake, "--build", str(folder), "--parallel", "2"],
        [cmake, "--install", str(folder), "--prefix", str(folder / "installed")],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return folder / "installed" / "hyperlapse" / "shim" / "lib"


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with our C libraries."""
    path = _core.library("libhyperlapse_preload.so")
    newest = max(
        source.stat().st_mtime for source in (ROOT / "csrc").rglob("*") if source.suffix in {".c", ".h", ".map"}
    )
    if path.exists() and path.stat().st_mtime >= newest:
        return path.parent
    if len(builders()) < 2:
        if not path.exists():
            pytest.skip("our C libraries are not installed, and there is no cmake and ninja to build them with")
        warnings.warn(
            "no cmake and ninja: tested are the installed C libraries, which are older than csrc", stacklevel=1
        )
        return path.parent
    folder = build(tmp_path_factory.mktemp("build"))
    patch = pytest.MonkeyPatch()
    for module in (_core, environment):
        patch.setattr(module, "library", lambda name: folder / name)
    bound = _core.Core(folder / _core.CORE_LIBRARY)
    for module in (_core, devices, pricing):
        patch.setattr(module, "core", lambda: bound)
    return folder


@pytest.fixture(scope="session")
def engine() -> EngineEnvironment:
    try:
        return find_engine(None)
    except EngineNotFoundError as error:
        pytest.skip(str(error))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program did; launches: those that were priced, in the order in which they were asked for."""

    status: int
    output: str
    errors: str
    launches: tuple[pricing.Launch, ...]

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class _Predictor:
    def __init__(self) -> None:
        self.asked: list[pricing.Launch] = []

    def price_launch(self, launch: pricing.Launch) -> pricing.Price:
        self.asked.append(launch)
        duration_ns = GEMM_NS if launch.kind == "gemm" else OTHER_NS
        return pricing.Price(duration_ns, (duration_ns, 0, 0, 0, 0))


@pytest.fixture(scope="session")
def run_program(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Runs Python code on virtual GPUs, H100s unless told otherwise; `python` is the interpreter, `ok`: it must succeed,
    `adapt` changes its environment, `collectives`: YAML of kernels in which GPUs meet.
    """

    def run(
        code: str,
        *,
        gpus: int = 1,
        gpu: str = "h100-sxm-80gb",
        python: Path = Path(sys.executable),
        extra: Mapping[str, str] | None = None,
        collectives: str | None = None,
        adapt: Callable[[dict[str, str]], dict[str, str]] = lambda variables: variables,
        ok: bool = True,
    ) -> Outcome:
        folder = tmp_path_factory.mktemp("run")
        facts = devices.facts_of(devices.load(gpu), gpus)
        assert _core.core().lib.hl_device_segment_create(os.fsencode(folder), facts, gpus) == 0
        rules = folder / "rules.yaml"
        rules.write_text(textwrap.dedent(collectives or "version: 1\nkernels: []"))
        collective_kernels.publish(folder, [rules])
        predictor, stop = _Predictor(), threading.Event()
        service = threading.Thread(target=pricing.serve, args=(folder, predictor, stop))
        service.start()
        try:
            variables = adapt(environment.participant_environment(folder, {**os.environ, **(extra or {})}))
            result = subprocess.run(
                [str(python), "-c", textwrap.dedent(code)],
                env=variables,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        finally:
            stop.set()
            service.join()
        if ok:
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return Outcome(result.returncode, result.stdout, result.stderr, tuple(predictor.asked))

    return run


@pytest.fixture
def run_outside(libraries: Path) -> Callable[[str], Outcome]:
    """Runs Python code with our libraries loaded, but in no run."""

    def run(code: str) -> Outcome:
        variables = {name: value for name, value in os.environ.items() if name != environment.RUN_DIRECTORY_VARIABLE}
        variables["LD_PRELOAD"] = str(libraries / "libhyperlapse_preload.so")
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Outcome(result.returncode, result.stdout, result.stderr, ())

    return run
