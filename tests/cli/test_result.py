"""The object of `--json` and the tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hyperlapse.cli.metrics import RequestRecord, measure
from hyperlapse.cli.result import BenchResult, coverage_shares, coverage_text, files_sha256, print_result

MS = 1_000_000
KEYS = {
    "engine", "engine_version", "model", "gpu", "gpus", "detail", "clock", "compile_cache", "seed", "requests", "metrics",
    "throughput",
    "kv_blocks", "kv_block_size", "preemptions", "virtual_s", "real_s", "startup_s", "speedup", "coverage",
    "requests_file", "provenance",
}  # fmt: skip


@pytest.fixture
def result() -> BenchResult:
    return BenchResult(
        engine="vllm",
        engine_version="0.23.0",
        model="qwen3-14b",
        gpu="h100-sxm-80gb",
        gpus=1,
        detail="step",
        clock="frozen",
        compile_cache="cold",
        seed=0,
        metrics=measure([RequestRecord(0, 0, 0, (50 * MS, 62 * MS), 1024, 2)]),
        kv_blocks=12_345,
        kv_block_size=16,
        preemptions=0,
        real_s=0.031,
        startup_s=12.5,
        coverage=coverage_shares({"measured": 75, "analytical": 25}),
        requests_file="/somewhere/requests.jsonl",
        provenance={"versions": {}},
    )


def test_the_object_has_exactly_the_promised_keys(result: BenchResult) -> None:
    found = result.as_json()
    assert set(found) == KEYS
    assert set(found["metrics"]) == {"ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"}
    for values in found["metrics"].values():
        assert set(values) == {"mean", "p50", "p90", "p99"}
    assert set(found["throughput"]) == {"requests_per_s", "output_tokens_per_s"}
    assert set(found["coverage"]) == {"measured", "interpolated", "extrapolated", "analytical", "unknown"}
    assert json.loads(json.dumps(found)) == found


def test_speed_is_virtual_over_real(result: BenchResult) -> None:
    assert result.virtual_s == 0.062
    assert result.as_json()["speedup"] == pytest.approx(2.0)


def test_coverage_is_shares_or_nothing() -> None:
    shares = coverage_shares({"measured": 3, "unknown": 1})
    assert shares == {"measured": 0.75, "interpolated": 0, "extrapolated": 0, "analytical": 0, "unknown": 0.25}
    assert set(coverage_shares({}).values()) == {None}
    assert coverage_text(shares) == "75.0 % measured, 25.0 % unknown"
    assert coverage_text(coverage_shares({})) == "none priced"


def test_the_tables_show_every_figure(result: BenchResult) -> None:
    from rich.console import Console

    out = io.StringIO()
    print_result(Console(file=out, width=120), result)
    for text in ("TTFT", "TPOT", "ITL", "E2E", "p99", "50.00", "62.00", "75.0 % measured"):
        assert text in out.getvalue()
    assert "2.00 times real time" in out.getvalue()
    assert "12,345 of 16 tokens (cold compile cache)" in out.getvalue()
    print_result(Console(file=out, width=120), replace(result, kv_blocks=None, preemptions=None))
    assert "not reported" in out.getvalue()


def test_the_hash_of_files_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    assert files_sha256([one, two]) == files_sha256([two, one])
    before = files_sha256([one, two])
    two.write_text("3")
    assert files_sha256([one, two]) != before
