"""Which ids made-up text is made of.

Why: a virtual sampler may pick any id, but what a client gets back is text, and in the next turn of a chat it sends that
text again. On a real engine it then finds its blocks in the prefix cache, because what a model writes mostly tokenises
back to the same ids. Random ids do not: their pieces merge anew. So ids are drawn from *words*: ids that come back
whatever word stands before and after them, which is asked of the model's own tokenizer.

It must never pick an end-of-sequence id by accident, and never fail for want of a tokenizer: without one, ids come from
the middle of the vocabulary (the lowest ids of byte-pair vocabularies are bytes, the highest special tokens).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MASK = 0xFFFFFFFF
_WORDS = 2048
_FEWEST_WORDS = 256
_TRIES = 1 << 16
_TWO_WORDS = re.compile(r" ?[A-Za-z0-9]+ [A-Za-z0-9]+")
_ONE_WORD = re.compile(r"[A-Z][a-z]+")
PUNCTUATION = ('"', "}", "]", ",")


def mix(seed: int, position: int) -> int:
    """A hash of both, so that no two positions share a pattern by accident."""
    mixed = (seed * 0x9E3779B1 + position * 0x85EBCA6B) & _MASK
    mixed ^= mixed >> 15
    mixed = (mixed * 0x2C1B3C6D) & _MASK
    return mixed ^ mixed >> 12


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """size: ids are below it; stops: the model's end-of-sequence ids; words: ids that follow anything; openings: ids
    that begin a line (no space before them; empty when there are none); punctuation: single characters that end what a
    grammar has begun, by character; text_of: an id's text, empty without a tokenizer; end: the tokenizer's own
    end-of-sequence id, the one that a grammar ends with.
    """

    size: int
    stops: frozenset[int]
    words: Sequence[int]
    openings: Sequence[int] = ()
    punctuation: Mapping[str, int] = field(default_factory=dict)
    text_of: Callable[[int], str] = lambda _: ""
    end: int | None = None

    @classmethod
    def without_tokenizer(cls, size: int, stops: Iterable[int]) -> Vocabulary:
        """Ids from an eighth to a half of the vocabulary."""
        ends = frozenset(stops)
        low = size // 8
        words = [token for token in range(low, max(size // 2, low + 1)) if token not in ends]
        return cls(size, ends, words or range(size))

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, size: int, stops: Iterable[int]) -> Vocabulary:
        """tokenizer: anything with encode(text, add_special_tokens=False), decode(ids) and get_vocab()."""
        end = getattr(tokenizer, "eos_token_id", None)
        end = end if isinstance(end, int) else None
        ends = frozenset(stops) | ({end} if end is not None else frozenset())
        plain = cls.without_tokenizer(size, ends)
        words: list[int] = []
        openings: list[int] = []
        for token in range(size // 8, min(size, size // 8 + _TRIES)):
            if token in ends:
                continue
            text = tokenizer.decode([token, token])
            if _TWO_WORDS.fullmatch(text):
                if encoded(tokenizer, text) == [token, token]:
                    words.append(token)
            elif len(openings) < _WORDS:
                one = tokenizer.decode([token])
                if _ONE_WORD.fullmatch(one) and encoded(tokenizer, one) == [token]:
                    openings.append(token)
            if len(words) == _WORDS:
                break
        texts: dict[int, str] = {}

        def text_of(token: int) -> str:
            if token not in texts:
                texts[token] = tokenizer.decode([token])
            return texts[token]

        known = tokenizer.get_vocab()
        punctuation = {mark: known[mark] for mark in PUNCTUATION if mark in known and text_of(known[mark]) == mark}
        enough = len(words) >= _FEWEST_WORDS
        return cls(size, ends, words if enough else plain.words, openings if enough else (), punctuation, text_of, end)

    def pool_after(self, token: int | None) -> Sequence[int]:
        """Where the first id of an answer comes from. token: the last one of the prompt."""
        if token is None or not self.openings:
            return self.words
        text = self.text_of(token)
        return self.openings if not text or text[-1].isspace() or token in self.stops else self.words


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The text's ids and nothing around them."""
    return list(tokenizer.encode(text, add_special_tokens=False))
