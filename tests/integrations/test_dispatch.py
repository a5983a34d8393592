"""The graph table: kept as JSON, read back, and asked as the engine asks its manager."""

from __future__ import annotations

import json
from enum import Enum
from types import SimpleNamespace

import pytest

from hyperlapse.integrations.vllm.dispatch import Candidate, GraphTable, dispatcher_table, manager_table

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


class Mode(Enum):
    NONE = 0
    PIECEWISE = 1
    FULL = 2


def test_reads_the_engines_manager() -> None:
    desc = SimpleNamespace(cg_mode=Mode.FULL, num_tokens=4, num_reqs=4, uniform_token_count=1)
    table = manager_table(SimpleNamespace(_candidates=[[], [desc]]))
    assert table.dispatch(1, 1, 1) == ("full", 4)


class Dispatcher:
    """As model runner V1 has it: graphs of 2 and 4 tokens for any batch, full ones for at most 3 decodes."""

    def __init__(self, largest: int | None, modes: tuple[Mode, Mode]) -> None:
        self.compilation_config = SimpleNamespace(max_cudagraph_capture_size=largest)
        self._decode, self._mixed = modes

    def dispatch(self, *, num_tokens: int, uniform_decode: bool, has_lora: bool) -> tuple[Mode, SimpleNamespace]:
        assert not has_lora
        mode = self._decode if uniform_decode and num_tokens <= 3 else self._mixed
        padded = num_tokens if mode is Mode.NONE else 2 if num_tokens <= 2 else 4
        return mode, SimpleNamespace(num_tokens=padded)


@pytest.mark.parametrize("decode", list(Mode))
@pytest.mark.parametrize("mixed", list(Mode))
def test_asks_the_engines_dispatcher(decode: Mode, mixed: Mode) -> None:
    if decode is Mode.NONE:
        mixed = Mode.NONE  # decodes run in any graph for mixed batches, too
    dispatcher = Dispatcher(4, (decode, mixed))
    table = GraphTable.from_json(dispatcher_table(dispatcher).to_json())
    for tokens in range(1, 5):
        for uniform in (1, 2, None):
            mode, desc = dispatcher.dispatch(num_tokens=tokens, uniform_decode=uniform == 1, has_lora=False)
            assert table.dispatch(tokens, tokens, uniform) == (mode.name.lower(), desc.num_tokens)
    assert table.dispatch(5, 5, 1) == ("none", 5)


def test_an_engine_without_graphs() -> None:
    assert dispatcher_table(Dispatcher(None, (Mode.FULL, Mode.FULL))).dispatch(1, 1, 1) == ("none", 1)
