"""Finds the Python that the serving engine runs in, and says what is installed there.

Why: the engine has an environment of its own (its torch, its CUDA packages); the launcher runs in another one. It must
never import the engine to ask for its version: that takes ten seconds and may fail for reasons of its own, so versions
come from package metadata, read by a short-lived interpreter of that environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperlapse.cli.progress import Progress

ENVIRONMENT_VARIABLE = "HYPERLAPSE_ENGINE_PYTHON"
LOCAL_ENVIRONMENT = ".venv-vllm"
PACKAGES = ("vllm", "torch", "hyperlapse", "aiohttp", "transformers")
_QUERY_LIMIT_S = 60
_QUERY = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
if "vllm" in found:
    found["folder"] = str(m.distribution("vllm").locate_file("vllm"))
print(json.dumps(found))
"""


class EngineNotFoundError(Exception):
    """No usable engine environment; the text says where it was looked for and what to do."""


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """An interpreter, its `vllm` command, and the versions installed with it."""

    python: Path
    versions: Mapping[str, str]

    @property
    def command(self) -> list[str]:
        """The stock `vllm` command line of this environment."""
        script = self.python.parent / "vllm"
        return [str(script)] if script.is_file() else [str(self.python), "-m", "vllm.entrypoints.cli.main"]

    @property
    def name(self) -> str:
        return "vllm"

    @property
    def version(self) -> str:
        return self.versions["vllm"]


def find_engine(
    explicit: str | None, environ: Mapping[str, str] = os.environ, progress: Progress | None = None
) -> EngineEnvironment:
    """The engine environment: `explicit` (--engine), $HYPERLAPSE_ENGINE_PYTHON, ./.venv-vllm, this interpreter, the
    newest of the cache.

    `explicit` and the variable name a release (vllm==0.32.0), whose environment is made where it is missing, or an
    environment's folder or its Python. Raises EngineNotFoundError.
    """
    if explicit:
        return inspect_engine(_chosen(explicit, "--engine", progress))
    if value := environ.get(ENVIRONMENT_VARIABLE):
        return inspect_engine(_chosen(value, f"${ENVIRONMENT_VARIABLE}", progress))
    local = Path(LOCAL_ENVIRONMENT)
    if local.is_dir():
        return inspect_engine(_python_in(local, f"./{LOCAL_ENVIRONMENT}"))
    if importlib.util.find_spec("vllm") is not None:
        return inspect_engine(Path(sys.executable))
    from hyperlapse.cli.engine_cache import newest_complete

    if (cached := newest_complete()) is not None:
        return inspect_engine(_chosen(f"{cached.engine}=={cached.version}", "the cache of engines", progress))
    raise EngineNotFoundError(
        f"no environment with vLLM found: ./{LOCAL_ENVIRONMENT} does not exist, vLLM is not installed beside hyperlapse, and "
        "`hyperlapse engines` has made none. --engine vllm makes one (about 10 GB, once), --engine PATH or "
        f"{ENVIRONMENT_VARIABLE}=PATH names one that exists."
    )


def _chosen(text: str, source: str, progress: Progress | None) -> Path:
    """The Python that a release or a path names. A path that exists wins: a folder may have an engine's name."""
    if not Path(text).exists():
        from hyperlapse.cli.engine_cache import EngineCacheError, ensure
        from hyperlapse.integrations.environments import EngineReleaseError, parse_release

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
    query = [str(python), "-I", "-c", _QUERY, *PACKAGES]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineNotFoundError(f"{python} does not run: {error}") from None
    if result.returncode != 0:
        said = result.stderr.strip()[-500:] or f"exit status {result.returncode}"
        raise EngineNotFoundError(f"{python} does not run: {said}")
    try:
        versions = json.loads(result.stdout)
    except ValueError:
        raise EngineNotFoundError(
            f"{python} is no Python: asked for its packages, it printed {result.stdout[:80]!r}"
        ) from None
    if "vllm" not in versions:
        raise EngineNotFoundError(f"{python} has no vLLM: install it there, or name another one with --engine PATH")
    if "hyperlapse" not in versions:
        raise EngineNotFoundError(
            f"{python} has vLLM but not hyperlapse, which must stand beside it: install the same hyperlapse there, or let "
            "--engine vllm==VERSION make an environment"
        )
    from hyperlapse.integrations.environments import EngineReleaseError, check_sources

    folder = versions.pop("folder", None)
    try:
        if folder is not None:
            check_sources(versions["vllm"], Path(folder))
    except EngineReleaseError as error:
        raise EngineNotFoundError(f"{python}: {error}") from None
    return EngineEnvironment(python, versions)
