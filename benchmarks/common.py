"""What the benchmark scripts share. Each script prints one row of the table of figures that the project must show."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# tests/des is no part of the installed package: it must stay independent of what it checks.
sys.path.insert(0, str(ROOT))


def verdict(good: bool) -> str:
    return "met" if good else "MISSED"


def finish(good: bool) -> None:
    """Ends the script: exit status 1 when the figure misses its bound."""
    sys.exit(0 if good else 1)
