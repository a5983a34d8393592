"""Draws a report as one HTML file that needs no network.

Why: people look at a page, not at a JSON object. All texts and numbers of the page are made here from report.json's
object alone, so that a page can be drawn again from it. The plotting library's JavaScript comes from the plotly
package and lies in the page, compressed. It must never show a figure without its unit, or more digits than it is worth.
"""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperlapse.cli import report_figures as figures
from hyperlapse.cli.metrics import NANOSECONDS_PER_MS, NANOSECONDS_PER_S
from hyperlapse.cli.result import COVERAGES
from hyperlapse.integrations import engine_title

TEMPLATES = Path(__file__).with_name("templates")
METRICS = {
    "ttft_ms": ("TTFT", "time to first token: from the send to the first streamed token", "requests"),
    "tpot_ms": ("TPOT", "time per output token after the first: (E2E − TTFT) / (output tokens − 1)", "requests"),
    "itl_ms": ("ITL", "inter-token latency: the gaps between streamed tokens, pooled over all requests", "gaps"),
    "e2e_ms": ("E2E", "end to end: from the send to the last token", "requests"),
}
COVERAGE_MEANS = {
    "measured": "this very shape was measured on this GPU product",
    "interpolated": "between measured shapes",
    "extrapolated": "outside the measured grid, by the rate at its edge",
    "analytical": "bytes and operations over the GPU's stated facts",
    "unknown": "nothing is known of it",
}
COVERAGE_COLOURS = {"measured": "c3", "interpolated": "c1", "extrapolated": "c2", "analytical": "c4", "unknown": "c5"}
FAMILY_COLOURS = {
    "matrix products": "c1", "attention": "c2", "norms and activations": "c3", "sampling": "c4", "experts": "c5",
    "collectives": "c6", "copies": "c6", "preparation": "c7", "gaps": "c8", "other": "c9",
}  # fmt: skip
FAMILY_NAMES = {"gaps": "Gaps between kernels", "experts": "Mixture of experts", "preparation": "Input preparation"}
LEAST_SHARE = 0.0005
NBSP = "\N{NO-BREAK SPACE}"


def render_report(report: Mapping[str, Any]) -> str:
    """The page of one report."""
    charts: dict[str, Any] = {}
    result, estimate = report["result"], report["estimate"]
    content = {
        "title": title(report),
        "about": about(report),
        "warnings": warnings(report),
        "tiles": _tiles(report),
        "latencies": [_latency(report, name) for name in METRICS],
        "estimate_lead": _estimate_lead(report),
        "distributions": _distributions(report, charts),
        "series": _series(report, charts),
        "series_lead": _series_lead(report),
        "device": _device(report),
        "request": _request(report),
        "coverage": _coverage(result["coverage"], estimate),
        "facts": facts(report),
        "hashes": hashes(report),
        "footer": footer(report),
    }
    return page("report.html.j2", charts, content)


