"""The real engine under both clients, with steps of a known time: causality, agreement of the clients, repeatability.

Three runs of one trace: the stock client, ours, and ours again on another server. Each must follow the discrete-event
model, the two clients must measure the same, and the repetition must be equal to the nanosecond. benchmarks/ has the
full-size runs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from hyperlapse.cli.benchmark import BenchOptions, BenchRun, run_bench
from hyperlapse.cli.engine_environment import EngineNotFoundError, find_engine
from hyperlapse.cli.metrics import RequestRecord
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.report import json_pieces
from hyperlapse.cli.report_data import SCHEMA_FILE, build_report
from hyperlapse.cli.workload import TraceRequest, write_trace
from tests.des.model import Arrival, Engine, compare, simulate_after_warm_up, tokenizer_wait_ns

pytestmark = pytest.mark.engine

REQUESTS = 40
RATE_PER_S = 8.0
# A request is on its way for this long. Everything else happens at whole microseconds, so no request comes at the very
# instant at which a step ends, where the order would be the machine's choice.
HOST_TIME_NS = 500_700


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BenchRun]:
    try:
        find_engine(None)
    except EngineNotFoundError as error:
        pytest.skip(f"no engine environment: {error}")
    folder = tmp_path_factory.mktemp("bench")
    rng = random.Random(1)
    arrival_s = 0.0
    requests = []
    for _ in range(REQUESTS):
        requests.append(TraceRequest(round(arrival_s * 1e6) * 1000, rng.randrange(700, 1100), rng.randrange(20, 60)))
        arrival_s += rng.expovariate(RATE_PER_S)
    trace = folder / "trace.jsonl"
    write_trace(trace, requests)
    found = {}
    for name in ("stock", "ours", "again"):
        options = BenchOptions(
            trace=trace,
            fixed_step="10ms,40us",
            host_time_ns=HOST_TIME_NS,
            stock_client=name == "stock",
            output=folder / name,
            max_in_flight=None,
            record_steps=name != "again",  # so that the repetition shows that recording changes nothing
        )
        found[name] = run_bench(options)
    return found


def by_index(run: BenchRun) -> list[RequestRecord]:
    return sorted(run.records, key=lambda record: record.index)


def latencies(records: Sequence[RequestRecord]) -> list[tuple[int, ...]]:
    return [(record.ttft_ns, *record.itl_ns) for record in records]


@pytest.mark.parametrize("name", ["stock", "ours", "again"])
def test_every_token_comes_when_the_model_says(runs: dict[str, BenchRun], name: str) -> None:
    run = runs[name]
    assert run.engine.prefix_hit_tokens == 0, "the model knows no prefix cache"
    engine = Engine(
        token_budget=run.engine.token_budget or 0,
        max_running=run.engine.max_running or 0,
        tokenizer_wait_ns=tokenizer_wait_ns(find_engine(None).folder),
    )
    measured = [record.token_ns for record in run.records]
    arrivals = [
        Arrival(record.send_ns + HOST_TIME_NS, record.prompt_tokens, record.output_tokens) for record in run.records
    ]
    found = compare(
        [record.send_ns for record in run.records],
        measured,
        simulate_after_warm_up(arrivals, engine, measured),
    )
    assert (found.late_first_tokens, found.late_gaps) == (0, 0), found


def test_both_clients_send_and_measure_alike(runs: dict[str, BenchRun]) -> None:
    stock, ours = by_index(runs["stock"]), by_index(runs["ours"])
    zero, other_zero = stock[0].send_ns, ours[0].send_ns
    for one, two in zip(stock, ours, strict=True):
        assert (one.prompt_tokens, one.output_tokens) == (two.prompt_tokens, two.output_tokens)
        # Both clients' event loops keep whole milliseconds: an instant is rounded down when a sleep begins, and its length
        # up. So a send is up to 2 ms late, and how late follows from what woke the loop in between: the engine's tokens,
        # whose phase differs between the two by the rest of a sleep after the warm-up request.
        assert abs((one.send_ns - zero) - (two.send_ns - other_zero)) <= 2_000_000
    means = [run.result.metrics.ttft_ms.mean for run in (runs["stock"], runs["ours"])]
    assert means[0] == pytest.approx(means[1], rel=0.02)
    tpots = [run.result.metrics.tpot_ms.mean for run in (runs["stock"], runs["ours"])]
    assert tpots[0] == pytest.approx(tpots[1], rel=0.01)


def test_the_same_run_twice_is_equal_to_the_nanosecond(runs: dict[str, BenchRun]) -> None:
    ours, again = by_index(runs["ours"]), by_index(runs["again"])
    assert [record.send_ns for record in ours] == [record.send_ns for record in again]
    assert latencies(ours) == latencies(again)


@pytest.mark.parametrize("name", ["stock", "ours"])
def test_the_report_holds_every_request_and_step(runs: dict[str, BenchRun], name: str) -> None:
    run = runs[name]
    report = json.loads("".join(json_pieces(build_report(run, Silent()))))
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(report)
    requests, steps = report["requests"], report["steps"]
    assert requests["token_ns"] == [list(record.token_ns) for record in run.records]
    assert sum(steps["prefill_tokens"]) == sum(requests["prompt_tokens"])
    assert sum(steps["decode_tokens"]) == sum(requests["output_tokens"]) - REQUESTS
    for duration_ns, prefill in zip(steps["duration_ns"], steps["prefill_tokens"], strict=True):
        assert duration_ns == 10_000_000 + 40_000 * prefill
    ends = {start + duration for start, duration in zip(steps["start_ns"], steps["duration_ns"], strict=True)}
    firsts = [tokens[0] for tokens in requests["token_ns"]]
    # a token leaves the engine at the end of a step, and the client has it at once
    assert all(any(abs(first - end) < 1_000_000 for end in ends) for first in firsts)
    assert None not in steps["running"]
    assert max(steps["running"]) > 1
    assert 0 < max(steps["kv_usage"]) < 1
    means = report["host_time"]["request_mean_ns"]
    assert means["prefill"] > 10_000_000
    assert means["decode"] > 10_000_000
    assert means["rest"] < 0.2 * means["e2e"]


def test_the_result_says_what_it_was_made_from(runs: dict[str, BenchRun]) -> None:
    result = runs["ours"].result.as_json()
    assert result["kv_blocks"] > 0
    assert result["kv_block_size"] == 16
    assert result["coverage"]["unknown"] == pytest.approx(1.0)
    assert result["provenance"]["predictor"] == "fixed step 10ms,40us"
    assert list(result["provenance"]["host_time"].values()) == [HOST_TIME_NS]
    assert Path(result["requests_file"]).is_file()
