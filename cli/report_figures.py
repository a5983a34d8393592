"""What the charts of a report show: columns of requests and steps become a few hundred points.

Why: a run may have a million steps, a page should open at once. Distributions use every sample. Series over time are
thinned by a stated rule. It must never smooth: a peak that was there is drawn. It must never know HTML.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperlapse.cli.metrics import NANOSECONDS_PER_MS, NANOSECONDS_PER_S

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

DRAWN_STEPS = 2_000
INTERVALS = 500
RATE_INTERVALS = 75
HISTOGRAM_BINS = 48
QUANTILES = 201
THINNING = (
    f"Of more than {DRAWN_STEPS:,} steps, the lowest and the highest value in each of {INTERVALS} equal intervals "
    "are drawn."
)


@dataclass(frozen=True, slots=True)
class Samples:
    """The latencies of a report's requests in milliseconds, by metric (ttft_ms, ...)."""

    values: Mapping[str, NDArray[float64]]

    @classmethod
    def of(cls, requests: Mapping[str, Sequence[Any]]) -> Samples:
        """From the columns of a report."""
        import numpy

        ttft, tpot, itl, e2e = [], [], [], []
        for status, tokens, first, whole, count in zip(
            requests["status"], requests["token_ns"], requests["ttft_ns"], requests["e2e_ns"], requests["output_tokens"],
            strict=True,
        ):  # fmt: skip
            if status != "ok":
                continue
            ttft.append(first)
            e2e.append(whole)
            if count > 1:
                tpot.append((whole - first) / (count - 1))
            itl.append(numpy.diff(numpy.asarray(tokens, dtype=numpy.float64)))
        gaps = numpy.concatenate(itl) if itl else numpy.empty(0)
        milliseconds = {
            "ttft_ms": numpy.asarray(ttft, dtype=numpy.float64) / NANOSECONDS_PER_MS,
            "tpot_ms": numpy.asarray(tpot, dtype=numpy.float64) / NANOSECONDS_PER_MS,
            "itl_ms": gaps / NANOSECONDS_PER_MS,
            "e2e_ms": numpy.asarray(e2e, dtype=numpy.float64) / NANOSECONDS_PER_MS,
        }
        return cls(milliseconds)


def distribution(samples: NDArray[float64], noun: str) -> dict[str, Any]:
    """A histogram and a cumulative view of one latency. noun: what a sample is (`requests`, `gaps`)."""
    import numpy

    median, p99 = (float(value) for value in numpy.percentile(samples, (50, 99)))
    top = float(samples.max())
    # A far tail would press everything else against the axis: it is left out of the histogram, not of the other view.
    edge = top if top <= 4 * p99 else 1.5 * p99
    low = float(samples.min())
    if edge - low < 1e-6 * max(edge, 1.0):
        low, edge = low * 0.98, edge * 1.02 or 1.0
    counts, edges = numpy.histogram(samples, bins=HISTOGRAM_BINS, range=(low, edge))
    shares = counts / len(samples) * 100
    centres = (edges[:-1] + edges[1:]) / 2
    width = float(edges[1] - edges[0])
    marks = _marks(median, p99, low, edge)
    beyond = int((samples > edge).sum())
    title = "ms" if not beyond else f"ms ({beyond:,} of {len(samples):,} {noun} lie beyond)"
    return {
        "views": {
            "histogram": {
                "kind": "bars", "x": short(centres), "width": width, "xtitle": title, "ytitle": f"% of {noun}",
                "marks": marks, "xrange": [max(0.0, low - width), edge + width], "xhover": ".4~g",
                "series": [{"name": "share", "colour": "c1", "y": short(shares), "hover": "%{y:.2f} %<extra></extra>"}],
            },
            "cdf": {
                **cumulative([("share", "c1", samples)], noun), "marks": _marks(median, p99, low, top),
            },
        }
    }  # fmt: skip


def _marks(median: float, p99: float, low: float, high: float) -> list[dict[str, Any]]:
    """Labels at the edge are turned inwards, and two that would touch lean apart."""
    span = high - low or 1.0
    near = (p99 - median) / span < 0.16
    left = "right" if near and (median - low) / span > 0.1 else "center"
    right = "right" if (high - p99) / span < 0.05 and not near else "left" if near else "center"
    return [{"x": median, "label": "p50", "anchor": left}, {"x": p99, "label": "p99", "anchor": right}]


