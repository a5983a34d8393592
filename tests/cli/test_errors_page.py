"""docs/errors.md holds no message that the sources no longer have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "errors.md"
FOLDERS = ("cli", "shim", "predictor", "integrations", "coordinator", "csrc")


def messages() -> list[str]:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.fixture(scope="module")
def sources() -> str:
    """Every source, with string literals that are written in pieces put together."""
    paths = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".c")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("message", messages())
def test_the_message_is_in_the_sources(message: str, sources: str) -> None:
    for part in message.split("…"):
        assert part.strip() in sources, part


def test_the_page_has_its_tables() -> None:
    assert len(messages()) > 40
