"""Metrics by their definitions, on hand-made requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.cli.metrics import (
    RequestRecord,
    measure,
    read_requests,
    statistics_ms,
    stock_records,
    unmet_lengths,
    write_requests,
)

MS = 1_000_000


def record(send: int, *tokens: int, output_tokens: int | None = None, index: int = 0, error: str = "") -> RequestRecord:
    instants = tuple(token * MS for token in tokens)
    return RequestRecord(index, None, send * MS, instants, 10, output_tokens or len(tokens), error)


def test_latencies_of_one_request() -> None:
    one = record(100, 150, 160, 175)
    assert (one.ttft_ns, one.e2e_ns, one.itl_ns) == (50 * MS, 75 * MS, (10 * MS, 15 * MS))


def test_means_over_requests_and_itl_over_all_gaps() -> None:
    metrics = measure([record(0, 50, 60, 70), record(10, 40, 45)])
    assert metrics.ttft_ms.mean == 40
    assert metrics.e2e_ms.mean == (70 + 35) / 2
    assert metrics.tpot_ms.mean == (10 + 5) / 2
    assert metrics.itl_ms.mean == (10 + 10 + 5) / 3


def test_tpot_divides_by_output_tokens_and_not_by_chunks() -> None:
    # Four tokens came in three chunks.
    metrics = measure([record(0, 10, 20, 40, output_tokens=4)])
    assert metrics.tpot_ms.mean == 10
    assert metrics.itl_ms.mean == 15


def test_one_token_requests_have_no_tpot() -> None:
    metrics = measure([record(0, 10), record(0, 10, 30)])
    assert metrics.tpot_ms.mean == 20
    alone = measure([record(0, 10)])
    assert alone.tpot_ms.as_dict() == alone.itl_ms.as_dict() == dict.fromkeys(("mean", "p50", "p90", "p99"))


def test_throughput_is_over_first_send_to_last_token() -> None:
    metrics = measure([record(500, 1000, 1500), record(1000, 2000, 2500)])
    assert metrics.span_ns == 2_000 * MS
    assert metrics.requests_per_s == 1
    assert metrics.output_tokens_per_s == 2


def test_failed_requests_enter_no_figure() -> None:
    metrics = measure([record(0, 10, 20), RequestRecord(1, None, 0, (), 0, 0, "gone")])
    assert (metrics.requests, metrics.failed) == (1, 1)
    assert metrics.ttft_ms.mean == 10
    nothing = measure([])
    assert (nothing.requests, nothing.ttft_ms.mean, nothing.requests_per_s) == (0, None, None)


def test_percentiles_are_linear() -> None:
    values = statistics_ms([value * MS for value in range(101)])
    assert (values.p50, values.p90, values.p99) == (50, 90, 99)
    assert statistics_ms([0, 10 * MS]).p90 == pytest.approx(9)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_inside_the_samples(samples: list[int]) -> None:
    values = statistics_ms(samples)
    assert values.p50 is not None
    assert values.p90 is not None
    assert values.p99 is not None
    assert min(samples) / MS <= values.p50 <= values.p90 <= values.p99 <= max(samples) / MS


def test_requests_file_reads_back_as_written(tmp_path: Path) -> None:
    records = [record(0, 10, 20), record(5, 30, index=1), RequestRecord(2, 7, 8, (), 0, 0, "gone")]
    write_requests(tmp_path / "requests.jsonl", records)
    assert sorted(read_requests(tmp_path / "requests.jsonl"), key=lambda one: one.index) == records


def test_stock_results_become_records_to_the_nanosecond() -> None:
    result = {
        "start_times": [1_000_000.25, 1_000_000.0],
        "ttfts": [0.052_961_001, 0.1],
        "itls": [[0.01, 0.011], []],
        "input_lens": [1024, 8],
        "output_lens": [3, 1],
        "errors": ["", ""],
    }
    first, second = stock_records(result)
    assert (second.send_ns, second.token_ns) == (0, (100 * MS,))
    assert first.send_ns == 250 * MS
    assert first.token_ns == (302_961_001, 312_961_001, 323_961_001)
    assert (first.prompt_tokens, first.output_tokens) == (1024, 3)


def test_failed_stock_requests_are_failures_even_without_a_message() -> None:
    result = {
        "start_times": [5.0, 5.0],
        "ttfts": [0.0, 0.0],
        "itls": [[], []],
        "input_lens": [1, 1],
        "output_lens": [0, 0],
        "errors": ["Traceback\nboom", ""],
    }
    assert [bool(record.error) for record in stock_records(result)] == [True, True]


def test_unmet_lengths() -> None:
    records = [record(0, 1, 2, index=0), record(0, 1, index=1)]
    assert unmet_lengths(records, {0: 2, 1: 1}) == []
    assert [one.index for one in unmet_lengths(records, {0: 2, 1: 2})] == [1]
