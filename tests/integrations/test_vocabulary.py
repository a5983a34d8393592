"""Words of a tokenizer: ids that come back from their text, whatever stands beside them."""

from __future__ import annotations

import re

import pytest

from hyperlapse.integrations.vllm.vocabulary import Vocabulary, mix


class BytePairs:
    """A byte-pair tokenizer in small: even ids below 1,000 are words with a space, ids of 1,000 and more begin a line,
    odd ones are pieces, which join with what stands before them.
    """

    eos_token_id = 2
    marks = ('"', "}", "]", ",", "\n")

    def get_vocab(self) -> dict[str, int]:
        return {mark: 2001 + index for index, mark in enumerate(self.marks)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self._text(token) for token in ids)

    def _text(self, token: int) -> str:
        if token > 2000:
            return self.marks[token - 2001] if token - 2001 < len(self.marks) else ""
        letters = "".join(chr(ord("a") + int(digit)) for digit in str(token))
        if token >= 1000:
            return letters.capitalize()
        return f" {letters}" if token % 2 == 0 else letters

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        ids = []
        for word in re.findall(r" [a-z]+|[A-Z][a-z]+", text):
            number = int("".join(str(ord(letter) - ord("a")) for letter in word.strip().lower()))
            ids.append(number if (number >= 1000) != word.startswith(" ") else 0)
        return ids


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of_tokenizer(BytePairs(), 2100, {4})


def test_words_survive_being_text(vocabulary: Vocabulary) -> None:
    tokenizer = BytePairs()
    assert len(vocabulary.words) > 300
    assert not vocabulary.stops & set(vocabulary.words)
    ids = [vocabulary.words[mix(1, position) % len(vocabulary.words)] for position in range(50)]
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids
    assert all(token % 2 == 0 and token < 1000 for token in vocabulary.words)


def test_stops_are_the_models_and_the_tokenizers(vocabulary: Vocabulary) -> None:
    assert vocabulary.stops == {2, 4}


def test_a_line_begins_without_a_space(vocabulary: Vocabulary) -> None:
    assert vocabulary.openings
    assert vocabulary.pool_after(2005) is vocabulary.openings  # a line break
    assert vocabulary.pool_after(2) is vocabulary.openings  # a special id
    assert vocabulary.pool_after(300) is vocabulary.words
    assert vocabulary.pool_after(None) is vocabulary.words


def test_punctuation(vocabulary: Vocabulary) -> None:
    assert vocabulary.punctuation == {'"': 2001, "}": 2002, "]": 2003, ",": 2004}


def test_without_words_ids_come_from_the_middle() -> None:
    class Bytes(BytePairs):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) for letter in text]

    found = Vocabulary.of_tokenizer(Bytes(), 2100, {500})
    assert (min(found.words), max(found.words)) == (262, 1049)
    assert 500 not in found.words
    assert found.openings == ()


def test_tiny_vocabularies() -> None:
    assert list(Vocabulary.without_tokenizer(8, {1}).words) == [2, 3]
    assert list(Vocabulary.without_tokenizer(1, {0}).words) == [0]
