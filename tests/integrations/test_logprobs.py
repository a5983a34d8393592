"""Made-up log-probabilities are a distribution, and consistent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.integrations.vllm import logprobs


def test_probabilities_of_all_ranks_sum_to_one() -> None:
    values = logprobs.of_ranks(np.arange(1, 50_001), 50_000)
    assert float(np.exp(values.astype(np.float64)).sum()) == pytest.approx(1, abs=1e-6)


@given(
    taken=st.lists(st.integers(0, 99), min_size=1, max_size=5),
    start=st.integers(0, 1 << 40),
    count=st.integers(0, 100),
    words=st.sampled_from([range(10, 60), range(100), [3, 1, 2]]),
)
def test_rows(taken: list[int], start: int, count: int, words: list[int]) -> None:
    rows = logprobs.top_rows(taken, [start] * len(taken), count, words, 100)
    assert rows.ids.shape == rows.values.shape == (len(taken), 1 + count)
    assert np.isfinite(rows.values).all()
    assert rows.ids[:, 0].tolist() == taken
    assert rows.ranks.tolist() == [1] * len(taken)
    if count:
        assert rows.ids[:, 1].tolist() == taken
        assert (rows.values[:, 0] == rows.values[:, 1]).all()
        assert (np.diff(rows.values[:, 1:]) < 0).all()
        assert all(len(set(row[1:].tolist())) == count for row in rows.ids)


def test_asked_ids() -> None:
    ids, values = logprobs.rows_of(7, [3, 7, 9], 42, 1000)
    assert ids == [7, 3, 7, 9]
    assert values[0] == values[2] == values.max()
    assert np.isfinite(values).all()
