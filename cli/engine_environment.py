"""Finds the Python that the serving engine runs in, and says what is installed there.

Why: the engine has an environment of its own (its torch, its CUDA packages); the launcher runs in another one. It must
never import the engine to ask for its version: that takes ten seconds and may fail for reasons of its own, so versions
come from package metadata, read by a short-lived interpreter of that environment.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hyperlapse.integrations import default_engine, engines
from hyperlapse.integrations.environments import EngineReleaseError, parse_release

if TYPE_CHECKING:
    from hyperlapse.cli.progress import Progress
    from hyperlapse.integrations import Engine

ENVIRONMENT_VARIABLE = "HYPERLAPSE_ENGINE_PYTHON"
_QUERY_LIMIT_S = 60
# The engine's folder is asked for, too: whether the integration fits is read from its sources.
_QUERY = """
import importlib.metadata as m, json, platform, sys
found = {"versions": {"python": platform.python_version()}, "folders": {}}
for name in sys.argv[1:]:
    try:
        found["versions"][name] = m.version(name)
        found["folders"][name] = str(m.distribution(name).locate_file(name))
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class EngineNotFoundError(Exception):
    """No usable engine environment; the text says where it was looked for and what to do."""


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """An interpreter, and the versions and folders of what matters to a result that is installed with it."""

    python: Path
    versions: Mapping[str, str]
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """The first known engine that is installed there."""
        return next(engine for name, engine in engines().items() if name in self.versions)

    @property
    def command(self) -> list[str]:
        """The engine's stock command line of this environment."""
        return self.engine.command(self.python)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def version(self) -> str:
        return self.versions[self.name]

    @property
    def folder(self) -> Path:
        """The engine's package."""
        return Path(self.folders[self.name])


def find_engine(
    explicit: str | None, environ: Mapping[str, str] = os.environ, progress: Progress | None = None
) -> EngineEnvironment:
    """The engine environment: `explicit` (--engine), $HYPERLAPSE_ENGINE_PYTHON, ./.venv-NAME, this interpreter, the
    newest of the cache.

    `explicit` and the variable name a release (NAME==VERSION), whose environment is made where it is missing, or an
    environment's folder or its Python. Raises EngineNotFoundError.
    """
    if explicit:
        return inspect_engine(_chosen(explicit, "--engine", progress))
    if value := environ.get(ENVIRONMENT_VARIABLE):
        return inspect_engine(_chosen(value, f"${ENVIRONMENT_VARIABLE}", progress))
    for engine in engines().values():
        if Path(engine.local_environment).is_dir():
            return inspect_engine(_python_in(Path(engine.local_environment), f"./{engine.local_environment}"))
    if any(importlib.util.find_spec(name) is not None for name in engines()):
        return inspect_engine(Path(sys.executable))
    from hyperlapse.cli.engine_cache import newest_complete

    if (cached := newest_complete()) is not None:
        return inspect_engine(_chosen(f"{cached.engine}=={cached.version}", "the cache of engines", progress))
    folders = _or(f"./{engine.local_environment}" for engine in engines().values())
    raise EngineNotFoundError(
        f"no environment with {_titles()} found: there is no {folders}, none is installed beside hyperlapse, and `hyperlapse "
        f"engines` has made none. --engine {default_engine().name} makes one (about 10 GB, once), --engine PATH or "
        f"{ENVIRONMENT_VARIABLE}=PATH names one that exists."
    )


def _titles() -> str:
    return _or(engine.title for engine in engines().values())


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _chosen(text: str, source: str, progress: Progress | None) -> Path:
    """The Python that a release or a path names. A path that exists wins: a folder may have an engine's name."""
    if not Path(text).exists():
        from hyperlapse.cli.engine_cache import EngineCacheError, ensure

        try:
            release = parse_release(text)
            if release is not None:
                return ensure(release, progress)
        except (EngineReleaseError, EngineCacheError) as error:
            raise EngineNotFoundError(f"{source} {text}: {error}") from None
    return _python_in(Path(text), source)


def _python_in(path: Path, source: str) -> Path:
    candidate = path / "bin" / "python" if path.is_dir() else path
    if not candidate.is_file() or not os.access(candidate, os.X_OK):
        raise EngineNotFoundError(f"{source} names {path}: there is no Python at {candidate}")
    # Not resolve(): the symbolic link is what makes an environment's interpreter find its packages.
    return candidate.absolute()


def inspect_engine(python: Path) -> EngineEnvironment:
    """What is installed beside `python`. Raises EngineNotFoundError when that is no engine, or lacks hyperlapse."""
    asked = (engine.packages for engine in engines().values())
    query = [str(python), "-I", "-c", _QUERY, *dict.fromkeys(itertools.chain(*asked))]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineNotFoundError(f"{python} does not run: {error}") from None
    if result.returncode != 0:
        said = result.stderr.strip()[-500:] or f"exit status {result.returncode}"
        raise EngineNotFoundError(f"{python} does not run: {said}")
    try:
        answer = json.loads(result.stdout)
        found = EngineEnvironment(python, answer["versions"], answer["folders"])
    except (ValueError, KeyError, TypeError):
        raise EngineNotFoundError(
            f"{python} is no Python: asked for its packages, it printed {result.stdout[:80]!r}"
        ) from None
    if not any(name in found.versions for name in engines()):
        raise EngineNotFoundError(
            f"{python} has no {_titles()}: install it there, or name another one with --engine PATH"
        )
    if "hyperlapse" not in found.versions:
        raise EngineNotFoundError(
            f"{python} has {found.engine.title} but not hyperlapse, which must stand beside it: install the same hyperlapse "
            f"there, or let --engine {found.name}==VERSION make an environment"
        )
    try:
        if found.name in found.folders:
            found.engine.check_sources(found.version, found.folder)
    except EngineReleaseError as error:
        raise EngineNotFoundError(f"{python}: {error}") from None
    return found
