"""Matrix products from measured ones.

How: at a measured (n, k) the latency is a curve over m. Where streaming the weights takes more than twice as long as
the arithmetic, the reached bandwidth cannot jump with m. In the tables it does, between two values 17 % apart, at
shapes where another collection on the same product has no jump: it is the measuring GPU that changes, so each row takes
the median of its neighbours' bandwidth. Above that range cost goes in tiles, and cuBLAS changes kernels from one tile
count to the next: the tables hold both sides of each boundary (1,024 and 1,025; ...), both collections show the same
steps, and a query is interpolated between its two neighbours in whole tiles, never smoothed across one.
Between measured (n, k) the rate, latency / (n k), is interpolated in the logarithms of n and k.

It must never smooth over m above the streaming range: 65 us at m = 1,024 and 102 us at 1,025 (5,120 x 5,120) is real.
Rejected: gradient-boosted trees over shapes and tile waves (`score --xgboost`). They are a little better on scattered
sites, not on a whole line of sites, which is how a model's shapes lie to the tables; either way the difference is
smaller than the scatter between two collections.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy
from hyperlapse.predictor.database import Floats, GemmTable
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage, Prediction

# Neighbours on each side whose bandwidth is taken into the median; `score` is flat between 3 and 6.
_WINDOW = 4

# Rows of a tile. With every row of 257 to 1,025 held out in turn, 64 has the smallest 90th percentile of the error
# (19 %; 32: 20, 128: 22, 256: 39, no tiles: 22). The measured step from 768 to 769 rows is a seventh of the rise to
# 1,024, which is what one 64-row tile in four gives when part of the cost does not come in tiles.
TILE = 64

_CACHE_LIMIT = 65536

Curve = tuple[list[int], list[float], Coverage, list[bool]]


class GemmModel:
    """Durations of `m x k times k x n` products of one element type on one device."""

    def __init__(
        self,
        table: GemmTable,
        device: DeviceSpec,
        element_bytes: int = 2,
        accuracy: Accuracy = accuracies.DEFAULT,
        *,
        launches: int = 1,
        family: str = accuracies.GEMM,
    ) -> None:
        """element_bytes: of the weights; launches: kernels of one product, the gaps after them are inside each figure;
        family: whose errors they have.
        """
        self._launches = launches
        self._family = family
        self._replaced = table.replaced
        self._device = device
        self._accuracy = accuracy
        self._least_coverage = table.coverage
        self._element_bytes = element_bytes
        self._m: list[int] = table.m.tolist()
        self._n: list[int] = table.n.tolist()
        self._k: list[int] = table.k.tolist()
        self._log_rate = np.log(steady_streaming(table, device, element_bytes)) - _log_work(table)
        fill_missing_sites(self._log_rate, table.n.astype(float), table.k.astype(float))
        self._curves: dict[tuple[int, int], Curve] = {}
        self._cache: dict[tuple[int, int, int, int], Prediction] = {}

    def predict(self, m: int, n: int, k: int, batch: int = 1) -> Prediction:
        """One product, or `batch` independent ones in one launch (priced as one product `batch` times as wide)."""
        key = (m, n, k, batch)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            found = self._cache[key] = self._predict(m, n, k, batch)
        return found

    def light_ns(self, m: int, n: int, k: int, batch: int = 1) -> float:
        """Speed of light. Weights come from memory; rows may still lie in the L2 cache. Elements of one byte are
        multiplied at twice the rate of those of two.
        """
        operations = 2.0 * m * n * k * batch * min(self._element_bytes, 2) / 2
        return self._device.light_ns(self._element_bytes * n * k * batch, operations)

    def _predict(self, m: int, n: int, k: int, batch: int) -> Prediction:
        if min(m, n, k, batch) <= 0:
            found = accuracies.ANALYTICAL  # a product of nothing is a valid launch
            return Prediction(self._device.kernel_floor_ns, Coverage.ANALYTICAL, found.median, found.p90)
        curve_m, curve_ns, coverage, foreign = self._curve(n * batch, k)
        if batch > 1:
            coverage = Coverage.EXTRAPOLATED
        at = bisect_left(curve_m, m)
        if foreign and any(foreign[max(at - 1, 0) : at + 1]):
            coverage = Coverage.EXTRAPOLATED
        if at == len(curve_m):
            latency_ns = curve_ns[-1] * m / curve_m[-1]
            coverage = Coverage.EXTRAPOLATED
        elif curve_m[at] == m:
            latency_ns = curve_ns[at]
        else:
            weight = tile_weight(curve_m[at - 1], m, curve_m[at])
            latency_ns = curve_ns[at - 1] * (1 - weight) + curve_ns[at] * weight
            coverage = max(coverage, Coverage.INTERPOLATED)
        # The gaps between graph nodes are inside each measured figure; the step adds gaps itself.
        gaps_ns = self._launches * self._device.graph_gap_ns
        duration_ns = max(latency_ns - gaps_ns, self.light_ns(m, n, k, batch))
        coverage = max(coverage, self._least_coverage)
        error = self._accuracy.of(self._family, coverage)
        return Prediction(round(duration_ns), coverage, error.median, error.p90)

    def _curve(self, n: int, k: int) -> Curve:
        """Latency over the measured m at any (n, k), the coverage of a query at a measured m, and which m have cells that
        another table gave (empty: none).
        """
        if (n, k) not in self._curves:
            rows, row_weight, row_coverage = _between(self._n, n)
            columns, column_weight, column_coverage = _between(self._k, k)
            rate = sum(
                self._log_rate[:, row, column] * weight * other
                for row, weight in zip(rows, row_weight, strict=True)
                for column, other in zip(columns, column_weight, strict=True)
                if weight and other
            )
            latency = np.exp(rate + np.log(float(n)) + np.log(float(k)))
            foreign: list[bool] = []
            if self._replaced is not None:
                foreign = np.asarray(self._replaced[:, list(rows), :][:, :, list(columns)].any(axis=(1, 2))).tolist()
            self._curves[n, k] = (self._m, latency.tolist(), max(row_coverage, column_coverage), foreign)
        return self._curves[n, k]


def tile_weight(low: int, m: int, high: int, tile: int = TILE) -> float:
    """Weight of the upper of two measured neighbours: linear in whole tiles, in rows where both lie in one tile."""
    low_tile, m_tile, high_tile = -(-low // tile), -(-m // tile), -(-high // tile)
    if low_tile == high_tile:
        return (m - low) / (high - low)
    return (m_tile - low_tile) / (high_tile - low_tile)


def steady_streaming(table: GemmTable, device: DeviceSpec, element_bytes: int) -> Floats:
    """latency_ns with the bandwidth of neighbouring rows made steady where the weights' streaming dominates."""
    m = table.m[:, None, None].astype(float)
    n = table.n[None, :, None].astype(float)
    k = table.k[None, None, :].astype(float)
    size_bytes = element_bytes * (n * k + m * (n + k))
    streaming_ns = size_bytes * 1e9 / device.memory_bandwidth_bytes_per_s
    arithmetic_ns = min(element_bytes, 2) * m * n * k * 1e9 / device.bf16_flops_per_s
    streams = streaming_ns > 2.0 * arithmetic_ns
    inverse_rate = np.where(streams, table.latency_ns / size_bytes, np.nan)
    steady = table.latency_ns.copy()
    for row in range(len(table.m)):
        window = inverse_rate[max(row - _WINDOW, 0) : row + _WINDOW + 1]
        here = streams[row] & ~np.isnan(table.latency_ns[row])
        if here.any():
            with np.errstate(all="ignore"):
                median = np.nanmedian(np.where(here, window, 1.0), axis=0)
            steady[row] = np.where(here, median * size_bytes[row], steady[row])
    return steady


