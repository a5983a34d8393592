"""A layer of experts from its measured token counts.

Measured: the whole of one layer (sorting tokens by expert, both grouped products, the activation between them, the
weighted sum) for 27 to 30 token counts, with tokens spread over experts by a power law. Between two of them the latency
is linear in tokens: few tokens pay for the weights of each expert that they reach, many for arithmetic.
Where GPUs share each expert's columns, a layer is one GPU's, measured as such.
A layer of another shape than a measured one takes the efficiency of the nearest measured shape of the same element type
(its time at light speed over its latency) at as many tokens an expert: with each shape left out in turn, the median error
on an H100 is 5 % and nine in ten stay below 14 % (`score`). From dense products it would be wrong by a factor. Shards take
it from shards among as many GPUs: the narrower they are, the more their kernels' own costs count, and from whole layers
eight would be twice as wrong.

It must never return less than the reached experts' weights at the peak bandwidth, or the operations at the peak rate.
The router before it is a matrix product like any other, and which expert a token takes depends on values that nobody
computes here: the spread over experts is an assumption that the error includes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from hyperlapse.predictor.database import ExpertConfig, ExpertTable, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage, DatabaseError, Prediction, UnsupportedModelError
from hyperlapse.predictor.quantization import weight_bytes_of
from hyperlapse.predictor.transfer import expert_work

# Of the light time of three products' weights. Measured on an H100: 0.87 and more where models are known to have a gate (the
# least with one active expert, which the power law spares some), 0.69 and 0.78 where they are known to have none.
_GATED_SHARE = 0.83

# Kernels of one layer: counting and sorting tokens, two grouped products, the activation, the sum.
EXPERT_LAUNCHES = 5


def expert_launches(dtype: str) -> int:
    """Kernels of one layer of this element type: quantised products have their inputs quantised before each."""
    return EXPERT_LAUNCHES + (2 if weight_bytes_of(dtype) else 0)


class ExpertModel:
    """Durations of one layer of experts on one device."""

    def __init__(self, table: ExpertTable, config: ExpertConfig, device: DeviceSpec) -> None:
        self._config, self._device = config, device
        self._tokens: list[int] = table.tokens.tolist()
        self._latency_ns: list[float] = table.latency_ns.tolist()
        self._coverage = table.coverage

    @classmethod
    def of(cls, database: KernelDatabase, config: ExpertConfig, device: DeviceSpec, name: str) -> ExpertModel:
        """The layer as measured, else after the nearest shape. Raises UnsupportedModelError where no layer of this element
        type was measured.
        """
        try:
            return cls(database.experts(config), config, device)
        except DatabaseError as error:
            raise UnsupportedModelError(f"{name}: its experts cannot be priced on {device.name}: {error}") from error
        except KeyError:
            pass
        on_as_many = database.expert_configs(config.ranks)
        measured = [each for each in on_as_many if each.dtype == config.dtype]
        if not measured:
            types = ", ".join(sorted({each.dtype for each in on_as_many}))
            shared = f" shared by {config.ranks} GPUs" if config.ranks > 1 else ""
            raise UnsupportedModelError(
                f"{name}: experts in {config.dtype}{shared} were not measured on {device.name} (measured: {types or 'none'})"
            )
        like = nearest_shape(config, gated_shapes(database, measured, device))
        return cls(reshaped(database.experts(like), like, config, device), config, device)

    def predict(self, tokens: int) -> Prediction:
        """One layer over so many tokens."""
        latency_ns, coverage = self.latency_ns(tokens)
        size_bytes, operations = expert_work(self._config, float(tokens))
        # Not the weights of the experts that could be reached, but of those that must be: tokens may agree on theirs.
        least = min(self._config.active, self._config.experts)
        element_bytes = weight_bytes_of(self._config.dtype) or 2
        least_bytes = min(size_bytes, 3.0 * element_bytes * least * self._config.intermediate * self._config.hidden)
        duration_ns = max(
            latency_ns - expert_launches(self._config.dtype) * self._device.graph_gap_ns,
            self._device.light_ns(least_bytes, operations),
        )
        return Prediction(round(duration_ns), max(coverage, self._coverage), 0.0)

    def latency_ns(self, tokens: float) -> tuple[float, Coverage]:
        """As measured, with the gaps between its kernels inside."""
        at = bisect_left(self._tokens, tokens)
        if at == len(self._tokens):
            return self._latency_ns[-1] * tokens / self._tokens[-1], Coverage.EXTRAPOLATED
        if self._tokens[at] == tokens or at == 0:
            return self._latency_ns[at], Coverage.MEASURED if self._tokens[at] == tokens else Coverage.EXTRAPOLATED
        low, high = self._tokens[at - 1], self._tokens[at]
        weight = (tokens - low) / (high - low)
        return self._latency_ns[at - 1] * (1 - weight) + self._latency_ns[at] * weight, Coverage.INTERPOLATED


def gated_shapes(
    database: KernelDatabase, measured: Sequence[ExpertConfig], device: DeviceSpec
) -> tuple[ExpertConfig, ...]:
    """Those whose experts have three products each. The tables hold some with two (without a gate) and do not say so: they
    are the ones that would have read the weights of three faster than the memory gives them.
    """
    return tuple(config for config in measured if _is_gated(database, config, device))


def _is_gated(database: KernelDatabase, config: ExpertConfig, device: DeviceSpec) -> bool:
    if config.ranks > 1:  # a shard has as many products as the whole, whose weights tell better
        whole = dataclasses.replace(config, intermediate=config.intermediate * config.ranks, ranks=1)
        with contextlib.suppress(KeyError):
            return _is_gated(database, whole, device)
    table = database.experts(config)
    # From about eight tokens an expert on nearly every expert is reached, also by the power law.
    at = min(int(np.searchsorted(table.tokens, 8 * config.experts / config.active)), len(table.tokens) - 1)
    size_bytes, _ = expert_work(config, float(config.experts))
    return bool(table.latency_ns[at] >= _GATED_SHARE * device.light_ns(size_bytes, 0.0))


def nearest_shape(config: ExpertConfig, measured: Sequence[ExpertConfig]) -> ExpertConfig:
    """The measured shape with the most similar products: widths count twice as much as the share of experts in use."""

    def distance(other: ExpertConfig) -> float:
        sparsity = (config.experts / config.active) / (other.experts / other.active)
        widths = (config.hidden / other.hidden, config.intermediate / other.intermediate)
        return sum(abs(math.log(ratio)) for ratio in widths) + abs(math.log(sparsity)) / 2

    return min(measured, key=lambda other: (distance(other), other))


def reshaped(table: ExpertTable, like: ExpertConfig, config: ExpertConfig, device: DeviceSpec) -> ExpertTable:
    """The table that a layer of another shape would have, at the same token counts.

    What the kernels cost however little they do stays; the rest keeps its efficiency at as many tokens an expert.
    """
    fixed_ns = float(expert_launches(config.dtype) * device.graph_gap_ns + device.kernel_floor_ns)
    model = ExpertModel(table, like, device)
    latency_ns = []
    for tokens in table.tokens.tolist():
        same = max(tokens * (config.active / config.experts) / (like.active / like.experts), 1.0)
        there_ns, here_ns = _light_ns(like, same, device), _light_ns(config, tokens, device)
        latency_ns.append(fixed_ns + max(model.latency_ns(same)[0] - fixed_ns, there_ns) * here_ns / there_ns)
    return ExpertTable(table.tokens, np.array(latency_ns), Coverage.EXTRAPOLATED)


def _light_ns(config: ExpertConfig, tokens: float, device: DeviceSpec) -> float:
    """Bytes at the peak bandwidth and operations at the peak rate, one after the other, for evenly spread tokens."""
    size_bytes, operations = expert_work(config, tokens)
    reached = 1 - (1 - config.active / config.experts) ** tokens
    element_bytes = weight_bytes_of(config.dtype) or 2
    weights_bytes = 3.0 * element_bytes * config.experts * reached * config.intermediate * config.hidden
    most_bytes = min(tokens * config.active, config.experts) * 3.0 * element_bytes * config.intermediate * config.hidden
    size_bytes += weights_bytes - most_bytes
    return float(size_bytes * 1e9 / device.memory_bandwidth_bytes_per_s + operations * 1e9 / device.bf16_flops_per_s)
