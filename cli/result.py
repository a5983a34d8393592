"""What `hyperlapse bench` says at the end: one JSON object for programs, tables for people.

Why: the keys of the object are a contract with other programs, so they stand in one place and a test holds them. It
must never leave a key out or put a plausible number where nothing is known: what was not measured is null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperlapse.cli.metrics import NANOSECONDS_PER_S, Metrics

if TYPE_CHECKING:
    from rich.console import Console

COVERAGES = ("measured", "interpolated", "extrapolated", "analytical", "unknown")


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A finished run. Durations in seconds; `coverage` holds shares of the device time, which add to 1 (all null when
    no device time was priced); `compile_cache`: in which state it was when the engine measured its memory, `warm` or `cold`
    (None: the engine did not say); `failed` requests are in none of the figures.
    """

    engine: str
    engine_version: str
    model: str
    gpu: str
    gpus: int
    detail: str
    clock: str
    compile_cache: str | None
    seed: int
    metrics: Metrics
    kv_blocks: int | None
    kv_block_size: int | None
    preemptions: int | None
    real_s: float
    startup_s: float
    coverage: Mapping[str, float | None]
    requests_file: str
    provenance: Mapping[str, Any]

    @property
    def virtual_s(self) -> float:
        """From the first send to the last token, on the virtual clock."""
        return self.metrics.span_ns / NANOSECONDS_PER_S

    @property
    def speedup(self) -> float:
        """Virtual seconds a real second, while the workload ran."""
        return self.virtual_s / self.real_s if self.real_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`; its keys are those of the documentation, no more and no fewer."""
        metrics = self.metrics
        return {
            "engine": self.engine,
            "engine_version": self.engine_version,
            "model": self.model,
            "gpu": self.gpu,
            "gpus": self.gpus,
            "detail": self.detail,
            "clock": self.clock,
            "compile_cache": self.compile_cache,
            "seed": self.seed,
            "requests": metrics.requests,
            "metrics": {
                "ttft_ms": metrics.ttft_ms.as_dict(),
                "tpot_ms": metrics.tpot_ms.as_dict(),
                "itl_ms": metrics.itl_ms.as_dict(),
                "e2e_ms": metrics.e2e_ms.as_dict(),
            },
            "throughput": {
                "requests_per_s": metrics.requests_per_s,
                "output_tokens_per_s": metrics.output_tokens_per_s,
            },
            "kv_blocks": self.kv_blocks,
            "kv_block_size": self.kv_block_size,
            "preemptions": self.preemptions,
            "virtual_s": self.virtual_s,
            "real_s": self.real_s,
            "startup_s": self.startup_s,
            "speedup": self.speedup,
            "coverage": {name: self.coverage[name] for name in COVERAGES},
            "requests_file": self.requests_file,
            "provenance": dict(self.provenance),
        }


def coverage_shares(coverage_ns: Mapping[str, int]) -> dict[str, float | None]:
    """Shares of the device time by where the durations come from; null each when there was no device time."""
    total = sum(coverage_ns.get(name, 0) for name in COVERAGES)
    return {name: coverage_ns.get(name, 0) / total if total else None for name in COVERAGES}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """One SHA-256 over several files: of their names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def print_result(console: Console, result: BenchResult) -> None:
    """Prints the tables."""
    from rich.table import Table

    metrics = result.metrics
    title = f"{result.model} on {result.gpus} x {result.gpu}, {result.engine} {result.engine_version}, virtual"
    latencies = Table(title=title, title_justify="left")
    latencies.add_column("latency, ms")
    for name in ("mean", "p50", "p90", "p99"):
        latencies.add_column(name, justify="right")
    for label, values in (
        ("TTFT", metrics.ttft_ms),
        ("TPOT", metrics.tpot_ms),
        ("ITL", metrics.itl_ms),
        ("E2E", metrics.e2e_ms),
    ):
        latencies.add_row(label, *(_number(value) for value in values.as_dict().values()))
    console.print(latencies)

    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column()
    failed = f", {metrics.failed} failed" if metrics.failed else ""
    facts.add_row("requests", f"{metrics.requests:,}{failed}")
    facts.add_row(
        "throughput",
        f"{_number(metrics.requests_per_s)} requests/s, {_number(metrics.output_tokens_per_s)} output tokens/s",
    )
    blocks = "not reported" if result.kv_blocks is None else f"{result.kv_blocks:,} of {result.kv_block_size} tokens"
    cache = "" if result.compile_cache is None else f" ({result.compile_cache} compile cache)"
    facts.add_row("KV-cache blocks", f"{blocks}{cache}")
    facts.add_row("preemptions", "not reported" if result.preemptions is None else f"{result.preemptions:,}")
    facts.add_row(
        "time", f"{result.virtual_s:,.2f} s virtual in {result.real_s:,.2f} s: {result.speedup:.2f} times real time"
    )
    facts.add_row("start-up", f"{result.startup_s:,.1f} s real")
    facts.add_row("device time", coverage_text(result.coverage))
    facts.add_row("detail, clock", f"{result.detail}, {result.clock}")
    facts.add_row("requests file", result.requests_file)
    console.print(facts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def coverage_text(coverage: Mapping[str, float | None]) -> str:
    """`81.2 % measured, 18.8 % analytical`; parts that are zero are left out."""
    parts = [f"{share:.1%} {name}".replace("%", " %") for name in COVERAGES if (share := coverage[name])]
    return ", ".join(parts) if parts else "none priced"
