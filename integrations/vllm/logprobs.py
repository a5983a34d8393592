"""Log-probabilities of ids that nobody computed.

Why: clients that ask for them (and beam search, which the API server builds on them) need an answer of the right shape.
The values are made up, and say so in docs/features.md: ranks follow Zipf's law over the vocabulary, p(rank) = 1 / (rank
* H(size)), which sums to 1, so they are finite, sorted and consistent. The id that was sampled (or that stands in the
prompt) has rank 1; the others are made up from its position.

It must never look like a measurement: the same rank has the same value everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperlapse.integrations.vllm.vocabulary import mix

_EULER = 0.5772156649015329


@dataclass(frozen=True, slots=True)
class Rows:
    """One row for each position, as vLLM's samplers give them: column 0 is the id that was taken, the others are the most
    probable ones in order. ids: int32 [rows, columns]; values: float32 of the same shape; ranks: int32 [rows].
    """

    ids: Any
    values: Any
    ranks: Any


def of_ranks(ranks: Any, vocabulary_size: int) -> Any:
    """The natural logarithm of the probability of each rank (the first is 1), float32."""
    harmonic = math.log(vocabulary_size) + _EULER + 1 / (2 * vocabulary_size)
    return (-np.log(np.asarray(ranks, dtype=np.float64)) - math.log(harmonic)).astype(np.float32)


def top_rows(taken: Sequence[int], starts: Sequence[int], count: int, words: Sequence[int], size: int) -> Rows:
    """taken: one id a row; starts: where each row's other ids begin in `words`; count: how many (0: only the taken id's
    own value).
    """
    chosen = np.asarray(taken, dtype=np.int64)
    ids = np.empty((len(chosen), 1 + count), dtype=np.int32)
    ids[:, 0] = chosen
    if count:
        pool = np.asarray(words if count <= len(words) else range(size), dtype=np.int64)
        columns = (np.asarray(starts, dtype=np.int64)[:, None] + np.arange(count)) % len(pool)
        others = pool[columns]
        order = np.argsort(others == chosen[:, None], axis=1, kind="stable")  # the taken id, if there, goes last
        ids[:, 1] = chosen
        ids[:, 2:] = np.take_along_axis(others, order, axis=1)[:, : count - 1]
    ranks = np.concatenate(([1], np.arange(1, count + 1)))
    values = np.broadcast_to(of_ranks(ranks, size), ids.shape).copy()
    return Rows(ids, values, np.ones(len(chosen), dtype=np.int32))


def rows_of(taken: int, asked: Sequence[int], seed: int, size: int) -> tuple[list[int], Any]:
    """(ids, values) of one row for ids that the request names (`logprob_token_ids`): the taken one, then those asked."""
    ranks = [1, *(1 if token == taken else 2 + mix(seed, token) % max(size - 1, 1) for token in asked)]
    return [taken, *asked], of_ranks(ranks, size)
