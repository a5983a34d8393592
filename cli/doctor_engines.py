"""The engine environments that `hyperlapse doctor` looks at: which there are, and whether their hyperlapse is this one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from hyperlapse.cli.diagnosis import Finding, Status
from hyperlapse.cli.doctor_libraries import probe_findings
from hyperlapse.cli.engine_cache import cached_environments
from hyperlapse.cli.engine_environment import EngineEnvironment, EngineNotFoundError, find_engine, inspect_engine
from hyperlapse.cli.own_wheel import contents_sha256
from hyperlapse.cli.uv import UvError, find_uv

_LIMIT_S = 60
_ASK = "from hyperlapse.cli.own_wheel import contents_sha256; print(contents_sha256())"
_FOLDER = "import sysconfig; print(sysconfig.get_paths()['platlib'])"


def engine_findings(chosen: str | None, *, torch: bool) -> Iterator[Finding]:
    """The engine that `bench` would take, and those of the cache."""
    try:
        yield Finding("engines", "uv", Status.OK, find_uv())
    except UvError as error:
        yield Finding("engines", "uv", Status.WARNING, "not found", str(error))
    looked_at: set[Path] = set()
    try:
        engine = find_engine(chosen)
        looked_at.add(engine.python.parent.parent)
        yield from _engine(engine, torch=torch)
    except EngineNotFoundError as error:
        yield Finding("engines", "engine", Status.BROKEN if chosen else Status.WARNING, "none", str(error))
    for cached in cached_environments():
        if not cached.complete:
            remedy = f"hyperlapse engines remove {cached.folder.name}"
            yield Finding("engines", cached.folder.name, Status.WARNING, "unfinished: its creation was killed", remedy)
        elif cached.folder not in looked_at:
            try:
                yield from _engine(inspect_engine(cached.python), torch=torch, refreshes=True)
            except EngineNotFoundError as error:
                remedy = f"hyperlapse engines remove {cached.folder.name}"
                yield Finding("engines", cached.folder.name, Status.WARNING, str(error), remedy)


def _engine(engine: EngineEnvironment, *, torch: bool, refreshes: bool = False) -> Iterator[Finding]:
    name = f"{engine.name} {engine.version}"
    same = _ask(engine.python, _ASK) == contents_sha256()
    found = f"{engine.python}, torch {engine.versions.get('torch', 'none')}"
    if same or refreshes:
        note = "" if same else "; gets this hyperlapse at its next use"
        yield Finding("engines", name, Status.OK if same else Status.NOTE, found + note)
    else:
        yield Finding(
            "engines", name, Status.BROKEN, f"{found}: its hyperlapse is not this one",
            f"install the same one there (both share memory): uv pip install --python {engine.python} --no-deps "
            "--reinstall-package hyperlapse THE-SAME-WHEEL-OR-FOLDER",
        )  # fmt: skip
    folder = _ask(engine.python, _FOLDER)
    yield from probe_findings(name, engine.python, [Path(folder) / "nvidia"] if folder else [], torch=torch)


def _ask(python: Path, code: str) -> str:
    try:
        result = subprocess.run(
            [str(python), "-I", "-c", code], capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
