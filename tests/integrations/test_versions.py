"""What an engine must have, asked of source files; the real versions are asked in tests/engines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hyperlapse.integrations.vllm import versions
from hyperlapse.integrations.vllm.versions import (
    NEEDS,
    RUNNER_NEEDS,
    Need,
    UnsupportedVersionError,
    missing_in,
    runner_in,
    verdict,
)

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
    monkeypatch.setattr(versions, "RUNNER_NEEDS", {"V1": (), "V2": ()})
    assert "never tested" in verdict("0.99.0", package)
    assert verdict("0.23.0+cu130", package) == ""


def test_each_need_is_named_once() -> None:
    for needs in (NEEDS, *RUNNER_NEEDS.values()):
        assert len({(need.file, need.name) for need in needs}) == len(needs)


@pytest.mark.parametrize(
    ("declared", "runner", "lacks", "not_asked_for"),
    [
        ("compute_hash = None", "V1", "vllm/v1/cudagraph_dispatcher.py", "vllm/v1/worker/gpu/async_utils.py"),
        ("use_v2_model_runner = True", "V2", "vllm/v1/worker/gpu/async_utils.py", "vllm/v1/cudagraph_dispatcher.py"),
    ],
)
def test_the_configuration_tells_the_model_runner(
    package: Path, declared: str, runner: str, lacks: str, not_asked_for: str
) -> None:
    (package / "config").mkdir()
    (package / "config" / "vllm.py").write_text(f"class VllmConfig:\n    {declared}\n", encoding="utf-8")
    assert runner_in(package) == runner
    missing = missing_in(package)
    assert lacks in missing
    assert not_asked_for not in missing


def test_older_engines_answer_under_their_own_names() -> None:
    old, new = SimpleNamespace(logprobs=3), SimpleNamespace(logprobs=3, num_logprobs=5)
    assert (versions.asked_logprobs(old), versions.asked_logprobs(new)) == (3, 5)
    old, new = SimpleNamespace(num_waiting_reqs=2), SimpleNamespace(num_waiting_reqs=2, num_skipped_waiting_reqs=4)
    assert (versions.waiting_requests(old), versions.waiting_requests(new)) == (2, 6)
    assert versions.user_chose_block_size(SimpleNamespace(block_size=16))
    assert not versions.user_chose_block_size(SimpleNamespace(user_specified_block_size=False))


def test_version_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: None)
    versions.check_version.cache_clear()
    with pytest.raises(RuntimeError, match="not installed"):
        versions.check_version()
    monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0+cu130")
    assert versions.check_version() == "0.32.0+cu130"
    versions.check_version.cache_clear()
