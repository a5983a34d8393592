"""What a prediction is: a duration in integer nanoseconds, where it comes from, and how wrong it may be.

A number without its origin must never leave this package: reports add durations of many origins, and a reader has to
see which share of them anybody ever measured.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class PredictorError(Exception):
    """Base of what this package raises on purpose; the message says what to do next."""


class UnsupportedModelError(PredictorError):
    """The model has a part that cannot be priced yet (the message names it)."""


class DatabaseError(PredictorError):
    """The measured kernel database is absent, or has no table for this GPU and engine."""


class Coverage(enum.IntEnum):
    """Where a duration comes from, best first. The values are the order of the five shares in every report."""

    MEASURED = 0  # this very shape was measured on this GPU product
    INTERPOLATED = 1  # between measured shapes
    EXTRAPOLATED = 2  # outside the measured grid, by the work-normalised rate of its edge
    ANALYTICAL = 3  # bytes and operations over stated hardware facts
    UNKNOWN = 4  # nothing is known: the device's launch floor, to be counted and reported


COVERAGES = len(Coverage)

CoverageShares = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One operator, once.

    duration_ns: device time of its kernels, without the gap to the next kernel.
    error_ratio: expected relative error (0.05: five per cent), the median of held-out measurements (accuracy.py) for
    measured origins, a stated guess for analytical ones; error90_ratio: nine in ten are smaller.
    """

    duration_ns: int
    coverage: Coverage
    error_ratio: float
    error90_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class OperatorPrediction:
    """An operator of a step. duration_ns of `prediction` is for one execution; the step runs it `count` times."""

    name: str
    count: int
    shape: str
    prediction: Prediction

    @property
    def total_ns(self) -> int:
        return self.count * self.prediction.duration_ns


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """One engine step: operators in the engine's order. coverage_ns and families_ns each sum to duration_ns exactly."""

    operators: tuple[OperatorPrediction, ...]
    duration_ns: int
    coverage_ns: CoverageShares
    error_ratio: float
    error90_ratio: float = 0.0
    families_ns: tuple[tuple[str, int], ...] = ()


def shares_of(duration_ns: int, coverage: Coverage) -> CoverageShares:
    """All of a duration in one share."""
    shares = [0] * COVERAGES
    shares[coverage] = duration_ns
    return (shares[0], shares[1], shares[2], shares[3], shares[4])


def add_shares(parts: Iterable[Sequence[int]]) -> CoverageShares:
    """Share by share sum."""
    shares = [0] * COVERAGES
    for part in parts:
        for index in range(COVERAGES):
            shares[index] += part[index]
    return (shares[0], shares[1], shares[2], shares[3], shares[4])


@dataclass(frozen=True, slots=True)
class Sums:
    """Operators added up, so that those which stay the same from step to step are added once.

    families_ns: by family; independent, independent90: squares of the absolute errors that are independent of each
    other; together, together90: absolute errors that add up.
    """

    coverage_ns: CoverageShares
    families_ns: tuple[tuple[str, int], ...]
    independent: float
    independent90: float
    together: float
    together90: float

    @classmethod
    def of(cls, operators: Iterable[OperatorPrediction]) -> Sums:
        shares = [0] * COVERAGES
        families: dict[str, int] = {}
        independent = independent90 = together = together90 = 0.0
        for operator in operators:
            prediction = operator.prediction
            total_ns = operator.count * prediction.duration_ns
            shares[prediction.coverage] += total_ns
            family = family_of(operator.name)
            families[family] = families.get(family, 0) + total_ns
            if prediction.coverage is Coverage.ANALYTICAL:
                together += total_ns * prediction.error_ratio
                together90 += total_ns * prediction.error90_ratio
            else:
                independent += (total_ns * prediction.error_ratio) ** 2
                independent90 += (total_ns * prediction.error90_ratio) ** 2
        return cls(
            (shares[0], shares[1], shares[2], shares[3], shares[4]),
            tuple(families.items()),
            independent,
            independent90,
            together,
            together90,
        )


def summarise(operators: tuple[OperatorPrediction, ...], parts: Iterable[Sums] | None = None) -> StepPrediction:
    """Adds operators up. parts: their sums, where they are known.

    Executions of one operator err together (the same shape, the same table cell). Analytical operators err together too:
    they share the device's two constants. The others err independently, so the step's error is the root of the summed
    squares of these parts.
    """
    shares = [0] * COVERAGES
    families: list[tuple[str, int]] = []
    independent = independent90 = together = together90 = 0.0
    for part in (Sums.of(operators),) if parts is None else parts:
        for index, share_ns in enumerate(part.coverage_ns):
            shares[index] += share_ns
        families += part.families_ns
        independent += part.independent
        independent90 += part.independent90
        together += part.together
        together90 += part.together90
    duration_ns = sum(shares)
    return StepPrediction(
        operators=operators,
        duration_ns=duration_ns,
        coverage_ns=(shares[0], shares[1], shares[2], shares[3], shares[4]),
        error_ratio=math.sqrt(independent + together * together) / duration_ns if duration_ns else 0.0,
        error90_ratio=math.sqrt(independent90 + together90 * together90) / duration_ns if duration_ns else 0.0,
        families_ns=tuple(families),
    )


# Families of operators, for reports; anything else is `other`.
_FAMILY_OF = {
    "attention": "attention",
    "experts": "experts",
    "input_copies": "copies",
    "embedding_all_reduce": "collectives",
    "attention_all_reduce": "collectives",
    "feed_forward_all_reduce": "collectives",
    "logits_all_gather": "collectives",
    "input_preparation": "preparation",
    "attention_metadata": "preparation",
    "graph_launch": "gaps",
    "graph_gaps": "gaps",
    "launch_gaps": "gaps",
    "embedding": "norms and activations",
    "input_norm": "norms and activations",
    "post_attention_norm": "norms and activations",
    "final_norm": "norms and activations",
    "qk_norm_rope": "norms and activations",
    "rope": "norms and activations",
    "latent_norm_rope": "norms and activations",
    "key_concat": "norms and activations",
    "kv_cache_write": "norms and activations",
    "silu_mul": "norms and activations",
    "expert_routing": "norms and activations",
    "gather_rows": "sampling",
    "logits_to_float": "sampling",
    "temperature": "sampling",
    "top_k_mask": "sampling",
    "softmax": "sampling",
    "top_p_sampling": "sampling",
    "gumbel_sampling": "sampling",
    "sampling_state": "sampling",
    "qkv_proj": "matrix products",
    "o_proj": "matrix products",
    "gate_up_proj": "matrix products",
    "down_proj": "matrix products",
    "router": "matrix products",
    "qkv_a_proj": "matrix products",
    "q_b_proj": "matrix products",
    "kv_a_proj": "matrix products",
    "q_proj": "matrix products",
    "kv_b_proj": "matrix products",
    "q_absorb": "matrix products",
    "v_expand": "matrix products",
    "shared_gate_up_proj": "matrix products",
    "shared_down_proj": "matrix products",
    "dense_gate_up_proj": "matrix products",
    "dense_down_proj": "matrix products",
    "quantised_product": "matrix products",
    "lm_head": "matrix products",
}


def family_of(operator: str) -> str:
    """The family of an operator of a step, by its name: what a report adds up."""
    return _FAMILY_OF.get(operator, "other")