def cumulative(series: Sequence[tuple[str, str, NDArray[float64]]], noun: str) -> dict[str, Any]:
    """The share of samples at or below each value, for (name, colour, samples)."""
    import numpy

    shares = numpy.linspace(0, 100, QUANTILES)
    return {
        "kind": "lines", "xtitle": "ms", "ytitle": f"% of {noun}", "yrange": [0, 101], "xhover": ".4~g",
        "series": [
            {
                "name": name, "colour": colour, "x": short(numpy.percentile(samples, shares)), "y": short(shares),
                "fill": len(series) == 1, "dash": "dot" if place else "solid", "hover": f"{name} %{{y:.1f}} %<extra></extra>",
            }
            for place, (name, colour, samples) in enumerate(series) if len(samples)
        ],
    }  # fmt: skip


def thin(x: NDArray[float64], y: NDArray[float64]) -> tuple[list[float], list[float | None]]:
    """At most DRAWN_STEPS points: THINNING says how."""
    import numpy

    if len(x) <= DRAWN_STEPS:
        return short(x), short(y)
    places = numpy.minimum(((x - x[0]) / ((x[-1] - x[0]) or 1.0) * INTERVALS).astype(int), INTERVALS - 1)
    kept: list[int] = []
    for begin, end in _runs(places):
        part = y[begin:end]
        if numpy.isnan(part).all():
            kept.append(begin)
        else:
            kept += sorted({begin + int(numpy.nanargmin(part)), begin + int(numpy.nanargmax(part))})
    return short(x[kept]), short(y[kept])


def _runs(places: NDArray[Any]) -> list[tuple[int, int]]:
    import numpy

    cuts = [0, *(numpy.flatnonzero(numpy.diff(places)) + 1).tolist(), len(places)]
    return [(begin, end) for begin, end in itertools.pairwise(cuts) if end > begin]


def over_time(
    steps: Mapping[str, Sequence[Any]], column: str, scale: float = 1.0
) -> tuple[list[float], list[float | None]]:
    """A column of the steps at the ends of the steps (s), in their order."""
    import numpy

    ends = (
        numpy.asarray(steps["start_ns"], dtype=numpy.float64) + numpy.asarray(steps["duration_ns"])
    ) / NANOSECONDS_PER_S
    values = numpy.asarray([numpy.nan if value is None else value for value in steps[column]], dtype=numpy.float64)
    order = numpy.argsort(ends, kind="stable")
    return thin(ends[order], values[order] * scale)


def sums(
    steps: Mapping[str, Sequence[Any]], columns: Sequence[str], *, per_second: bool
) -> tuple[list[float], list[list[float]]]:
    """Columns added up in RATE_INTERVALS equal intervals of the run, by the start of a step; x is an interval's middle (s)."""
    import numpy

    starts = numpy.asarray(steps["start_ns"], dtype=numpy.float64) / NANOSECONDS_PER_S
    durations = numpy.asarray(steps["duration_ns"], dtype=numpy.float64) / NANOSECONDS_PER_S
    edges = numpy.linspace(0.0, max(float((starts + durations).max()), 1e-9), RATE_INTERVALS + 1)
    width = float(edges[1] - edges[0])
    found = []
    for column in columns:
        weights = numpy.asarray([value or 0 for value in steps[column]], dtype=numpy.float64)
        totals, _ = numpy.histogram(starts, bins=edges, weights=weights)
        found.append(short(totals / width if per_second else totals))
    return short((edges[:-1] + edges[1:]) / 2), found


def busy_share(steps: Mapping[str, Sequence[Any]]) -> tuple[list[float], list[float]]:
    """How much of each of RATE_INTERVALS equal intervals the first device ran a step, in per cent."""
    import numpy

    devices = numpy.asarray(steps["device"])
    first = devices == devices.min()
    starts = numpy.asarray(steps["start_ns"], dtype=numpy.float64)[first] / NANOSECONDS_PER_S
    durations = numpy.asarray(steps["duration_ns"], dtype=numpy.float64)[first] / NANOSECONDS_PER_S
    edges = numpy.linspace(0.0, max(float((starts + durations).max()), 1e-9), RATE_INTERVALS + 1)
    # Steps of a device follow each other, so the busy time up to an instant is linear between their starts and ends.
    instants = numpy.stack([starts, starts + durations], axis=1).ravel()
    spent = numpy.concatenate([[0.0], numpy.cumsum(durations)])
    busy = numpy.stack([spent[:-1], spent[1:]], axis=1).ravel()
    at_edges = numpy.interp(edges, instants, busy)
    return short((edges[:-1] + edges[1:]) / 2), short(numpy.diff(at_edges) / (edges[1] - edges[0]) * 100)


def short(values: Any) -> list[Any]:
    """For the page: six significant digits, None for what is not known."""
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in values]
