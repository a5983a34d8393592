"""The reader of the residency-vllm recordings, on made-up files and, where they lie, on the real ones."""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path

import pytest

from hyperlapse.cli.workload import read_trace, write_trace
from hyperlapse.validation.residency import (
    RUNS,
    Comparison,
    RecordingError,
    compare,
    idle_requests,
    read_recording,
    recorded_metrics,
    to_trace,
    trace_file,
)

from .conftest import recording, row

BASE = 1_700_000_000_000_000


def test_arrivals_come_from_the_sends_and_lengths_from_the_server(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        row(7, BASE + 500_000, BASE + 560_000, BASE + 2_000_000, server_input_tokens=950),
        row(3, BASE, BASE + 50_000, BASE + 1_600_000),
    )
    trace = to_trace(read_recording(path))
    assert [(one.arrival_ns, one.prompt_tokens, one.output_tokens) for one in trace] == [
        (0, 1000, 128),
        (500_000_000, 950, 128),
    ]
    write_trace(tmp_path / "trace.jsonl", trace)
    assert read_trace(tmp_path / "trace.jsonl") == trace


def test_latencies_count_from_the_send(tmp_path: Path) -> None:
    path = recording(tmp_path, row(0, BASE, BASE + 50_000, BASE + 50_000 + 127 * 11_000))
    metrics = recorded_metrics(read_recording(path))
    assert (metrics.ttft_ms.mean, metrics.tpot_ms.mean, metrics.e2e_ms.mean) == (50, 11, 50 + 127 * 11)


def test_only_the_first_seconds_by_send(tmp_path: Path) -> None:
    rows = [row(number, BASE + number * 1_000_000, BASE + number * 1_000_000 + 9, BASE + 10**9) for number in range(5)]
    assert len(read_recording(recording(tmp_path, *rows), seconds=3)) == 3


def test_idle_requests_find_nobody_else_in_the_server(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        row(0, BASE, BASE + 50, BASE + 1000),
        row(1, BASE + 900, BASE + 950, BASE + 1900),
        row(2, BASE + 1500, BASE + 1600, BASE + 1700),
        row(3, BASE + 2000, BASE + 2050, BASE + 3000),
    )
    assert idle_requests(read_recording(path)) == [0, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row(0, BASE, BASE, BASE, status="timeout"), "status is 'timeout'"),
        (row(0, BASE, BASE, BASE, num_chunks=129), "129 chunks do not fit 128 output tokens"),
        (row(0, BASE, BASE, BASE, server_input_tokens=""), "invalid literal"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = recording(tmp_path, row(0, BASE, BASE, BASE), line)
    with pytest.raises(RecordingError) as caught:
        read_recording(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(RecordingError, match="the column 'request_id' is missing"):
        read_recording(other)
    with pytest.raises(RecordingError, match="no request"):
        read_recording(recording(tmp_path))
    cut = tmp_path / "trace.csv.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(RecordingError, match="cannot be read"):
        read_recording(cut)
    with pytest.raises(RecordingError, match="no such recording"):
        trace_file(tmp_path, "agg_3rps")


def test_comparison_errors_are_relative_to_the_recording() -> None:
    row_ = Comparison("mean TTFT", 50.0, 55.0, 0.12)
    assert row_.error == pytest.approx(0.1)
    assert row_.within
    assert not Comparison("mean TPOT", 10.0, 9.4, 0.05).within


def test_a_run_equals_itself(tmp_path: Path) -> None:
    metrics = recorded_metrics(read_recording(recording(tmp_path, row(0, BASE, BASE + 50_000, BASE + 1_500_000))))
    rows = compare(metrics, metrics)
    assert [one.name for one in rows] == ["mean TPOT", "mean E2E", "mean TTFT", "p99 TPOT", "p99 E2E", "p99 TTFT"]
    assert all(one.error == 0 for one in rows)


@pytest.mark.recorded
@pytest.mark.parametrize("run", RUNS)
def test_the_metrics_agree_with_what_a_recording_says_of_itself(recordings: Path, run: str) -> None:
    path = trace_file(recordings, run)
    said = json.loads(path.with_name("summary.json").read_text(encoding="utf-8"))
    requests = read_recording(path)
    metrics = recorded_metrics(requests)
    assert len(requests) == said["overall"]["num_requests"]
    assert {request.output_tokens for request in requests} == {said["config"]["max_tokens"]}
    # Its percentiles are of another kind, and its E2E ends with the last chunk; both differ by far less than this.
    assert metrics.ttft_ms.mean == pytest.approx(said["overall"]["ttft_ms"]["mean"], abs=0.01)
    assert metrics.ttft_ms.p50 == pytest.approx(said["overall"]["ttft_ms"]["p50"], rel=0.01)
    assert metrics.ttft_ms.p99 == pytest.approx(said["overall"]["ttft_ms"]["p99"], rel=0.02)
    assert metrics.e2e_ms.mean == pytest.approx(said["overall"]["e2e_ms"]["mean"], abs=0.1)


@pytest.mark.recorded
def test_the_replayed_part_holds_idle_requests_to_calibrate_on(recordings: Path) -> None:
    requests = read_recording(trace_file(recordings, "agg_2rps"), 120)
    idle = idle_requests(requests)
    assert len(idle) >= 5

    def median_ms(indices: list[int]) -> float:
        return statistics.median((requests[i].first_token_us - requests[i].send_us) / 1000 for i in indices)

    assert median_ms(idle) < median_ms(list(range(len(requests))))
