"""One finding of `hyperlapse doctor`: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.StrEnum):
    """`broken`: a run cannot be trusted or does not start; `warning`: some will not; `note`: good to know."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """remedy: what to do, never empty for a warning or something broken."""

    group: str
    name: str
    status: Status
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status in (Status.WARNING, Status.BROKEN) and not self.remedy:
            raise ValueError(f"{self.name}: {self.status} without a remedy")
