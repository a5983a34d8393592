"""The batch composition: its text form goes to and fro unchanged, and nothing outside the grammar is understood."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.predictor.composition import BatchComposition, CompositionError, SequenceGroup, fold, parse_groups

groups = st.lists(
    st.builds(SequenceGroup, st.integers(1, 10_000), st.integers(0, 200_000), st.integers(1, 300)), max_size=20
)


@given(groups, st.sampled_from(["full", "piecewise", "none"]), st.integers(0, 500), st.data())
def test_format_and_parse_are_inverse(made: list[SequenceGroup], graph: str, padding: int, data: st.DataObject) -> None:
    new_tokens = sum(group.new * group.count for group in made)
    rows = data.draw(st.integers(0, new_tokens))
    batch = BatchComposition.of(made, graph=graph, tokens=new_tokens + padding, rows=rows)
    assert BatchComposition.parse(batch.format()) == batch
    assert batch.new_tokens == new_tokens
    assert batch.sequences == sum(group.count for group in made)


@given(groups)
def test_folding_joins_equal_neighbours_and_keeps_order(made: list[SequenceGroup]) -> None:
    folded = fold(made)
    assert all((a.new, a.context) != (b.new, b.context) for a, b in itertools.pairwise(folded))
    spread = [(group.new, group.context) for group in made for _ in range(group.count)]
    assert [(group.new, group.context) for group in folded for _ in range(group.count)] == spread


def test_the_example_of_the_documentation() -> None:
    batch = BatchComposition.parse("v1 graph=full tokens=8 rows=5 seqs=1:1030,1:1100x2,1:1200,1:90")
    assert (batch.sequences, batch.new_tokens, batch.tokens) == (5, 5, 8)
    assert batch.groups[1] == SequenceGroup(1, 1100, 2)


def test_a_step_of_padding_only() -> None:
    assert BatchComposition.parse("v1 graph=full tokens=4 rows=0 seqs=").groups == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "version"),
        ("v2 graph=none tokens=1 rows=1 seqs=1:0", "version"),
        ("v1 graph=none tokens=1 rows=1", "`seqs` is missing"),
        ("v1 graph=none tokens=1 rows=1 seqs=1:0 seqs=1:0", "twice"),
        ("v1 graph=none tokens=1 rows=1 seqs=1:0 mood=good", "unknown field"),
        ("v1  graph=none tokens=1 rows=1 seqs=1:0", "unknown field"),
        ("v1 graph=some tokens=1 rows=1 seqs=1:0", "graph=some"),
        ("v1 graph=none tokens=x rows=1 seqs=1:0", "not a number"),
        ("v1 graph=none tokens=-1 rows=1 seqs=1:0", "not a number"),
        ("v1 graph=none tokens=1 rows=2 seqs=1:0", "more sampled rows"),
        ("v1 graph=none tokens=4 rows=1 seqs=5:0", "fewer than the 5"),
        ("v1 graph=none tokens=1 rows=1 seqs=0:4", "computes no token"),
        ("v1 graph=none tokens=1 rows=1 seqs=1", "'1' is not"),
        ("v1 graph=none tokens=1 rows=1 seqs=1:0,", "'' is not"),
        ("v1 graph=none tokens=1 rows=1 seqs=1:0x0", "'1:0x0' is not"),
        ("v1 graph=none tokens=01 rows=1 seqs=1:0", "not a number"),
        ("v1 graph=none tokens=1 rows=1 seqs=" + "y" * 200, "..."),
    ],
)
def test_what_is_not_the_grammar_is_refused(text: str, says: str) -> None:
    with pytest.raises(CompositionError, match=None) as caught:
        BatchComposition.parse(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


def test_groups_alone() -> None:
    assert parse_groups("1:1088x4") == (SequenceGroup(1, 1088, 4),)
    assert parse_groups("") == ()
