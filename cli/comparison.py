"""Two reports side by side: what differs in how they were made, and in what came out.

Why: most runs are made to be compared: an engine's version, a flag, a GPU. It must never say that something changed
without saying whether that is more than the error estimate, and never compare different workloads in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperlapse.cli import report_figures as figures
from hyperlapse.cli import report_html as html
from hyperlapse.cli.report_data import LATENCIES

STATISTICS = ("mean", "p50", "p90", "p99")
WORKLOAD = ("kind", "requests", "rate_per_s", "concurrency", "input_tokens", "output_tokens", "seed")
COLOURS = ("c1", "c2")
NAMES = ("A", "B")


def compare(one: Mapping[str, Any], other: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """The object of `compare --json`. Differences are B less A; `within_estimate` is null without an estimate."""
    return {
        "schema": "hyperlapse-comparison",
        "version": 1,
        "a": _side(one, paths[0]),
        "b": _side(other, paths[1]),
        "warnings": differing_workloads(one, other),
        "configuration": configuration(one, other),
        "metrics": metrics(one, other),
    }


def _side(report: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {"path": str(path), "title": html.title(report), "about": html.about(report), "created": report["created"]}


def configuration(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the runs were made from, one entry a fact."""
    sides = [_settings(one), _settings(other)]
    return [
        {
            "name": name,
            "a": sides[0].get(name),
            "b": sides[1].get(name),
            "same": sides[0].get(name) == sides[1].get(name),
        }
        for name in dict.fromkeys([*sides[0], *sides[1]])
    ]


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    result, given, environment = report["result"], report["workload"], report["environment"]
    provenance = result["provenance"]
    tables = provenance.get("price_tables") or {}
    versions = provenance.get("engine_versions") or {}
    found = {
        "model": result["model"],
        "GPU": f"{result['gpus']} × {result['gpu']}",
        "engine": f"{result['engine']} {result['engine_version']}",
        "PyTorch": versions.get("torch"),
        "transformers": versions.get("transformers"),
        "engine flags": " ".join(provenance.get("engine_flags") or []) or "none",
        "detail": result["detail"],
        "clock": result["clock"],
        "compile cache": result.get("compile_cache"),
        "workload": html.load(report),
        "seed": result["seed"],
        "durations": provenance.get("predictor"),
        "kernel database": tables.get("package"),
        "kernel tables": tables.get("tables_sha256"),
        "device facts": tables.get("device_facts_sha256"),
        "host-time model": json.dumps(provenance.get("host_time") or {}, sort_keys=True),
        "model configuration": provenance.get("model_sha256"),
        "device profile": (provenance.get("device_profile") or {}).get("sha256"),
        "trace": provenance.get("trace_sha256"),
        "KV-cache blocks": result["kv_blocks"],
        "hyperlapse": provenance.get("hyperlapse_version"),
    }
    if given is None:
        del found["workload"]
    if environment is not None:
        found["hyperlapse commit"] = environment["hyperlapse_commit"]
        found["hyperlapse sources"] = environment["hyperlapse_sources_sha256"]
        found["host CPU"] = environment["host_cpu"]
    return found


