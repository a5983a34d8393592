"""A made-up tokenizer: N words are N tokens, and every token id is a word.

Why: engines refuse to serve text without a tokenizer, load generators decode random ids and encode them again to check
the length, and neither cares what the words are. Word `t17` is token 17; any other word is the unknown token, still one
token; decode(ids) encodes back to the same ids. The vocabulary covers the model's whole embedding, so any id is valid.

Grammars (JSON, regular expressions) need single characters: the last ids below the special ones are the printable ones of
ASCII, a line break and a tab. They only come out: text that goes in is words. A word has its space before it, as in
byte-pair vocabularies, so that characters can stand together.

It must never depend on the `tokenizers` package (the launcher's environment has none): the file is plain JSON. Training
a byte-pair tokenizer was rejected: its token counts would depend on the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENIZER_VERSION = 2
"""Part of the hash in the directory's name: raise it whenever what is written here changes."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


CHARACTERS = (*(chr(code) for code in range(0x20, 0x7F)), "\n", "\t")

_SMALLEST_WITH_CHARACTERS = 1024
"""A smaller vocabulary has words only."""


def special_tokens(config: Mapping[str, Any], generation: Mapping[str, Any], vocabulary_size: int) -> dict[str, int]:
    """Role -> id of the begin, end and padding tokens, as the model's two description files give them.

    Lists (Qwen3 has two end tokens) give their first id the role's plain name and number the others.
    """
    roles: dict[str, int] = {}
    for role in ("eos", "bos", "pad"):
        for source in (config, generation):
            value = source.get(f"{role}_token_id")
            for token_id in value if isinstance(value, list) else [value]:
                if not isinstance(token_id, int) or not 0 <= token_id < vocabulary_size:
                    continue
                if token_id in roles.values():
                    continue
                number = sum(name.rstrip("0123456789") == role for name in roles)
                roles[role if number == 0 else f"{role}{number + 1}"] = token_id
    return roles


def write_tokenizer(
    directory: Path, *, vocabulary_size: int, special: Mapping[str, int], model_max_length: int | None
) -> None:
    """Writes tokenizer.json and tokenizer_config.json in the format of the `tokenizers` package (version 1.0)."""
    names = {token_id: f"<{role}>" for role, token_id in special.items()}
    unknown_id = next(token_id for token_id in range(vocabulary_size) if token_id not in names)
    words = [names.get(token_id, f" t{token_id}") for token_id in range(vocabulary_size)]
    if vocabulary_size >= _SMALLEST_WITH_CHARACTERS:
        free = (token_id for token_id in reversed(range(vocabulary_size)) if token_id not in names)
        for token_id, character in zip(free, CHARACTERS, strict=False):
            words[token_id] = character
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token_id, name in sorted(names.items())
        ],
        # every word gets exactly one space before it, whatever white space the text has
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
                {"type": "Prepend", "prepend": " "},
            ],
        },
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": " \\S+"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: token_id for token_id, word in enumerate(words)},
            "unk_token": words[unknown_id],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, separators=(",", ":")), encoding="utf-8")
    settings: dict[str, Any] = {
        # transformers 4 knows no other name for a tokenizer that is only a tokenizer.json
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    if model_max_length is not None:
        settings["model_max_length"] = model_max_length
    for role in ("eos", "bos", "pad"):
        if role in special:
            settings[f"{role}_token"] = f"<{role}>"
        elif role == "pad" and "eos" in special:
            settings["pad_token"] = "<eos>"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
