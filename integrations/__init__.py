"""One package per engine. Nothing outside this folder knows an engine's name, and nothing in it is imported by others
than `cli/` and the engine itself, through the engine's own extension points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Command(Protocol):
    """A command line and what is added to its environment; engine: its name, empty for a command of none."""

    @property
    def engine(self) -> str: ...

    @property
    def argv(self) -> list[str]: ...

    @property
    def environment(self) -> dict[str, str]: ...


def adapt_command(argv: Sequence[str], detail: str) -> Command:
    """The command as it must be started on virtual GPUs: an engine's server gets its worker, others are unchanged.

    detail: `kernel` or `step`. Imports no engine.
    """
    from hyperlapse.integrations import vllm

    return vllm.adapt_command(argv, detail)


def kernel_maps() -> list[Path]:
    """Every engine's map from kernel names to operators, as the predictor reads them."""
    return sorted(Path(__file__).parent.glob("*/kernels.yaml"))


def step_recipes() -> list[Path]:
    """Every engine's data about its steps (what it launches, held-out errors of its kernels), as the predictor reads it."""
    return sorted(Path(__file__).parent.glob("*/steps.yaml"))
