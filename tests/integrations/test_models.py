"""Model names, directories and the made-up tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperlapse.shim.models import ModelError, bundled_models, resolve_model
from hyperlapse.shim.models.tokenizer import CHARACTERS, special_tokens


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPERLAPSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tokenizer_of(directory: Path) -> dict:
    return json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["qwen3-14b", "Qwen3-14B", "Qwen/Qwen3-14B"])
def test_bundled_model(name: str) -> None:
    model = resolve_model(name)
    assert (model.name, model.bundled, model.dummy_tokenizer) == ("qwen3-14b", True, True)
    assert model.config()["hidden_size"] == 5120
    assert json.loads((model.directory / "generation_config.json").read_text())["top_k"] == 20
    vocabulary = tokenizer_of(model.directory)["model"]["vocab"]
    assert len(vocabulary) == 151_936
    assert sorted(vocabulary.values()) == list(range(151_936))
    assert vocabulary[" t17"] == 17
    assert {vocabulary[mark] for mark in CHARACTERS} == set(range(151_936 - len(CHARACTERS), 151_936))
    assert vocabulary["<eos>"] == 151_645


def test_second_time_the_same_directory_is_used() -> None:
    directory = resolve_model("qwen3-14b").directory
    before = (directory / "tokenizer.json").stat().st_mtime_ns
    assert resolve_model("qwen3-14b").directory == directory
    assert (directory / "tokenizer.json").stat().st_mtime_ns == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def small_model(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "eos_token_id": 9, **values}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_directory_without_a_tokenizer_gets_one_in_the_cache(tmp_path: Path, cache: Path) -> None:
    folder = small_model(tmp_path / "mine")
    model = resolve_model(str(folder))
    assert (model.name, model.bundled, model.dummy_tokenizer) == ("mine", False, True)
    assert cache in model.directory.parents
    assert sorted(path.name for path in folder.iterdir()) == ["config.json"]
    assert resolve_model(str(folder / "config.json")).directory == model.directory
    changed = resolve_model(str(small_model(folder, eos_token_id=8)))
    assert changed.directory != model.directory


def test_directory_with_a_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "mine")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    model = resolve_model(str(folder))
    assert (model.directory, model.dummy_tokenizer) == (folder.resolve(), False)


def test_unknown_names_say_what_is_near_and_where_the_list_is() -> None:
    with pytest.raises(ModelError, match=r"nearest bundled: qwen3-14b.*hyperlapse models"):
        resolve_model("qwen3-14")
    with pytest.raises(ModelError, match=r"hyperlapse models"):
        resolve_model("gpt")


def test_bad_descriptions(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"a": 1,\n oops}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json:2"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="JSON object"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="architectures"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}', encoding="utf-8")
    with pytest.raises(ModelError, match="vocab_size"):
        resolve_model(str(tmp_path))


def test_special_tokens() -> None:
    config, generation = {"eos_token_id": 5, "bos_token_id": 3}, {"eos_token_id": [5, 3, 99], "pad_token_id": 3}
    assert special_tokens(config, generation, 10) == {"eos": 5, "eos2": 3}
    assert special_tokens({"bos_token_id": None}, {}, 10) == {}


def test_every_bundled_model_has_both_descriptions() -> None:
    for name, folder in bundled_models().items():
        assert (folder / "generation_config.json").is_file(), name
