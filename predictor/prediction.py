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
    error_ratio: expected relative error (0.05: five per cent), the median of `hyperlapse.predictor.score` for measured
    origins, a stated guess for analytical ones.
    """

    duration_ns: int
    coverage: Coverage
    error_ratio: float


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
    """One engine step: operators in the engine's order. coverage_ns sums to duration_ns exactly."""

    operators: tuple[OperatorPrediction, ...]
    duration_ns: int
    coverage_ns: CoverageShares
    error_ratio: float


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


def summarise(operators: tuple[OperatorPrediction, ...]) -> StepPrediction:
    """Adds operators up.

    Executions of one operator err together (the same shape, the same table cell), different operators err
    independently: the step's error is the root of the summed squares of each operator's absolute error.
    """
    shares = [0] * COVERAGES
    squares = 0.0
    for operator in operators:
        total_ns = operator.count * operator.prediction.duration_ns
        shares[operator.prediction.coverage] += total_ns
        error_ns = total_ns * operator.prediction.error_ratio
        squares += error_ns * error_ns
    duration_ns = sum(shares)
    return StepPrediction(
        operators=operators,
        duration_ns=duration_ns,
        coverage_ns=(shares[0], shares[1], shares[2], shares[3], shares[4]),
        error_ratio=math.sqrt(squares) / duration_ns if duration_ns else 0.0,
    )
