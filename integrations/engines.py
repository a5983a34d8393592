"""What the commands may know of an engine, one record for each, kept in that engine's own package (`<name>/engine.py`).

Why: a command serves, prices and reports whatever engine it is given, so a further engine must be a further package here
and no edit elsewhere. It must never import an engine, nor anything that the launcher's environment may lack.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol


class Command(Protocol):
    """A command line and what is added to its environment; engine: its name, empty for a command of none;
    tensor_parallel_size: how many GPUs share a layer of its model.
    """

    @property
    def engine(self) -> str: ...

    @property
    def argv(self) -> list[str]: ...

    @property
    def environment(self) -> dict[str, str]: ...

    @property
    def tensor_parallel_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlainCommand:
    """A command of no engine."""

    argv: list[str]
    environment: dict[str, str]
    engine: str = ""
    tensor_parallel_size: int = 1


@dataclass(frozen=True, slots=True)
class Engine:
    """name: of its package, its distribution and its program; title: as people write it; module: for `python -m`, where
    the program is missing; imports: what every start of its server imports; beside: further packages whose versions matter to
    a result.

    adapt_command: integrations.adapt_command for this engine. serve_args: its server's command, from the model's folder
    and the detail, with the keywords executable, served_model_name, host, port, gpus and extra; raises
    ValueError for flags that cannot be emulated. check_sources: raises EngineReleaseError when a version, whose package
    lies at a path, lacks what the integration needs. check_client: the same for what its own load generator must save.
    """

    name: str
    title: str
    module: str
    imports: tuple[str, ...]
    beside: tuple[str, ...]
    tested_versions: tuple[str, ...]
    adapt_command: Callable[..., Command]
    serve_args: Callable[..., Command]
    check_sources: Callable[[str, Path], None]
    check_client: Callable[[str, Path], None]

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions a result names."""
        return (self.name, *self.beside)

    @property
    def local_environment(self) -> str:
        """The folder that is looked for where a command is started."""
        return f".venv-{self.name}"

    def command(self, python: Path) -> list[str]:
        """The stock command line of the engine that is installed beside this Python."""
        program = python.parent / self.name
        return [str(program)] if program.is_file() else [str(python), "-m", self.module]

    def price_tables(self) -> str:
        """The name of this engine's kernels in the database of measured durations."""
        import yaml

        recipe = yaml.safe_load((Path(__file__).parent / self.name / "steps.yaml").read_text(encoding="utf-8"))
        return str(recipe["database"])


@functools.cache
def engines() -> Mapping[str, Engine]:
    """Every engine by name; the first is the one that is meant where none is named."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*/engine.py")):
        engine: Engine = importlib.import_module(f"hyperlapse.integrations.{path.parent.name}.engine").ENGINE
        found[engine.name] = engine
    return MappingProxyType(found)


def default_engine() -> Engine:
    return next(iter(engines().values()))


def engine_title(name: str) -> str:
    """An engine's name as people write it; the name itself for an engine of another version of Hyperlapse."""
    known = engines().get(name)
    return known.title if known else name
