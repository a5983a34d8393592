"""What an engine must have, asked of source files; the real versions are asked in tests/engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlapse.integrations.vllm import versions
from hyperlapse.integrations.vllm.versions import NEEDS, Need, UnsupportedVersionError, missing_in, verdict

SOURCE = """
class Base:
    declared: int = 0
    plain = 1

    def __init__(self, first, *, second=0):
        self.assigned = first
        self.typed: int = second
        if first:
            self.deep = second
        other.foreign = 1

    async def later(self):
        pass


def free(a, /, b, *, c):
    pass
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "base.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Base", ("declared", "plain", "assigned", "typed", "deep", "later", "__init__")),
        ("Base.__init__", ("first", "second")),
        ("free", ("a", "b", "c")),
        ("Base.later", ()),
    ],
)
def test_what_is_there_is_found(package: Path, name: str, parts: tuple[str, ...]) -> None:
    assert Need("v1/base.py", name, parts).missing(package) == []


@pytest.mark.parametrize(
    ("need", "missing"),
    [
        (Need("v1/none.py", "Base"), "vllm/v1/none.py"),
        (Need("v1/base.py", "Other"), "Other in vllm/v1/base.py"),
        (Need("v1/base.py", "Base.gone"), "Base.gone in vllm/v1/base.py"),
        (Need("v1/base.py", "Base", ("foreign",)), "Base.foreign in vllm/v1/base.py"),
        (Need("v1/base.py", "free", ("d",)), "free.d in vllm/v1/base.py"),
    ],
)
def test_what_is_missing_is_named(package: Path, need: Need, missing: str) -> None:
    assert need.missing(package) == [missing]


def test_an_engine_that_lacks_something_is_refused_by_its_name(package: Path) -> None:
    assert missing_in(package)
    with pytest.raises(UnsupportedVersionError) as caught:
        verdict("0.99.0", package)
    text = str(caught.value)
    assert "vLLM 0.99.0" in text
    assert "vllm/v1/core/sched/output.py" in text
    assert all(version in text for version in versions.TESTED_VERSIONS)


def test_an_untested_engine_that_has_everything_is_warned_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "NEEDS", (Need("v1/base.py", "Base"),))
    assert "never tested" in verdict("0.99.0", package)
    assert verdict("0.23.0+cu130", package) == ""


def test_each_need_is_named_once() -> None:
    assert len({(need.file, need.name) for need in NEEDS}) == len(NEEDS)


def test_version_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: None)
    versions.check_version.cache_clear()
    with pytest.raises(RuntimeError, match="not installed"):
        versions.check_version()
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0+cu130")
    assert versions.check_version() == "0.32.0+cu130"
    versions.check_version.cache_clear()
