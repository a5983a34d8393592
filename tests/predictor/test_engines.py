"""Engines' data: recipes by version, errors that name file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlapse.predictor.engines import EngineDataError, Engines

from .conftest import ENGINE, STEPS

TEXT = """
version: 1
engine: first
database: other-name
recipes:
  - {since: "1.2", copies: 3}
  - {since: "1.10", copies: 5, note: more}
"""


def engines(tmp_path: Path, text: str = TEXT) -> Engines:
    path = tmp_path / "steps.yaml"
    path.write_text(text)
    return Engines.load([path])


@pytest.mark.parametrize(("version", "copies"), [("", 5), ("1.10.1", 5), ("1.9.3", 3), ("1.2", 3), ("0.1", 3)])
def test_the_recipe_of_a_version(tmp_path: Path, version: str, copies: int) -> None:
    data, found = engines(tmp_path).find(f"first-{version}" if version else "first")
    assert (data.database, found) == ("other-name", version)
    assert data.recipe(version).copies == copies


def test_the_only_engine_needs_no_name_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    found = engines(tmp_path)
    assert found.find("")[0].name == "first"
    with pytest.raises(EngineDataError, match="did you mean first"):
        found.find("frist-1.2")
    with pytest.raises(EngineDataError, match="no engine was named"):
        Engines.load([]).find("")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "version: 1"),
        ("version: 1\nengine: a-b\nrecipes: [{since: '1'}]", "without a dash"),
        ("version: 1\nengine: a\nrecipes: []", "is empty"),
        ("version: 1\nengine: a\nrecipes: [{copies: 1}]", "recipe 1: needs `since`"),
        ("version: 1\nengine: a\nrecipes: [{since: '1', copy: 1}]", "did you mean `copies`"),
        ("version: 1\nengine: a\nrecipes: [{since: '1', copies: -1}]", "a number of kernels"),
    ],
)
def test_wrong_data_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(EngineDataError, match=says):
        engines(tmp_path, text)


def test_the_bundled_data() -> None:
    data, _ = Engines.load([STEPS]).find(f"{ENGINE}-0.23.0")
    assert data.recipe("0.23.0").qk_norm_rope == 2
    assert data.recipe("99.0") == data.recipe("")
