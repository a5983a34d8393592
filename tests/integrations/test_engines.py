"""The registry of engines, and that no engine is known outside of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperlapse.integrations import default_engine, engine_title, engines
from hyperlapse.integrations.environments import NOT_YET, EngineReleaseError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for name in ("cli", "coordinator", "predictor", "shim") for path in sorted((ROOT / name).rglob("*.py"))]


def test_every_engine_is_a_package_of_its_own_name() -> None:
    assert default_engine() in engines().values()
    for name, engine in engines().items():
        assert (ROOT / "integrations" / name / "engine.py").is_file()
        assert (engine.name, engine.packages[0], engine.local_environment) == (name, name, f".venv-{name}")
        assert engine.tested_versions
        assert engine.price_tables()
        assert engine_title(name) == engine.title
    assert engine_title("another") == "another"


def test_the_command_of_an_environment(tmp_path: Path) -> None:
    engine, python = default_engine(), tmp_path / "python"
    assert engine.command(python) == [str(python), "-m", engine.module]
    (tmp_path / engine.name).touch()
    assert engine.command(python) == [str(tmp_path / engine.name)]


def test_a_load_generator_that_saves_no_start_times_is_refused(tmp_path: Path) -> None:
    engine, source = default_engine(), tmp_path / "benchmarks" / "serve.py"
    with pytest.raises(EngineReleaseError, match="--trace"):
        engine.check_client("0.1.0", tmp_path)
    source.parent.mkdir()
    source.write_text('result = {"ttfts": []}\n', encoding="utf-8")
    with pytest.raises(EngineReleaseError, match=r"0\.1\.0 does not save"):
        engine.check_client("0.1.0", tmp_path)
    source.write_text('result = {"start_times": []}\n', encoding="utf-8")
    engine.check_client("0.1.0", tmp_path)


def told(path: Path) -> Iterator[str]:
    """What this source imports, and its text constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_engine_is_named_outside_its_package(path: Path) -> None:
    """Prose and examples may name one; an import, a name that is compared or a part of a path may not."""
    names = {*engines(), *NOT_YET}
    found = [
        text
        for text in told(path)
        if text.startswith(tuple(f"hyperlapse.integrations.{name}" for name in names))
        or (" " not in text and names & set(text.replace(".", "/").replace("-", "/").split("/")))
    ]
    assert found == []
