"""From errors of durations to error bars of results: what a run's prices say about its latencies.

Method. Each operator has a relative error from held-out measurements (accuracy.py), as a median and as the size that nine
in ten stay below. A step adds its operators up (`prediction.summarise`): measured families err independently, analytical
operators together. Steps of one run err together, because they are the same kernels again and again, so the error of a
run's device time is the mean over what was priced, weighted with duration, and not smaller by the number of steps.

A latency that consists of steps has the error of its steps. Time to the first token also waits for the steps of others:
in a queue that is there for a share rho of the time, waiting grows as 1 / (1 - rho) when its service times do, so its error
is that much larger, up to LIMIT. rho is not the GPU's busy share: a GPU that decodes is busy all the time at any load, while
its batch has room for whoever comes. Throughput is the offered load where no request waits: then nothing can be said about
its error from durations, and it has none. Where requests wait it has at most that of a step, which is what it gets.

It must never be read as a bound: model error beyond the kernels (host time, scheduling) is not in it, and analytical
operators carry a stated guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

LIMIT = 5.0
"""How much larger than a step's an error of time to first token is called at most: beyond, the run is saturated and its
queue has no stationary length."""


@dataclass(slots=True)
class PricedTime:
    """What was priced in a run, added up. Prices are asked once for each shape: weights are durations of distinct prices."""

    launches: int = 0
    duration_ns: int = 0
    _error_ns: float = 0.0
    _error90_ns: float = 0.0
    _families: dict[str, int] = field(default_factory=dict)

    def add(
        self, duration_ns: int, error_ratio: float, error90_ratio: float, families: Iterable[tuple[str, int]]
    ) -> None:
        """One price and the durations of its families."""
        self.launches += 1
        self.duration_ns += duration_ns
        self._error_ns += duration_ns * error_ratio
        self._error90_ns += duration_ns * error90_ratio
        for family, part_ns in families:
            self._families[family] = self._families.get(family, 0) + part_ns

    @property
    def error_ratio(self) -> float:
        return self._error_ns / self.duration_ns if self.duration_ns else 0.0

    @property
    def error90_ratio(self) -> float:
        return self._error90_ns / self.duration_ns if self.duration_ns else 0.0

    def as_dict(self, notes: Iterable[str] = ()) -> dict[str, object]:
        """For `pricing.json` of a run."""
        return {
            "launches": self.launches,
            "duration_ns": self.duration_ns,
            "error_ratio": round(self.error_ratio, 4),
            "error_ratio_90": round(self.error90_ratio, 4),
            "by_family": dict(sorted(self._families.items(), key=lambda item: -item[1])),
            "coverage_notes": list(notes),
        }


def metric_errors(device_error: float, queue_share: float) -> dict[str, float | None]:
    """Relative half-widths of a result's metrics from the error of its device time; None where none can be derived.

    queue_share: share of the measured time in which requests waited for a place in the batch, from 0 to 1. Raises
    ValueError outside.
    """
    if not 0 <= queue_share <= 1:
        raise ValueError(f"a queue share of {queue_share} does not lie between 0 and 1")
    if device_error < 0:
        raise ValueError(f"a device error of {device_error} is negative")
    queueing = min(1 / (1 - queue_share), LIMIT) if queue_share < 1 else LIMIT
    return {
        "tpot": device_error,
        "itl": device_error,
        "e2e": device_error,
        "ttft": device_error * queueing,
        "throughput": device_error if queue_share else None,
    }
