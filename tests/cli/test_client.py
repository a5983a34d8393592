"""The trace client over real sockets: what it sends, what it measures, and that one failure does not end the replay."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperlapse.cli import client_script
from hyperlapse.cli.metrics import RequestRecord, measure, read_requests
from hyperlapse.cli.workload import TokenRange, TraceRequest, write_workload

pytest.importorskip("aiohttp", reason="the client needs aiohttp, which the engine's environment has")

TOKENS = TokenRange(0, 1000)
MS = 1_000_000


def run_client(
    folder: Path, port: int, requests: list[TraceRequest], *options: str, text: bool = False
) -> tuple[subprocess.CompletedProcess[str], list[RequestRecord]]:
    write_workload(folder / "workload.jsonl", requests, 0, TOKENS, text=text)
    output = folder / "requests.jsonl"
    command = [sys.executable, "-P", str(client_script.path()), "--base-url", f"http://127.0.0.1:{port}"]
    command += ["--model", "m", "--workload", str(folder / "workload.jsonl"), "--output", str(output), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return result, read_requests(output)


def counts(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/counts") as response:
        found: dict[str, int] = json.load(response)
    return found


def test_every_chunk_has_an_instant_and_lengths_are_the_servers(server: Callable[..., int], tmp_path: Path) -> None:
    requests = [TraceRequest(0, 30, 5), TraceRequest(100 * MS, 7, 1)]
    result, records = run_client(tmp_path, server("--token-s", "0.02", "--ping"), requests)
    assert result.returncode == 0, result.stderr
    assert [record.index for record in records] == [0, 1]
    assert [len(record.token_ns) for record in records] == [5, 1]
    assert [(record.prompt_tokens, record.output_tokens) for record in records] == [(30, 5), (7, 1)]
    assert all(record.ok for record in records)
    for gap in records[0].itl_ns:
        assert 15 * MS < gap < 200 * MS
    assert 15 * MS < records[0].ttft_ns < 300 * MS


def test_the_log_marks_the_measurement(server: Callable[..., int], tmp_path: Path) -> None:
    result, _ = run_client(tmp_path, server(), [TraceRequest(0, 4, 2)])
    started, ended = result.stdout.splitlines()
    assert started == client_script.STARTED_LINE
    assert ended.startswith(f"{client_script.ENDED_LINE} {client_script.START_PREFIX}")
    assert result.stderr == ""


def test_requests_go_out_at_their_arrivals(server: Callable[..., int], tmp_path: Path) -> None:
    arrivals = [0, 50 * MS, 50 * MS, 170 * MS]
    _, records = run_client(tmp_path, server(), [TraceRequest(arrival, 4, 1) for arrival in arrivals])
    assert [record.arrival_ns for record in records] == arrivals
    for record, arrival in zip(records, arrivals, strict=True):
        # asyncio sleeps up to a millisecond longer; a busy machine more.
        assert 0 <= record.send_ns - arrival < 80 * MS


def test_text_and_token_ids_are_the_same_prompt(server: Callable[..., int], tmp_path: Path) -> None:
    port = server()
    _, ids = run_client(tmp_path, port, [TraceRequest(0, 12, 1)])
    _, text = run_client(tmp_path, port, [TraceRequest(0, 12, 1)], text=True)
    assert ids[0].prompt_tokens == text[0].prompt_tokens == 12


@pytest.mark.parametrize("limit", [1, 3])
def test_max_in_flight_is_never_exceeded_and_is_used(server: Callable[..., int], tmp_path: Path, limit: int) -> None:
    port = server("--token-s", "0.01")
    _, records = run_client(tmp_path, port, [TraceRequest(0, 4, 4)] * 8, "--max-in-flight", str(limit))
    assert all(record.ok for record in records)
    assert counts(port)["most"] == limit
    # Those that had to wait were sent late; latency counts from the send, as in the stock client.
    assert records[-1].send_ns > 30 * MS
    assert records[-1].ttft_ns < 200 * MS


def test_one_refused_request_does_not_end_the_others(server: Callable[..., int], tmp_path: Path) -> None:
    result, records = run_client(
        tmp_path, server("--refuse", "2"), [TraceRequest(index * 40 * MS, 4, 3) for index in range(4)]
    )
    assert result.returncode == 0
    failed = [record for record in records if not record.ok]
    assert [record.index for record in failed] == [1]
    assert failed[0].error.startswith("HTTP 400 Bad Request")
    assert "refused for the test" in failed[0].error
    metrics = measure(records)
    assert (metrics.requests, metrics.failed) == (3, 1)


def test_a_server_that_dies_fails_every_open_request(server: Callable[..., int], tmp_path: Path) -> None:
    result, records = run_client(tmp_path, server("--die-after", "2"), [TraceRequest(0, 4, 50)] * 3)
    assert result.returncode == 0
    assert len(records) == 3
    assert not any(record.ok for record in records)
    assert all(record.error for record in records)


def test_the_warm_up_is_outside_the_measurement(server: Callable[..., int], tmp_path: Path) -> None:
    port = server()
    write_workload(tmp_path / "warmup.jsonl", [TraceRequest(0, 4, 2)], 0, TOKENS, first_index=99)
    _, records = run_client(tmp_path, port, [TraceRequest(0, 4, 2)], "--warmups", str(tmp_path / "warmup.jsonl"))
    assert len(records) == 1
    assert counts(port)["requests"] == 2
    assert 0 <= records[0].send_ns < 100 * MS


def test_a_failed_warm_up_is_an_error(server: Callable[..., int], tmp_path: Path) -> None:
    write_workload(tmp_path / "warmup.jsonl", [TraceRequest(0, 4, 2)], 0, TOKENS)
    result, records = run_client(
        tmp_path, server("--refuse", "1"), [TraceRequest(0, 4, 2)], "--warmups", str(tmp_path / "warmup.jsonl")
    )
    assert result.returncode == 1
    assert "the warm-up request failed: HTTP 400" in result.stderr
    assert records == []


def test_the_script_and_the_launcher_agree_on_the_marks() -> None:
    source = client_script.path().read_text(encoding="utf-8")
    assert f'STARTED_LINE = "{client_script.STARTED_LINE}"' in source
    assert f'START_PREFIX = "{client_script.START_PREFIX}"' in source
    assert f'ENDED_LINE = "{client_script.ENDED_LINE}"' in source


def test_the_script_imports_nothing_that_an_engine_environment_may_lack() -> None:
    lines = client_script.path().read_text(encoding="utf-8").splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= set(sys.stdlib_module_names) | {"aiohttp"}
