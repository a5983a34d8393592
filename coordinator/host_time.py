"""The host-time model: what the CPU side costs, in virtual nanoseconds, and where each number comes from.

In a frozen run host work takes no virtual time by itself, so it is charged explicitly, as *wait until now + cost* by the
thread that spends it, at visible acts that the integration names. The constants stand in ``host_time.toml`` beside this
module, each with unit and origin; nothing else in the project holds such a number.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "HYPERLAPSE_HOST_TIME"
CONSTANTS_FILE = Path(__file__).with_name("host_time.toml")


class HostTimeError(ValueError):
    """A constants file that cannot be used; the message names file and entry."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One charge. ``value_ns`` per ``unit`` (a request, a step, ...)."""

    name: str
    value_ns: int
    unit: str
    charged: str
    origin: str


def constants(engine: str, path: Path = CONSTANTS_FILE) -> list[Constant]:
    """The engine's constants in file order. Raises HostTimeError for a broken file or an engine without an entry."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise HostTimeError(f"{path}: {error}") from error
    if engine not in tables:
        raise HostTimeError(f"{path}: no host-time constants for {engine}; known: {', '.join(tables)}")
    found = []
    for name, entry in tables[engine].items():
        value = entry.get("value")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise HostTimeError(f"{path}: {engine}.{name}: value must be a whole number of ns >= 0, not {value!r}")
        missing = [key for key in ("unit", "charged", "origin") if not entry.get(key)]
        if missing:
            raise HostTimeError(f"{path}: {engine}.{name}: {', '.join(missing)} missing: a constant needs its origin")
        found.append(Constant(name, value, entry["unit"], entry["charged"], entry["origin"]))
    return found


def load(engine: str, path: Path = CONSTANTS_FILE) -> Mapping[str, int]:
    """Constant name -> ns, as an integration takes them. Raises HostTimeError."""
    return {constant.name: constant.value_ns for constant in constants(engine, path)}


def environment_of(costs: Mapping[str, int], directory: Path) -> dict[str, str]:
    """What hands these costs to an integration: a JSON file in ``directory`` and the variable that names it.

    Always sets the variable, so that a stale one of the caller's is never inherited.
    """
    if not costs:
        return {ENVIRONMENT_VARIABLE: ""}
    path = directory / "host-time.json"
    path.write_text(json.dumps(dict(costs)) + "\n", encoding="utf-8")
    return {ENVIRONMENT_VARIABLE: str(path)}
