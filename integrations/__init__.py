"""One package per engine. Nothing outside this folder knows an engine's name, and nothing in it is imported by others
than `cli/` and the engine itself, through the engine's own extension points.

`cli/` imports this module, engines.py and environments.py, and no engine's own package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperlapse.integrations.engines import Command, Engine, PlainCommand, default_engine, engine_title, engines

__all__ = [
    "Command",
    "Engine",
    "adapt_command",
    "collective_kernels",
    "default_engine",
    "engine_title",
    "engines",
    "kernel_maps",
    "step_recipes",
]


def adapt_command(argv: Sequence[str], detail: str) -> Command:
    """The command as it must be started on virtual GPUs: an engine's server gets its worker, others are unchanged but for
    what their environment tells an engine that they may make themselves.

    detail: `kernel` or `step`. Imports no engine. Raises ValueError for what cannot be emulated.
    """
    environment: dict[str, str] = {}
    for engine in engines().values():
        adapted = engine.adapt_command(argv, detail)
        if adapted.engine:
            return adapted
        environment |= adapted.environment
    return PlainCommand(list(argv), environment)


def kernel_maps() -> list[Path]:
    """Every engine's map from kernel names to operators, as the predictor reads them."""
    return sorted(Path(__file__).parent.glob("*/kernels.yaml"))


def collective_kernels() -> list[Path]:
    """Every engine's kernels in which GPUs meet, as the shim reads them."""
    return sorted(Path(__file__).parent.glob("*/collective_kernels.yaml"))


def step_recipes() -> list[Path]:
    """Every engine's data about its steps (what it launches, held-out errors of its kernels), as the predictor reads it."""
    return sorted(Path(__file__).parent.glob("*/steps.yaml"))