def differing_workloads(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the differences."""
    found = []
    sides = one["workload"], other["workload"]
    if None in sides:
        found.append("A result of bench --json does not say its workload: look whether the two are the same.")
    else:
        parts = [
            f"{name.replace('_', ' ')} {sides[0][name]} and {sides[1][name]}"
            for name in WORKLOAD
            if sides[0][name] != sides[1][name]
        ]
        traces = [side["result"]["provenance"].get("trace_sha256") for side in (one, other)]
        if traces[0] != traces[1] and not parts:
            parts.append("different trace files")
        if parts:
            found.append(f"The workloads differ ({', '.join(parts)}): the latencies are those of different loads.")
    for report, name in ((one, "A"), (other, "B")):
        found += [f"{name}: {text}" for text in html.warnings(report)]
    return found


def metrics(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure of both: latencies in ms, then throughput and counts."""
    found = []
    estimates = [side["estimate"] or {} for side in (one, other)]
    ratios = [estimate.get("metric_ratios", {}) for estimate in estimates]
    reasons = [estimate["without_interval"].get("throughput") if estimate else None for estimate in estimates]
    without = "; ".join(f"{side} {reason}" for side, reason in zip(NAMES, reasons, strict=True) if reason) or None
    for name in LATENCIES:
        key = name.removesuffix("_ms")
        for statistic in STATISTICS:
            values = [side["metrics"][name][statistic]["value"] for side in (one, other)]
            found.append(_metric(html.METRICS[name][0], statistic, "ms", values, [side.get(key) for side in ratios]))
    for name, label, unit in (
        ("output_tokens_per_s", "output tokens", "per s"),
        ("requests_per_s", "requests", "per s"),
    ):
        values = [side["metrics"][name]["value"] for side in (one, other)]
        found.append(_metric(label, "", unit, values, [side.get("throughput") for side in ratios], without))
    results = [side["result"] for side in (one, other)]
    for name, label, unit in (
        ("virtual_s", "virtual time", "s"),
        ("real_s", "real time", "s"),
        ("preemptions", "preemptions", ""),
    ):
        found.append(_metric(label, "", unit, [result[name] for result in results], [None, None]))
    return found


def _metric(
    name: str,
    statistic: str,
    unit: str,
    values: Sequence[float | None],
    ratios: Sequence[float | None],
    without: str | None = None,
) -> dict[str, Any]:
    """without: why there is no estimate, where that is known."""
    a, b = values
    difference = relative = bound = None
    if a is not None and b is not None:
        difference = b - a
        relative = difference / a if a else None
        if ratios[0] is not None and ratios[1] is not None:
            bound = math.hypot(a * ratios[0], b * ratios[1])
    return {
        "name": name,
        "statistic": statistic,
        "unit": unit,
        "a": a,
        "b": b,
        "difference": difference,
        "relative": relative,
        "estimate": bound,
        "without_estimate": without,
        "within_estimate": None if bound is None or difference is None else abs(difference) <= bound,
    }


# ----- the page -----


def render(comparison: Mapping[str, Any], one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The comparison as one HTML file."""
    charts: dict[str, Any] = {}
    rows = comparison["configuration"]
    content = {
        "sides": [comparison["a"], comparison["b"]],
        "warnings": comparison["warnings"],
        "latencies": [_row(entry) for entry in comparison["metrics"] if entry["statistic"]],
        "others": [_row(entry) for entry in comparison["metrics"] if not entry["statistic"]],
        "without_estimate": without_estimate(comparison["metrics"]),
        "changed": [_setting(row) for row in rows if not row["same"]],
        "same": [_setting(row) for row in rows if row["same"]],
        "distributions": _distributions(one, other, charts),
        "series": _series(one, other, charts),
        "names": NAMES,
        "colours": COLOURS,
        "thinning": figures.THINNING,
    }
    return html.page("compare.html.j2", charts, content)


def difference_text(entry: Mapping[str, Any]) -> str:
    """`+1.25 (+3.4 %)`; a dash where one of the two is not known."""
    if entry["difference"] is None:
        return "–"
    text = signed(html.number(entry["difference"]))
    return text if entry["relative"] is None else f"{text} ({relative_text(entry)} %)"


def relative_text(entry: Mapping[str, Any]) -> str:
    """`+3.4`, in per cent."""
    return "–" if entry["relative"] is None else signed(f"{entry['relative'] * 100:,.1f}")


def signed(text: str) -> str:
    if not text.strip("0.,-"):
        return text.lstrip("-")
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"


def without_estimate(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each reason that a figure has no estimate for."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry["without_estimate"]:
            reasons.setdefault(entry["without_estimate"], []).append(f"{entry['name']} {entry['unit']}".strip())
    return [f"No estimate for {' and '.join(names)}: {reason}." for reason, names in reasons.items()]


def verdict(entry: Mapping[str, Any]) -> str:
    """Whether a difference is more than the error estimate."""
    if entry["within_estimate"] is None:
        return "–"
    if not entry["difference"]:
        return "equal"
    return "inside" if entry["within_estimate"] else "outside"


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    label = f"{entry['name']} {entry['statistic']}".strip()
    return {
        "name": f"{label}, {entry['unit']}" if entry["unit"] and not entry["statistic"] else label,
        "first": entry["statistic"] == "mean",
        "a": html.number(entry["a"]),
        "b": html.number(entry["b"]),
        "difference": "–" if entry["difference"] is None else signed(html.number(entry["difference"])),
        "relative": relative_text(entry),
        "estimate": "–" if entry["estimate"] is None else f"± {html.number(entry['estimate'])}",
        "verdict": verdict(entry),
    }


def _setting(row: Mapping[str, Any]) -> dict[str, str]:
    return {"name": row["name"], "a": _shown(row["a"]), "b": _shown(row["b"])}


def _shown(value: Any) -> str:
    text = "not recorded" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 and text.isalnum() else text  # a hash


def _distributions(one: Mapping[str, Any], other: Mapping[str, Any], charts: dict[str, Any]) -> list[dict[str, str]]:
    if one["requests"] is None or other["requests"] is None:
        return []
    both = [figures.Samples.of(side["requests"]) for side in (one, other)]
    found = []
    for name, (label, what, noun) in html.METRICS.items():
        if not all(len(side.values[name]) for side in both):
            continue
        key = name.removesuffix("_ms")
        charts[key] = figures.cumulative(
            [(NAMES[place], COLOURS[place], side.values[name]) for place, side in enumerate(both)], noun
        )
        found.append(
            {"id": key, "name": label, "say": "", "label": f"Cumulative distribution of {label} of A and B, {what}"}
        )
    return found


def _series(one: Mapping[str, Any], other: Mapping[str, Any], charts: dict[str, Any]) -> list[dict[str, str]]:
    if one["steps"] is None or other["steps"] is None:
        return []
    both = [one["steps"], other["steps"]]
    found: list[dict[str, str]] = []

    def add(
        key: str, name: str, unit: str, hover: str, points: Sequence[tuple[Sequence[float], Sequence[Any]]]
    ) -> None:
        shared = {"shape": "hv" if unit == "requests" else "linear", "thin": True}
        lines = [
            {
                **shared,
                "name": side,
                "colour": colour,
                "x": x,
                "y": y,
                "hover": f"{side} {hover}<extra></extra>",
            }
            for side, colour, (x, y) in zip(NAMES, COLOURS, points, strict=True)
        ]
        charts[key] = {"kind": "lines", "xtitle": "virtual time, s", "ytitle": unit, "xhover": ".4~g", "series": lines}
        found.append({"id": key, "name": name, "say": "", "label": f"{name} of A and B over virtual time"})

    known = all(any(value is not None for value in side["running"]) for side in both)
    if known:
        for column, name in (("running", "Requests running"), ("waiting", "Requests waiting")):
            add(column, name, "requests", "%{y:,.0f}", [figures.over_time(side, column) for side in both])
        add(
            "kv",
            "KV-cache use",
            "% of blocks",
            "%{y:.1f} %",
            [figures.over_time(side, "kv_usage", 100.0) for side in both],
        )
    add("busy", "GPU busy", "% of the time", "%{y:.0f} %", [figures.busy_share(side) for side in both])
    if any(sum(value or 0 for value in side["preemptions"]) for side in both):
        points = []
        for side in both:
            x, (preempted,) = figures.sums(side, ("preemptions",), per_second=False)
            points.append((x, preempted))
        add("preemptions", "Preemptions", "in each interval", "%{y:,.0f}", points)
    return found
