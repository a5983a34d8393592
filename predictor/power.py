"""The power limit: matrix products that go on for long run slower than the same products measured alone.

Why: tables of matrix products come from short runs at the boost clock. A large prefill keeps the tensor cores busy for
hundreds of milliseconds, the board reaches its power limit, and the clock falls within the step. On an H100 under vLLM
every matrix product of prefills of 2,048 to 8,192 tokens starts at its table's duration and is a tenth longer from
the 50th millisecond on (the product's YAML has the source).

The limit is taken to be far at the start of each step: between two prefills lie decodes, which draw less, and the clock
was seen back at its boost after one of them. It must never be applied to products without measured figures of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage, Prediction

_CACHE_LIMIT = 16384


class PowerLimit:
    """Durations of matrix products within a step that has `busy_ns(m)` of them over m rows."""

    def __init__(self, device: DeviceSpec, busy_ns: Callable[[int], float]) -> None:
        self._after_ns = device.power_limit_after_ns
        self._slowdown = device.power_limit_slowdown
        self._tables_below_ns = device.power_limit_tables_below_ns
        self._busy_ns = busy_ns
        self._factors: dict[int, float] = {}

    def factor(self, rows: int) -> float:
        """How much longer the step's matrix products are on average; 1 where the limit is not reached or not known."""
        if not self._slowdown:
            return 1.0
        found = self._factors.get(rows)
        if found is None:
            if len(self._factors) >= _CACHE_LIMIT:
                self._factors.clear()
            busy_ns = self._busy_ns(rows)
            late_ns = max(busy_ns - self._after_ns, 0.0)
            found = self._factors[rows] = 1.0 + (self._slowdown - 1.0) * (late_ns / busy_ns if late_ns else 0.0)
        return found

    def apply(self, product: Prediction, rows: int) -> Prediction:
        """The product within such a step. One whose measurement itself ran at the limit stays as it is."""
        if product.duration_ns >= self._tables_below_ns:
            return product
        factor = self.factor(rows)
        if factor == 1.0:
            return product
        coverage = max(product.coverage, Coverage.INTERPOLATED)
        return dataclasses.replace(product, duration_ns=round(product.duration_ns * factor), coverage=coverage)
