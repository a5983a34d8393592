"""The graph table: kept as JSON, read back, and asked as the engine asks its manager."""

from __future__ import annotations

import json
from enum import Enum
from types import SimpleNamespace

from hyperlapse.integrations.vllm.dispatch import Candidate, GraphTable

FULL_4 = Candidate("full", 4, 4, 1)
PIECEWISE_4 = Candidate("piecewise", 4, None, None)
FULL_8 = Candidate("full", 8, 8, 1)
PIECEWISE_8 = Candidate("piecewise", 8, None, None)
TABLE = GraphTable([[FULL_4, PIECEWISE_4]] * 5 + [[FULL_8, PIECEWISE_8]] * 4)


def test_uniform_decodes_take_the_full_graph_padded() -> None:
    assert TABLE.dispatch(rows=3, tokens=3, uniform=1) == ("full", 4)
    assert TABLE.dispatch(rows=5, tokens=5, uniform=1) == ("full", 8)


def test_mixed_batches_take_the_piecewise_graph() -> None:
    assert TABLE.dispatch(rows=2, tokens=6, uniform=None) == ("piecewise", 8)
    assert TABLE.dispatch(rows=1, tokens=3, uniform=3) == ("piecewise", 4)


def test_beyond_the_largest_graph_nothing_is_padded() -> None:
    assert TABLE.dispatch(rows=9, tokens=9, uniform=1) == ("none", 9)
    assert GraphTable([]).dispatch(rows=1, tokens=1, uniform=1) == ("none", 1)


def test_json_round_trip() -> None:
    text = json.dumps(TABLE.to_json())
    again = GraphTable.from_json(json.loads(text))
    for rows in range(1, 10):
        for uniform in (None, 1, 2):
            for tokens in range(rows, 12):
                assert again.dispatch(rows, tokens, uniform) == TABLE.dispatch(rows, tokens, uniform)


def test_reads_the_engines_manager() -> None:
    class Mode(Enum):
        FULL = 2

    desc = SimpleNamespace(cg_mode=Mode.FULL, num_tokens=4, num_reqs=4, uniform_token_count=1)
    table = GraphTable.of_manager(SimpleNamespace(_candidates=[[], [desc]]))
    assert table.dispatch(1, 1, 1) == ("full", 4)
