"""The trace client and a server on the frozen clock: virtual instants are exact, repeatable, and free of real time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyperlapse.cli import client_script
from hyperlapse.cli.load import LoadPlan
from hyperlapse.cli.metrics import RequestRecord, read_requests
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.serving import (
    Client,
    ServingError,
    epoch_ns,
    follow_client,
    free_port,
    start_server,
    wait_until_registered,
)
from hyperlapse.cli.workload import TokenRange, TraceRequest, write_workload
from hyperlapse.shim.launcher import Mode, Run

pytest.importorskip("aiohttp", reason="the client needs aiohttp, which the engine's environment has")

MS = 1_000_000
SERVER = Path(__file__).with_name("completions_server.py")


def measure_once(folder: Path, requests: list[TraceRequest]) -> tuple[list[RequestRecord], float]:
    """Records and real seconds of one measurement on a frozen clock."""
    folder.mkdir()
    write_workload(folder / "workload.jsonl", requests, 0, TokenRange(0, 1000))
    with Run() as run:
        run.set_mode(Mode.REAL)
        port = free_port()
        program = [sys.executable, str(SERVER), "serve", "--port", str(port)]
        server = start_server(run, program, {}, port=port, log=folder / "server.log", progress=Silent())
        run.set_mode(Mode.PARKED)
        command = [sys.executable, "-P", str(client_script.path()), "--base-url", f"http://127.0.0.1:{port}"]
        command += ["--model", "m", "--workload", str(folder / "workload.jsonl"), "--output", str(folder / "out.jsonl")]
        log = folder / "c.log"
        with log.open("wb") as output:
            process = run.spawn(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        wait_until_registered(run, process, log)
        run.set_mode(Mode.PARKED, epoch_ns=epoch_ns(run.now_ns()))
        run.set_mode(Mode.FROZEN)
        plan = LoadPlan(
            command, client_script.STARTED_LINE, client_script.ENDED_LINE, len(requests), {}, folder, stock=False
        )
        real_s = follow_client(run, server, Client(process, log, plan), Silent())
    return read_requests(folder / "out.jsonl"), real_s


def test_a_long_replay_is_short_exact_and_repeatable(tmp_path: Path) -> None:
    requests = [TraceRequest(index * 20_000 * MS, 10, 30) for index in range(4)]
    first, real_s = measure_once(tmp_path / "one", requests)
    again, _ = measure_once(tmp_path / "two", requests)
    assert [record.index for record in first] == [0, 1, 2, 3]
    assert first[-1].token_ns[-1] > 60_000 * MS
    assert real_s < 20
    for record in first:
        # The server's asyncio rounds its 10 ms sleep to the next millisecond; nothing else may take time.
        assert all(10 * MS <= gap <= 11.1 * MS for gap in record.itl_ns)
        assert 10 * MS <= record.ttft_ns <= 11.1 * MS
    assert [(record.send_ns, record.token_ns) for record in first] == [
        (record.send_ns, record.token_ns) for record in again
    ]


def test_a_server_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    program = [sys.executable, str(SERVER), "serve", "--fail-at-start"]
    with Run() as run:
        run.set_mode(Mode.REAL)
        with pytest.raises(ServingError, match=r"ended before it was ready \(exit status 7\)"):
            start_server(run, program, {}, port=1, log=tmp_path / "server.log", progress=Silent())
    assert not run.directory.exists()
