"""Where the recordings lie, and a small file in their format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hyperlapse.validation.residency import COLUMNS, FOLDER_VARIABLE


@pytest.fixture
def recordings() -> Path:
    """The residency-vllm folder; tests that ask for it are skipped where it is absent."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "recorded"
    folder = Path(os.environ.get(FOLDER_VARIABLE) or beside) / "residency-vllm"
    if not folder.is_dir():
        pytest.skip(f"the recorded runs are not on this machine (no {folder}); set {FOLDER_VARIABLE} to their folder")
    return folder


def row(number: int, send_us: int, first_us: int, last_us: int, **changed: object) -> str:
    """A line of a recording; instants in microseconds."""
    values: dict[str, object] = dict(
        zip(COLUMNS, (number, 1000, 128, send_us, first_us, last_us, 130, "ok"), strict=True)
    )
    values.update(changed)
    return ",".join(str(value) for value in values.values())


def recording(folder: Path, *rows: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n", encoding="utf-8")
    return path
