"""A layer of experts from its measured token counts.

Measured: the whole of one layer (sorting tokens by expert, both grouped products, the activation between them, the
weighted sum) for 27 to 30 token counts, with tokens spread over experts by a power law. Between two of them the latency
is linear in tokens: few tokens pay for the weights of each expert that they reach, many for arithmetic.
A layer that was not measured is refused by name: from dense products it would be wrong by a factor.

It must never return less than the reached experts' weights at the peak bandwidth, or the operations at the peak rate.
The router before it is a matrix product like any other, and which expert a token takes depends on values that nobody
computes here: the spread over experts is an assumption that the error includes.
"""

from __future__ import annotations

from bisect import bisect_left

from hyperlapse.predictor.database import ExpertConfig, ExpertTable, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage, DatabaseError, Prediction, UnsupportedModelError
from hyperlapse.predictor.transfer import expert_work

# Kernels of one layer: counting and sorting tokens, two grouped products, the activation, the sum.
EXPERT_LAUNCHES = 5


class ExpertModel:
    """Durations of one layer of experts on one device."""

    def __init__(self, table: ExpertTable, config: ExpertConfig, device: DeviceSpec) -> None:
        self._config, self._device = config, device
        self._tokens: list[int] = table.tokens.tolist()
        self._latency_ns: list[float] = table.latency_ns.tolist()
        self._coverage = table.coverage

    @classmethod
    def of(cls, database: KernelDatabase, config: ExpertConfig, device: DeviceSpec, name: str) -> ExpertModel:
        """Raises UnsupportedModelError, which says what is measured, for a layer that nobody measured."""
        try:
            return cls(database.experts(config), config, device)
        except DatabaseError as error:
            raise UnsupportedModelError(f"{name}: its experts cannot be priced on {device.name}: {error}") from error
        except KeyError:
            measured = ", ".join(
                f"{each.experts}x{each.hidden}x{each.intermediate} ({each.active} active)"
                for each in database.expert_configs()
            )
            raise UnsupportedModelError(
                f"{name}: experts of shape {config.experts}x{config.hidden}x{config.intermediate} ({config.active} active)"
                f" were not measured on {device.name} (measured: {measured})"
            ) from None

    def predict(self, tokens: int) -> Prediction:
        """One layer over so many tokens."""
        latency_ns, coverage = self.latency_ns(tokens)
        size_bytes, operations = expert_work(self._config, float(tokens))
        # Not the weights of the experts that could be reached, but of those that must be: tokens may agree on theirs.
        least = min(self._config.active, self._config.experts)
        least_bytes = min(size_bytes, 2.0 * 3 * least * self._config.intermediate * self._config.hidden)
        duration_ns = max(
            latency_ns - EXPERT_LAUNCHES * self._device.graph_gap_ns, self._device.light_ns(least_bytes, operations)
        )
        return Prediction(round(duration_ns), max(coverage, self._coverage), 0.0)

    def latency_ns(self, tokens: int) -> tuple[float, Coverage]:
        """As measured, with the gaps between its kernels inside."""
        at = bisect_left(self._tokens, tokens)
        if at == len(self._tokens):
            return self._latency_ns[-1] * tokens / self._tokens[-1], Coverage.EXTRAPOLATED
        if self._tokens[at] == tokens or at == 0:
            return self._latency_ns[at], Coverage.MEASURED if self._tokens[at] == tokens else Coverage.EXTRAPOLATED
        low, high = self._tokens[at - 1], self._tokens[at]
        weight = (tokens - low) / (high - low)
        return self._latency_ns[at - 1] * (1 - weight) + self._latency_ns[at] * weight, Coverage.INTERPOLATED