def page(template: str, charts: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """A template with the style, the script and the plotting library in it."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    # In a script element only "</" and "<!--" mean something to the HTML parser.
    data = json.dumps(charts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template(template).render(
        version=importlib.metadata.version("hyperlapse"),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        charts=Markup(data),
        plotting=Markup(_plotting()),
        **content,
    )


@functools.cache
def _plotting() -> str:
    from plotly.offline import get_plotlyjs

    # mtime: the same input gives the same page
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


# ----- numbers -----


def number(value: float | None, digits: int = 4) -> str:
    """At most `digits` significant digits, thousands separated: 1,912; 166.9; 14.38; 8.12."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    decimals = next((d for d in range(digits - 1) if size >= 10 ** (digits - 1 - d)), digits - 2)
    return f"{value:,.{decimals}f}"


def milliseconds(value_ns: float | None) -> str:
    return number(None if value_ns is None else value_ns / NANOSECONDS_PER_MS)


def seconds(value_ns: float | None) -> str:
    return "–" if value_ns is None else f"{value_ns / NANOSECONDS_PER_S:,.2f}"


def percent(share: float | None) -> str:
    if share is None:
        return "–"
    if 0 < share < LEAST_SHARE:
        return f"<{NBSP}0.1{NBSP}%"
    return f"{share * 100:.1f}{NBSP}%"


def plus_minus(ratio: float | None) -> str:
    return "–" if ratio is None else f"±{NBSP}{ratio * 100:.1f}{NBSP}%"


# ----- texts -----


def title(report: Mapping[str, Any]) -> str:
    result = report["result"]
    count = f"{result['gpus']}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}" if result["gpus"] > 1 else ""
    return f"{result['model']} on {count}{result['gpu']}"


def about(report: Mapping[str, Any]) -> str:
    """One line: engine, workload, date."""
    result = report["result"]
    parts = [
        f"{engine_title(result['engine'])} {result['engine_version']}",
        f"{result['detail']} detail",
    ]
    parts.append(load(report) or f"{result['requests']:,} requests")
    if report["created"]:
        parts.append(report["created"][:16].replace("T", " ") + " UTC")
    return " · ".join(parts)


def load(report: Mapping[str, Any]) -> str | None:
    """The workload in words; None where the object does not say."""
    given = report["workload"]
    if given is None:
        return None
    count = f"{given['requests']:,} requests"
    limit = f", at most {given['concurrency']:,} in flight" if given["concurrency"] else ""
    if given["kind"] == "trace":
        return f"{count} of {Path(given['trace']).name}{limit}"
    rate = f" at {given['rate_per_s']:g}/s (Poisson)" if given["rate_per_s"] else ""
    return f"{count}{rate}{limit}, {given['input_tokens']:,} tokens in, {given['output_tokens']:,} out"


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the figures."""
    found = [
        f"{event['kind']}, {'once' if event['count'] == 1 else str(event['count']) + ' times'}: {event['text']}"
        for event in report["events"]
    ]
    unknown = report["result"]["coverage"].get("unknown")
    predictor = report["result"]["provenance"].get("predictor") or ""
    if predictor.startswith("fixed step"):
        found.insert(0, f"Steps took a {predictor}, not what a GPU would take.")
    elif unknown and unknown >= 0.001:
        found.insert(
            0, f"{percent(unknown)} of the device time is unknown: its kernels count as the shortest one there is."
        )
    device = report["device_time"]
    if device and device["steps_unlike_their_price"]:
        found.insert(
            0,
            f"{device['steps_unlike_their_price']:,} of {device['steps']:,} steps took another time on the virtual GPU than "
            "their price: please report this.",
        )
    return found


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    metrics, result, estimate = report["metrics"], report["result"], report["estimate"]
    ratios = estimate["metric_ratios"] if estimate else {}

    def error(name: str) -> str:
        if name in ratios and ratios[name] is None:
            return "follows the offered load · "
        return f"{plus_minus(ratios[name])} · " if name in ratios else ""

    def latency(name: str, label: str) -> dict[str, str]:
        values = metrics[name]
        return {
            "name": label,
            "value": number(values["mean"]["value"]),
            "unit": "ms",
            "more": f"{error(name.removesuffix('_ms'))}p99{NBSP}{number(values['p99']['value'])}{NBSP}ms",
        }

    return [
        latency("ttft_ms", "Mean time to first token"),
        latency("tpot_ms", "Mean time per output token"),
        latency("e2e_ms", "Mean end-to-end latency"),
        {
            "name": "Output tokens",
            "value": number(metrics["output_tokens_per_s"]["value"]),
            "unit": "per s",
            "more": f"{error('throughput')}{number(metrics['requests_per_s']['value'], 3)} requests/s",
        },
        {
            "name": "Requests",
            "value": f"{result['requests']:,}",
            "unit": "",
            "more": f"in {result['virtual_s']:,.1f} s of virtual time",
        },
        {
            "name": "GPU busy",
            "value": percent(report["device_time"]["busy_ns"] / (report["device_time"]["span_ns"] or 1)).removesuffix(
                f"{NBSP}%"
            ),
            "unit": "%",
            "more": f"{report['device_time']['steps']:,} engine steps",
        },
        {
            "name": "KV-cache peak",
            "value": _peak(report["steps"]["kv_usage"]),
            "unit": "%",
            "more": "not reported" if result["kv_blocks"] is None else f"of {result['kv_blocks']:,} blocks",
        },
        {
            "name": "Emulated in",
            "value": number(result["real_s"], 3),
            "unit": "s",
            "more": f"{result['speedup']:.1f}{NBSP}× real time, start\N{NON-BREAKING HYPHEN}up {result['startup_s']:,.0f}{NBSP}s",
        },
    ]


def _peak(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known) * 100:.1f}" if known else "–"


def _latency(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    label, what, _ = METRICS[name]
    estimate = report["estimate"]
    ratio = estimate["metric_ratios"].get(name.removesuffix("_ms")) if estimate else None
    values = report["metrics"][name]
    return {
        "name": label,
        "what": what,
        "figures": [number(values[key]["value"]) for key in ("mean", "p50", "p90", "p99")],
        "error": plus_minus(ratio),
    }


def _estimate_lead(report: Mapping[str, Any]) -> str:
    estimate = report["estimate"]
    if estimate is None:
        return "Steps follow a fixed rule here, so there is no prediction that could be wrong."
    return (
        f"The error estimate says how far a figure may lie from a real GPU's in {estimate['confidence']:.0%} of cases because "
        f"durations are predicted: device time {plus_minus(estimate['device_time_ratio'])}, from measurements that the predictor "
        "had not seen. "
        "It does not cover the host-time model."
    ).replace("90%", "90 %")


# ----- charts -----


def _distributions(report: Mapping[str, Any], charts: dict[str, Any]) -> list[dict[str, str]]:
    samples = figures.Samples.of(report["requests"])
    found = []
    for name, (label, what, noun) in METRICS.items():
        values = samples.values[name]
        if not len(values):
            continue
        identifier = name.removesuffix("_ms")
        charts[identifier] = figures.distribution(values, noun)
        row = report["metrics"][name]
        say = f"p50 {number(row['p50']['value'])} · p99 {number(row['p99']['value'])} ms"
        found.append({"id": identifier, "name": label, "say": say, "label": f"Distribution of {label}, {what}: {say}"})
    return found


def _series(report: Mapping[str, Any], charts: dict[str, Any]) -> list[dict[str, Any]]:
    steps = report["steps"]
    found: list[dict[str, Any]] = []
    end_ns = max(start + length for start, length in zip(steps["start_ns"], steps["duration_ns"], strict=True))
    axis = {"kind": "lines", "xtitle": "virtual time, s", "xhover": ".4~g", "xrange": [0, end_ns / NANOSECONDS_PER_S]}
    if any(value is not None for value in steps["running"]):
        series = []
        for column, colour in (("running", "c1"), ("waiting", "c2")):
            x, y = figures.over_time(steps, column)
            series.append(
                {"name": column, "colour": colour, "x": x, "y": y, "shape": "hv", "fill": True, "thin": True,
                 "hover": f"%{{y:,.0f}} {column}<extra></extra>"}
            )  # fmt: skip
        charts["queue"] = {**axis, "ytitle": "requests", "series": series}
        say = f"at most {_most(steps['running'])} running, {_most(steps['waiting'])} waiting"
        legend = [("c1", "running"), ("c2", "waiting")]
        found.append(_figure("queue", "Requests in the engine", say, "wide", legend))
        x, y = figures.over_time(steps, "kv_usage", 100.0)
        hover = "%{y:.1f} % of the blocks<extra></extra>"
        kv = {"name": "KV cache", "colour": "c4", "x": x, "y": y, "fill": True, "thin": True, "hover": hover}
        charts["kv"] = {**axis, "ytitle": "% of blocks", "series": [kv]}
        found.append(_figure("kv", "KV-cache use", f"peak {_peak(steps['kv_usage'])} %", "low"))
    x, busy = figures.busy_share(steps)
    share = {"name": "busy", "colour": "c3", "x": x, "y": busy, "fill": True, "hover": "%{y:.0f} % busy<extra></extra>"}
    charts["busy"] = {**axis, "ytitle": "% of the time", "yrange": [0, 102], "series": [share]}
    found.append(_figure("busy", "GPU busy", "share of each interval in engine steps", "low"))
    x, (prefill, decode) = figures.sums(steps, ("prefill_tokens", "decode_tokens"), per_second=True)
    charts["tokens"] = {
        **axis, "ytitle": "tokens per s",
        "series": [
            {"name": "prefill", "colour": "c7", "x": x, "y": prefill, "hover": "%{y:,.0f} prefill<extra></extra>"},
            {"name": "decode", "colour": "c5", "x": x, "y": decode, "hover": "%{y:,.0f} decode<extra></extra>"},
        ],
    }  # fmt: skip
    found.append(_figure("tokens", "Tokens scheduled", "", "low", [("c7", "prefill"), ("c5", "decode")]))
    x, y = figures.over_time(steps, "duration_ns", 1 / NANOSECONDS_PER_MS)
    length = {"name": "step", "colour": "c8", "x": x, "y": y, "dots": True, "hover": "%{y:.4~g} ms<extra></extra>"}
    charts["durations"] = {**axis, "ytitle": "ms", "series": [length]}
    found.append(
        _figure("durations", "Duration of a step", f"mean {milliseconds(_mean(steps['duration_ns']))} ms", "low")
    )
    total = sum(value or 0 for value in steps["preemptions"])
    if total:
        x, (preempted,) = figures.sums(steps, ("preemptions",), per_second=False)
        bars = {"name": "preemptions", "colour": "c5", "y": preempted, "hover": "%{y:,.0f} preempted<extra></extra>"}
        charts["preemptions"] = {
            **axis, "kind": "bars", "x": x, "width": x[1] - x[0], "ytitle": "requests", "series": [bars],
            "dtick": 1 if max(preempted) <= 5 else None,
        }  # fmt: skip
        found.append(_figure("preemptions", "Preemptions", f"{total:,} in all", "wide low"))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(identifier: str, name: str, say: str, size: str, legend: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    label = f"{name} over virtual time" + (f": {say}" if say else "")
    return {"id": identifier, "name": name, "say": say, "label": label, "size": size, "legend": legend}


def _most(values: Sequence[int | None]) -> str:
    return f"{max((value for value in values if value is not None), default=0):,}"


def _series_lead(report: Mapping[str, Any]) -> str:
    count = len(report["steps"]["start_ns"])
    preempted = report["result"]["preemptions"]
    calm = " No request was preempted." if preempted == 0 else ""
    thinned = f" {figures.THINNING}" if count > figures.DRAWN_STEPS else ""
    return (
        f"{count:,} engine steps; time counts from the first send.{calm}{thinned} Rates and shares are over "
        f"{figures.RATE_INTERVALS} equal intervals."
    )


# ----- where the time went -----


def _device(report: Mapping[str, Any]) -> dict[str, Any]:
    device = report["device_time"]
    span_ns = device["span_ns"] or 1
    families: dict[str, dict[str, Any]] = {}
    for operator in device["operators"]:
        entry = families.setdefault(operator["family"], {"ns": 0, "square": 0.0, "together": 0.0})
        entry["ns"] += operator["total_ns"]
        error_ns = operator["total_ns"] * operator["error90_ratio"]
        # as the predictor adds up a step: measured operators err independently, analytical ones together
        if operator["coverage_ns"]["analytical"] * 2 > operator["total_ns"]:
            entry["together"] += error_ns
        else:
            entry["square"] += error_ns**2
    # Of the operators that ran at the edge of the measurement a little lies outside of it.
    scale = device["busy_ns"] / device["priced_ns"] if device["priced_ns"] else 0.0
    rows = [
        (
            FAMILY_NAMES.get(name, name.capitalize()),
            entry["ns"] * scale,
            FAMILY_COLOURS.get(name, "c9"),
            plus_minus((entry["square"] + entry["together"] ** 2) ** 0.5 / entry["ns"]),
        )
        for name, entry in sorted(families.items(), key=lambda item: -item[1]["ns"])
        if entry["ns"]
    ]
    if not rows:
        rows = [("Engine steps", device["busy_ns"], "c1", "–")]
    rows.append(("Idle, requests on their way", device["waiting_ns"], "c9", ""))
    rows.append(("Idle, no request", device["empty_ns"], "c10", ""))
    parts = [
        {
            "name": name, "colour": colour, "share": value / span_ns, "seconds": seconds(value),
            "percent": percent(value / span_ns), "error": error,
        }
        for name, value, colour, error in rows
    ]  # fmt: skip
    kernel = report["result"]["detail"] == "kernel"
    return {
        "lead": (
            "Which operators the virtual GPU spent its time in."
            + (" The operators are the step model's account of the launched batches." if kernel and families else "")
        ),
        "label": ", ".join(f"{part['name']} {part['percent']}" for part in parts),
        "parts": parts,
        "total": seconds(device["span_ns"]),
        "operators": [
            {
                "name": operator["name"].replace("_", " "),
                "executions": f"{operator['executions']:,}",
                "seconds": seconds(operator["total_ns"]),
                "percent": percent(operator["total_ns"] / (device["priced_ns"] or 1)),
                "error": plus_minus(operator["error90_ratio"]),
                "coverage": _main_coverage(operator["coverage_ns"]),
            }
            for operator in device["operators"]
        ],
    }


def _main_coverage(coverage_ns: Mapping[str, int]) -> str:
    total = sum(coverage_ns.values())
    kinds = [(value, name) for name, value in coverage_ns.items() if value]
    kinds.sort(reverse=True)
    if len(kinds) < 2:
        return kinds[0][1] if kinds else ""
    return ", ".join(f"{name} {value / total:.0%}".replace("%", " %") for value, name in kinds)


REQUEST_PARTS = (
    ("charged", "Host time charged", "c2"),
    ("queued", "Waiting in the queue", "c5"),
    ("prefill", "Prefill, to the first token", "c7"),
    ("decode", "Decode, to the last token", "c1"),
    ("rest", "Server front end and client", "c9"),
)


def _request(report: Mapping[str, Any]) -> dict[str, Any]:
    host = report["host_time"]
    charged = host["charged"]
    words = [f"{milliseconds(entry['each_ns'])} ms per {entry['per']}" for entry in charged]
    lead = (
        f"The host-time model charges {' and '.join(words)}; with the clock frozen, other host work takes no virtual time."
        if words
        else "No host time was charged."
    )
    means = host["request_mean_ns"]
    if means is None:
        return {"lead": f"{lead} The engine reported no phases of its requests.", "parts": []}
    whole = means["e2e"] or 1
    parts = [
        {
            "name": name, "colour": colour, "share": max(means[key] / whole, 0.0),
            "ms": milliseconds(means[key]), "percent": percent(means[key] / whole),
        }
        for key, name, colour in REQUEST_PARTS
    ]  # fmt: skip
    return {
        "lead": lead,
        "parts": parts,
        "label": ", ".join(f"{part['name']} {part['percent']}" for part in parts),
        "total": milliseconds(means["e2e"]),
    }


def _coverage(coverage: Mapping[str, float | None], estimate: Mapping[str, Any] | None) -> dict[str, Any]:
    parts = [
        {
            "name": name, "colour": COVERAGE_COLOURS[name], "share": coverage[name] or 0.0,
            "percent": percent(coverage[name]), "what": COVERAGE_MEANS[name],
        }
        for name in COVERAGES
    ]  # fmt: skip
    lead = "Shares of the launched device time by where its durations come from."
    if estimate is not None:
        lead += f" Together they put the device time within {plus_minus(estimate['device_time_ratio'])}."
    return {"lead": lead, "parts": parts, "label": ", ".join(f"{p['name']} {p['percent']}" for p in parts)}


# ----- what was run -----


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, for people."""
    result, environment = report["result"], report["environment"]
    provenance = result["provenance"]
    versions = provenance.get("engine_versions") or {}
    engine = f"{engine_title(result['engine'])} {result['engine_version']}"
    blocks, cache = result["kv_blocks"], result.get("compile_cache")
    blocks_text = "not reported" if blocks is None else f"{blocks:,} blocks of {result['kv_block_size']} tokens"
    found = [
        ("Model", result["model"]),
        ("GPU", f"{result['gpus']} × {result['gpu']} (virtual)"),
        ("Engine", f"{engine}, PyTorch {versions.get('torch', '–')}"),
        ("Engine flags", " ".join(provenance.get("engine_flags") or []) or "none"),
        ("Detail, clock", f"{result['detail']}, {result['clock']}"),
        ("Workload", load(report) or "not recorded"),
        ("Seed", str(result["seed"])),
        ("Durations", provenance.get("predictor") or "–"),
        ("Host-time model", _host_time_model(provenance)),
        ("KV cache", blocks_text if cache is None else f"{blocks_text}, {cache} compile cache"),
        ("Hyperlapse", _own_version(provenance, environment)),
    ]  # fmt: skip
    if environment:
        memory = environment["host_memory_bytes"] / 2**30
        found.append(("Emulated on", f"{environment['host_cpu']}, {environment['host_cpus']} CPUs, {memory:,.0f} GiB"))
        found.append(("System", f"{environment['system']}, Python {provenance.get('python_version', '–')}"))
    if report["created"]:
        found.append(("Date", report["created"].replace("T", " ").replace("+00:00", " UTC")))
    return found


def _host_time_model(provenance: Mapping[str, Any]) -> str:
    rules = provenance.get("host_time") or {}
    return ", ".join(f"{name.removesuffix('_ns')} {milliseconds(value)} ms" for name, value in rules.items()) or "none"


def _own_version(provenance: Mapping[str, Any], environment: Mapping[str, Any] | None) -> str:
    version = str(provenance.get("hyperlapse_version", "–"))
    commit = environment and environment["hyperlapse_commit"]
    return (
        f"{version}, commit {commit[:12]}{' with changes' if commit.endswith('-dirty') else ''}" if commit else version
    )


def hashes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What proves it, for machines."""
    provenance = report["result"]["provenance"]
    found = [
        ("Server", " ".join(provenance.get("server_command") or [])),
        ("Client", " ".join(provenance.get("client_command") or [])),
        ("Model configuration", provenance.get("model_sha256")),
        ("Device profile", (provenance.get("device_profile") or {}).get("sha256")),
        ("Host-time model", provenance.get("host_time_sha256")),
        ("Trace", provenance.get("trace_sha256")),
    ]
    tables = provenance.get("price_tables") or {}
    found += [("Kernel database", tables.get("package")), ("Kernel tables", tables.get("tables_sha256"))]
    if report["environment"]:
        found.append(("Hyperlapse sources", report["environment"]["hyperlapse_sources_sha256"]))
    return [(name, value) for name, value in found if value]


def footer(report: Mapping[str, Any]) -> str:
    version = report["result"]["provenance"].get("hyperlapse_version", "")
    return (
        f"Made by Hyperlapse {version}: unmodified serving code on virtual GPUs and a virtual clock. Latencies are seen by "
        "the client; percentiles are interpolated linearly; failed requests are in no figure. The complete data, every request "
        "and every step, stand in report.json beside this page."
    )
