"""Which releases of which engines an environment can be made for, and what goes into it.

Why: engine names may stand only in this package, so the command asks here what `--engine NAME==VERSION` means. It must
never import an engine nor touch the network: whether a release exists, its package index says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.integrations.engines import engines

NOT_YET = ("sglang",)
# All that the shim and the integrations import from beside themselves.
SHIM_REQUIREMENTS = ("cffi>=1.16", "numpy>=2.1,<3")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!_-]*")


class EngineReleaseError(ValueError):
    """A name that is an engine's, but no release that an environment can be made for; the text says what to write."""


@dataclass(frozen=True, slots=True)
class EngineRelease:
    """A release of an engine. requirements: what to install, the engine first; tested: by this version of Hyperlapse."""

    engine: str
    version: str
    requirements: tuple[str, ...]
    tested: bool
    tested_versions: tuple[str, ...]
    disk_bytes: int

    @property
    def name(self) -> str:
        return f"{self.engine}=={self.version}"


def parse_release(text: str) -> EngineRelease | None:
    """The release that `NAME==VERSION` names, or the newest tested one for a NAME alone. None when the text does not
    begin with an engine's name (it may then be a path). Raises EngineReleaseError.
    """
    found = _NAME.match(text.strip())
    if found is None:
        return None
    engine, rest = found[0].lower().replace("_", "-"), text.strip()[found.end() :].strip()
    if rest[:1] not in ("", "=", "<", ">", "!", "~", "@", "["):
        return None
    if engine in NOT_YET:
        raise EngineReleaseError(f"{engine} is not supported yet: this version knows {', '.join(engines())}")
    if engine not in engines():
        if rest.startswith("=="):
            raise EngineReleaseError(f"{engine} is no engine that hyperlapse knows: it knows {', '.join(engines())}")
        return None
    tested = engines()[engine].tested_versions
    version = rest.removeprefix("==").strip() if rest else tested[-1]
    if (rest and not rest.startswith("==")) or not _VERSION.fullmatch(version):
        raise EngineReleaseError(f"{text}: name one release, for example {engine}=={tested[-1]}")
    facts = _facts(engine)
    pins: dict[str, list[str]] = facts["pins"]
    return EngineRelease(
        engine,
        version,
        (f"{engine}=={version}", *pins.get(version, ()), *SHIM_REQUIREMENTS),
        version in tested,
        tested,
        int(facts["disk_bytes"]),
    )


def _facts(engine: str) -> dict[str, Any]:
    import yaml

    path = Path(__file__).with_name(engine) / "environments.yaml"
    facts: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return facts
