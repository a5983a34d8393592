"""Where the engine's Python is looked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hyperlapse.cli import engine_environment
from hyperlapse.cli.engine_environment import EngineNotFoundError, find_engine
from hyperlapse.integrations import default_engine


def environment(folder: Path, answer: str | dict[str, str], status: int = 0, **folders: str) -> Path:
    """answer: what its Python prints, or the versions that it knows; folders: of packages."""
    text = answer if isinstance(answer, str) else json.dumps({"versions": answer, "folders": folders})
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
    python.chmod(0o755)
    return folder


def test_a_folder_or_its_python_can_be_named(tmp_path: Path) -> None:
    folder = environment(tmp_path / "env", {"vllm": "0.23.0", "hyperlapse": "0.1.0", "python": "3.11.2"})
    for name in (str(folder), str(folder / "bin" / "python")):
        found = find_engine(name, {})
        assert found.version == "0.23.0"
        assert found.command == [str(folder / "bin" / "python"), "-m", "vllm.entrypoints.cli.main"]
    (folder / "bin" / "vllm").write_text("")
    assert find_engine(str(folder), {}).command == [str(folder / "bin" / "vllm")]


def test_the_variable_comes_before_the_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment(tmp_path / ".venv-vllm", {"vllm": "1", "hyperlapse": "1"})
    other = environment(tmp_path / "other", {"vllm": "2", "hyperlapse": "1"})
    assert find_engine(None, {}).version == "1"
    assert find_engine(None, {"HYPERLAPSE_ENGINE_PYTHON": str(other)}).version == "2"


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EngineNotFoundError, match="there is no Python at"):
        find_engine(str(tmp_path / "nowhere"), {})
    with pytest.raises(EngineNotFoundError, match="has no vLLM"):
        find_engine(str(environment(tmp_path / "bare", {})), {})
    with pytest.raises(EngineNotFoundError, match="has vLLM but not hyperlapse"):
        find_engine(str(environment(tmp_path / "alone", {"vllm": "1"})), {})
    with pytest.raises(EngineNotFoundError, match="is no Python: asked for its packages, it printed 'hello"):
        find_engine(str(environment(tmp_path / "other", "hello")), {})
    with pytest.raises(EngineNotFoundError, match="does not run"):
        find_engine(str(environment(tmp_path / "broken", "", 1)), {})
    monkeypatch.setattr(engine_environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineNotFoundError, match="--engine vllm makes one"):
        find_engine(None, {})


def test_an_engine_that_cannot_work_is_refused_before_it_is_started(tmp_path: Path) -> None:
    """Any folder that is no vLLM: what the integration needs is not in it."""
    versions = {"vllm": "0.1.0", "hyperlapse": "1"}
    tested = re.escape(", ".join(default_engine().tested_versions))
    with pytest.raises(EngineNotFoundError, match=rf"vLLM 0\.1\.0 does not fit .* Tested are {tested}"):
        find_engine(str(environment(tmp_path / "old", versions, vllm=str(tmp_path))), {})
