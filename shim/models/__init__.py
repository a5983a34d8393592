"""Models by name: from what the user typed to a directory that an engine accepts.

Why: an emulated run needs a model's shape and not its weights, and it must work without a network. A bundled model is
its public config.json and generation_config.json; the tokenizer is made up (`tokenizer.py`), because a real one is
large, licensed, and decides nothing that is measured. A directory that already has a tokenizer is used as it is.

A Hugging Face name takes the hub's configuration and tokenizer where there is a network (`hub.py`).

This must never write into a directory of the user's: what is made up goes into the cache directory. A run must never
depend on a network: without one, bundled models still work, also by their hub names. Weights are never read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.shim.models import hub
from hyperlapse.shim.models.tokenizer import TOKENIZER_VERSION, special_tokens, write_tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
_DESCRIPTION_FILES = ("config.json", "generation_config.json")


class ModelError(Exception):
    """A model that cannot be resolved; the text is meant for the user and says what to do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as an engine takes it.

    name: what it is called in results; directory: holds config.json and a tokenizer; bundled: the shape comes with
    Hyperlapse; dummy_tokenizer: the tokenizer was made up; source: where the description comes from, for provenance.
    """

    name: str
    directory: Path
    bundled: bool
    dummy_tokenizer: bool
    source: str = ""

    @property
    def config_path(self) -> Path:
        return self.directory / "config.json"

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return _read_json(self.config_path)


def cache_directory() -> Path:
    """Where Hyperlapse keeps what it can make again: $HYPERLAPSE_CACHE, else $XDG_CACHE_HOME/hyperlapse."""
    own = os.environ.get("HYPERLAPSE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperlapse"


# Whose repositories the bundled descriptions are of: somebody else's model of the same name may be another one.
_PUBLISHERS = frozenset({"qwen", "meta-llama", "mistralai", "deepseek-ai"})


def bundled_models() -> dict[str, Path]:
    """Short name -> folder with config.json, in alphabetical order."""
    here = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(here.glob("*/config.json"))}


def resolve_model(text: str) -> Model:
    """A bundled short name, a directory with a config.json, a config.json itself, or a model's name on the hub.

    A hub name (`Owner/Name`) is looked up there; where there is no network a bundled model of that
    name is the answer, if it is its publisher's.
    Raises ModelError with the nearest names for anything else. Call it before a run's clock is frozen.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return _from_description(path, path.parent, name=_name_of(path), source=str(path.resolve()))
    if path.is_dir():
        return _from_directory(path, name=path.resolve().name, source=str(path.resolve()))
    bundled = bundled_models()
    owner, _, short = text.lower().rpartition("/")
    if hub.is_hub_name(text):
        try:
            found = hub.fetch(text)
        except hub.NoNetworkError as error:
            if short not in bundled or owner not in _PUBLISHERS:
                raise ModelError(
                    f"{text}: {error}. Bundled models need no network: {', '.join(bundled)}. A directory with a"
                    " config.json, or the path of a config.json, will also do"
                ) from error
        except hub.HubError as error:
            raise ModelError(f"{error}. {_alternatives(short)}") from error
        else:
            return _from_directory(found.directory, name=short, source=f"hub: {text}@{found.commit}")
    if short in bundled:
        folder = bundled[short]
        return _from_description(folder / "config.json", folder, name=short, bundled=True, source="bundled")
    raise ModelError(f"unknown model {text!r}: {_alternatives(short)}")


def _alternatives(short: str) -> str:
    bundled = bundled_models()
    near = difflib.get_close_matches(short, bundled, n=3, cutoff=0.4)
    nearest = f"nearest bundled: {', '.join(near)}; " if near else ""
    return (
        f"{nearest}`hyperlapse models` lists the bundled ones. A directory with a config.json, the path of a config.json,"
        " or a name on the Hugging Face hub (Owner/Name) will also do"
    )


def _from_directory(path: Path, name: str, source: str) -> Model:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: the directory has no config.json, so it holds no model an engine could load")
    if any((path / file).is_file() for file in _TOKENIZER_FILES):
        _checked_config(path / "config.json")
        return Model(name, path.resolve(), bundled=False, dummy_tokenizer=False, source=source)
    return _from_description(path / "config.json", path, name=name, source=source)


def _name_of(config: Path) -> str:
    return config.resolve().parent.name if config.name == "config.json" else config.stem


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a model's description is a JSON object, this is a {type(value).__name__}")
    return value


def _checked_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    if not isinstance(config.get("architectures"), list):
        raise ModelError(f"{path}: no `architectures` list, so no engine could choose a model class")
    return config


def _vocabulary_size(path: Path, config: dict[str, Any]) -> int:
    size = config.get("vocab_size")
    if size is None:
        size = config.get("text_config", {}).get("vocab_size")
    if not isinstance(size, int) or size < 1:
        raise ModelError(f"{path}: no `vocab_size`, which the made-up tokenizer needs; add a tokenizer of your own")
    return size


def _from_description(config_path: Path, folder: Path, name: str, bundled: bool = False, source: str = "") -> Model:
    config = _checked_config(config_path)
    size = _vocabulary_size(config_path, config)
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    content = json.dumps([TOKENIZER_VERSION, config, generation], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    directory = cache_directory() / "models" / f"{name}-{digest}"
    if not directory.is_dir():
        _create(directory, config, generation, size)
    return Model(name, directory, bundled=bundled, dummy_tokenizer=True, source=source)


def _create(directory: Path, config: dict[str, Any], generation: dict[str, Any], vocabulary_size: int) -> None:
    """Writes the directory beside its place and renames it, so that no other process sees half of it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        made.chmod(0o755)
        for file_name, value in zip(_DESCRIPTION_FILES, (config, generation), strict=True):
            if value:
                (made / file_name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        length = config.get("max_position_embeddings")
        write_tokenizer(
            made,
            vocabulary_size=vocabulary_size,
            special=special_tokens(config, generation, vocabulary_size),
            model_max_length=length if isinstance(length, int) else None,
        )
        try:
            made.rename(directory)
        except OSError:
            if not directory.is_dir():  # somebody else was first: theirs is equal, its name is its content's hash
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