def fill_missing_sites(log_rate: Floats, n: Floats, k: Floats) -> None:
    """Gives each unmeasured (n, k) a rate (in place): interpolated between its neighbours along n and along k, else
    the mean of what is beside it; corners far from anything measured come last.
    """
    missing: npt.NDArray[np.bool_] = np.asarray(np.isnan(log_rate).any(axis=0))
    while missing.any():
        known = ~missing
        for row, column in np.argwhere(missing):
            along = [
                _along(log_rate[:, :, column], known[:, column], np.log(n), row),
                _along(log_rate[:, row, :], known[row, :], np.log(k), column),
            ]
            found = [rate for rate, _ in along if rate is not None]
            between = [rate for rate, inside in along if rate is not None and inside]
            if found:
                log_rate[:, row, column] = np.mean(between or found, axis=0)
                missing[row, column] = False
        if (missing == ~known).all():
            raise ValueError("a GEMM table without a single complete (n, k)")


def _along(rates: Floats, known: npt.NDArray[np.bool_], position: Floats, at: int) -> tuple[Floats | None, bool]:
    """The rate at a place of one axis from the two places beside it, and whether it lies between them."""
    low, high = at - 1 >= 0 and known[at - 1], at + 1 < len(known) and known[at + 1]
    if low and high:
        weight = (position[at] - position[at - 1]) / (position[at + 1] - position[at - 1])
        between: Floats = rates[:, at - 1] * (1 - weight) + rates[:, at + 1] * weight
        return between, True
    if low or high:
        return rates[:, at - 1 if low else at + 1], False
    return None, False


def _log_work(table: GemmTable) -> Floats:
    work: Floats = np.log(table.n.astype(float))[None, :, None] + np.log(table.k.astype(float))[None, None, :]
    return work


def _between(axis: list[int], value: int) -> tuple[tuple[int, int], tuple[float, float], Coverage]:
    """Neighbours of a value on an axis, their weights in the logarithm, and what using them is called."""
    at = bisect_left(axis, value)
    if at == len(axis):
        return (at - 1, at - 1), (1.0, 0.0), Coverage.EXTRAPOLATED
    if axis[at] == value:
        return (at, at), (1.0, 0.0), Coverage.MEASURED
    if at == 0:
        return (0, 0), (1.0, 0.0), Coverage.EXTRAPOLATED
    weight = float(np.log(value / axis[at - 1]) / np.log(axis[at] / axis[at - 1]))
    return (at - 1, at), (1.0 - weight, weight), Coverage.INTERPOLATED
