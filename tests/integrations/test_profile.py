"""The profile cache and what goes with it, without an engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hyperlapse.integrations.vllm import compile_cache, profile
from hyperlapse.integrations.vllm.flashinfer_modules import radix_grid
from hyperlapse.integrations.vllm.worker_common import tell_run, virtual_device

PROFILE = profile.EngineProfile(
    key="k", made_from={"vllm": "0.23.0"}, available_bytes=-5, weights_bytes=1, activation_bytes=2,
    block_size=16, layouts=[], specs={}, tasks=["generate"], attention=["A"],
    graphs=[], uniform_prefills=True,
)  # fmt: skip


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    assert profile.load_profile(path) is None
    path.write_text(json.dumps({**dataclasses.asdict(PROFILE), "added later": 1}), encoding="utf-8")
    assert profile.load_profile(path) == PROFILE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "k"}'])
def test_a_damaged_file_is_no_profile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k.json"
    path.write_text(text, encoding="utf-8")
    assert profile.load_profile(path) is None


def test_what_the_engine_refused_is_no_answer() -> None:
    refused = dataclasses.replace(PROFILE, refused="no memory for a single block")
    with pytest.raises(profile.ProfileError, match="no memory for a single block"):
        refused.graph_table()
    assert PROFILE.graph_table().dispatch(1, 1, 1) == ("none", 1)


def test_key_depends_on_every_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERLAPSE_CACHE", str(tmp_path))
    one = profile.profile_path({"a": 1, "b": [1, 2]})
    assert one == profile.profile_path({"b": [1, 2], "a": 1})
    assert one != profile.profile_path({"a": 2, "b": [1, 2]})
    assert one.parent == tmp_path / "vllm-profiles"


def test_the_compile_caches_state_is_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HYPERLAPSE_COMPILE_CACHE", raising=False)
    assert compile_cache.compile_cache() == "warm"
    monkeypatch.setenv("HYPERLAPSE_COMPILE_CACHE", "cold")
    assert compile_cache.compile_cache() == "cold"
    folders = {Path(folder) for folder in compile_cache.cold_environment(tmp_path).values()}
    assert len(folders) == 3
    assert all(folder.parent == tmp_path and not folder.exists() for folder in folders)
    monkeypatch.setenv("HYPERLAPSE_COMPILE_CACHE", "tepid")
    with pytest.raises(ValueError, match="'tepid': choose one of warm, cold"):
        compile_cache.compile_cache()


@pytest.mark.parametrize(
    ("visible", "rank", "device"), [("", 0, 0), ("", 3, 3), ("2,0", 0, 2), ("2,0", 1, 0), (" 1 ", 0, 1)]
)
def test_virtual_device(monkeypatch: pytest.MonkeyPatch, visible: str, rank: int, device: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert virtual_device(rank) == device


def test_virtual_device_that_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ValueError, match="local rank 1"):
        virtual_device(1)


def test_tell_run_appends_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERLAPSE_RUN_DIR", raising=False)
    tell_run({"kind": "x"})
    monkeypatch.setenv("HYPERLAPSE_RUN_DIR", str(tmp_path))
    tell_run({"kind": "x", "n": 1})
    tell_run({"kind": "y"})
    (file,) = tmp_path.glob("engine-*.jsonl")
    assert [json.loads(line)["kind"] for line in file.read_text(encoding="utf-8").splitlines()] == ["x", "y"]


@pytest.mark.parametrize(
    ("rows", "vocabulary", "grid"),
    [
        # H100: 132 processors, 227 KiB of shared memory a block; worked out from RadixTopKMaskLogitsMultiCTA
        (1, 151_936, (3, 204_672)),
        (44, 151_936, (132, 204_672)),
        (64, 151_936, (132, 204_672)),
        (1, 32_000, (1, 130_080)),
        (200, 32_000, (132, 130_080)),
    ],
)
def test_radix_grid(rows: int, vocabulary: int, grid: tuple[int, int]) -> None:
    assert radix_grid(rows, vocabulary, processors=132, shared_limit_bytes=232_448) == grid
