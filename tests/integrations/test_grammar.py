"""Choosing under a grammar's mask."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.integrations.vllm import grammar
from hyperlapse.integrations.vllm.constraints import Constraints
from hyperlapse.integrations.vllm.vocabulary import Vocabulary

SIZE = 1000
END = 999
TEXTS = {10: " ", 11: "\n", 20: '"', 21: "}", 22: "]", 23: ","}
VOCABULARY = Vocabulary(
    SIZE, frozenset({END}), range(200, 500), (), {'"': 20, "}": 21, "]": 22, ",": 23},
    lambda token: TEXTS.get(token, f" t{token}"),
)  # fmt: skip


def mask_of(*ids: int) -> np.ndarray:
    bits = np.zeros((SIZE + 31) // 32 * 32, dtype=np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def choose(mask: np.ndarray, constraints: Constraints | None = None, *, position: int = 7, produced: int = 5) -> int:
    return grammar.choose(
        VOCABULARY, constraints or Constraints(), mask, seed=1, position=position, produced=produced
    )  # fmt: skip


@given(ids=st.sets(st.integers(0, SIZE - 1), min_size=1), position=st.integers(0, 10_000), ignores=st.booleans())
def test_what_is_chosen_is_allowed(ids: set[int], position: int, ignores: bool) -> None:
    mask = mask_of(*ids)
    assert grammar.allowed_ids(mask, SIZE).tolist() == sorted(ids)
    token = choose(mask, Constraints(ignores_end=ignores), position=position)
    assert token in ids
    assert grammar.allows(mask, token)


def test_an_end_is_taken_where_there_is_one_unless_the_request_goes_on() -> None:
    mask = mask_of(300, END)
    assert choose(mask) == END
    assert choose(mask, Constraints(min_tokens=6)) == 300
    assert choose(mask, Constraints(min_tokens=5)) == END
    assert choose(mask, Constraints(ignores_end=True)) == 300
    assert choose(mask_of(END), Constraints(ignores_end=True, min_tokens=50)) == END
    assert choose(mask_of(300, 301), Constraints(stops=frozenset({301}))) == 301


def test_an_empty_mask_is_the_engines_to_report() -> None:
    assert choose(mask_of()) == END


def test_free_text_comes_to_an_end() -> None:
    mask = mask_of(*(token for token in range(SIZE) if token != END))
    chosen = [choose(mask, position=position) for position in range(600)]
    closed = chosen.count(20)
    assert 50 < closed < 200
    assert all(token in VOCABULARY.words for token in chosen if token != 20)
    assert choose(mask, Constraints(max_tokens=10), produced=5) == 20
    assert 20 not in {choose(mask, Constraints(ignores_end=True), position=position) for position in range(200)}


def test_what_is_open_is_closed_in_the_second_half() -> None:
    late = Constraints(max_tokens=10)
    assert choose(mask_of(20, 21, 22, 23, 300), late) == 21
    assert choose(mask_of(20, 22, 23, 300), late) == 22
    assert choose(mask_of(20, 23, 300), late) == 20
    assert choose(mask_of(23, 300), late) == 23
    assert choose(mask_of(300, 301), late) in {300, 301}


def test_white_space_only_when_there_is_nothing_else() -> None:
    assert {choose(mask_of(10, 11, 300), position=position) for position in range(50)} == {300}
    assert choose(mask_of(10)) == 10


@pytest.mark.parametrize("constraints", [Constraints(only=(301,)), Constraints(banned=frozenset({300}))])
def test_constraints_hold_under_a_grammar(constraints: Constraints) -> None:
    assert {choose(mask_of(300, 301), constraints, position=position) for position in range(50)} == {301}
    assert choose(mask_of(300), constraints) == 300  # nothing else is left: the grammar wins


def test_full_masks() -> None:
    assert grammar.is_full(np.full(4, -1, dtype=np.int32))
    assert not grammar.is_full(mask_of(3))


def test_only_the_tokenizers_end_ends_a_grammar() -> None:
    """To a grammar the name of another special id is text that a string may hold."""
    known = dataclasses.replace(VOCABULARY, stops=frozenset({998, END}), end=END)

    def chosen(*ids: int) -> int:
        return grammar.choose(known, Constraints(), mask_of(*ids), seed=1, position=7, produced=5)

    assert chosen(300, 998) == 300
    assert chosen(300, 998, END) == END
    assert chosen(998) == 998


SHAPED = Constraints(
    only=tuple(range(900, 100, -1)),
    banned=frozenset(range(0, SIZE, 3)),
    phrases=((7, 8, 400), (9, 401)),
    ignores_end=True,
)


@given(ids=st.sets(st.integers(0, SIZE - 1), min_size=1), history=st.lists(st.integers(7, 9), max_size=4))
def test_ids_that_a_request_allows_or_bans_hold_under_a_grammar(ids: set[int], history: list[int]) -> None:
    never = {400} if history[-2:] == [7, 8] else {401} if history[-1:] == [9] else set()
    assert SHAPED.forbidden(history) == SHAPED.banned | never
    fitting = {token for token in ids - {END} if 100 < token <= 900 and token % 3} - never
    token = grammar.choose(VOCABULARY, SHAPED, mask_of(*ids), seed=1, position=7, produced=5, history=history)
    assert token in (fitting or ids)


def test_allowed_ids_are_not_looked_through_for_every_id_of_the_grammar() -> None:
    """150,000 ids of free text times 1,024 allowed ones would be seconds of real time at every step."""

    class Slow(tuple[int, ...]):
        def __contains__(self, token: object) -> bool:
            raise AssertionError(token)

    free = mask_of(*(token for token in range(SIZE) if token != END))
    assert choose(free, Constraints(only=Slow((600, 601)), ignores_end=True)) in {600, 601}
