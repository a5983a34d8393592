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

ENVIRONMENT_VARIABLE = "HYPERLAPSE_ENGINE_PYTHON"
LOCAL_ENVIRONMENT = ".venv-vllm"
PACKAGES = ("vllm", "torch", "hyperlapse", "aiohttp", "transformers")
_QUERY = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
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
    def version(self) -> str:
        return self.versions["vllm"]


def find_engine(explicit: str | None, environ: Mapping[str, str] = os.environ) -> EngineEnvironment:
    """The engine environment: `explicit` (--engine), $HYPERLAPSE_ENGINE_PYTHON, ./.venv-vllm, this interpreter.

    `explicit` and the variable name an environment's folder or its Python. Raises EngineNotFoundError.
    """
    if explicit:
        return _inspect(_python_in(Path(explicit), "--engine"))
    if value := environ.get(ENVIRONMENT_VARIABLE):
        return _inspect(_python_in(Path(value), f"${ENVIRONMENT_VARIABLE}"))
    local = Path(LOCAL_ENVIRONMENT)
    if local.is_dir():
        return _inspect(_python_in(local, f"./{LOCAL_ENVIRONMENT}"))
    if importlib.util.find_spec("vllm") is not None:
        return _inspect(Path(sys.executable))
    raise EngineNotFoundError(
        f"no environment with vLLM found: ./{LOCAL_ENVIRONMENT} does not exist and vLLM is not installed beside "
        f"hyperlapse. Run `make demo` once, or name one with --engine PATH or {ENVIRONMENT_VARIABLE}=PATH."
    )


def _python_in(path: Path, source: str) -> Path:
    candidate = path / "bin" / "python" if path.is_dir() else path
    if not candidate.is_file() or not os.access(candidate, os.X_OK):
        raise EngineNotFoundError(f"{source} names {path}: there is no Python at {candidate}")
    # Not resolve(): the symbolic link is what makes an environment's interpreter find its packages.
    return candidate.absolute()


def _inspect(python: Path) -> EngineEnvironment:
    query = [str(python), "-I", "-c", _QUERY, *PACKAGES]
    result = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise EngineNotFoundError(f"{python} does not run: {result.stderr.strip()[-500:]}")
    versions = json.loads(result.stdout)
    if "vllm" not in versions:
        raise EngineNotFoundError(f"{python} has no vLLM: install it there, or name another one with --engine PATH")
    return EngineEnvironment(python, versions)
