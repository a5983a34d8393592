"""A whole benchmark with a stand-in engine: real processes, real HTTP, the real trace client, on real time.

The run's clock is replaced (there is nothing virtual here), so that what is tested is the order of things, what becomes
of failures, and that nothing is left running. tests/engines has the real engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hyperlapse.cli import bench, benchmark
from hyperlapse.cli.benchmark import BenchError, BenchOptions, events_since, run_bench
from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.metrics import read_requests
from hyperlapse.integrations import default_engine
from hyperlapse.shim import launcher
from hyperlapse.shim.environment import UNSUPPORTED_VARIABLE
from hyperlapse.shim.launcher import Event

pytest.importorskip("aiohttp", reason="the client needs aiohttp, which the engine's environment has")

SERVER = Path(__file__).with_name("completions_server.py")


class RealTimeRun:
    """hyperlapse.shim.launcher.Run without a time-keeper."""

    def __init__(self, directory: Path, log: list[str]) -> None:
        self.directory, self.log = directory, log
        self.gpu = "h100-sxm-80gb"
        self.started: list[subprocess.Popen[bytes]] = []
        self.stuck_after_s: float | None = None
        self.event = "unknown-kernel"
        self.looks = 0
        self.policies: list[str] = []

    def __enter__(self) -> RealTimeRun:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def spawn(
        self, command: Sequence[str], extra_environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **(extra_environment or {}), "TEST_RUN_DIR": str(self.directory)}
        self.policies.append(environment.get(UNSUPPORTED_VARIABLE, ""))
        process = subprocess.Popen(list(command), env=environment, **options)
        self.started.append(process)
        self.log.append(f"spawn {Path(command[1]).name}")
        return process

    def participants(self) -> list[int]:
        return [process.pid for process in self.started]

    def set_mode(self, mode: launcher.Mode, *, epoch_ns: int = 0) -> None:
        self.log.append(f"{mode.name}{' at an epoch' if epoch_ns else ''}")

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def statistics(self) -> Any:
        names = ("jumps", "proofs", "proofs_refused", "trigger_to_wake_ns_total", "proof_ns_total")
        return SimpleNamespace(**dict.fromkeys(names, 0))

    def events(self) -> list[launcher.Event]:
        self.looks += 1  # 3 at start-up, 3 more while it measures
        return [launcher.Event(self.event, "some_kernel", 3 * self.looks)]

    def check(self) -> None:
        if self.stuck_after_s is not None and len(self.started) > 1:
            raise launcher.RunError("the run makes no progress (report above)")


@dataclass
class Bench:
    folder: Path
    log: list[str]
    run: RealTimeRun
    server_options: list[str]

    def options(self, **given: Any) -> BenchOptions:
        return BenchOptions(trace=self.trace(), output=self.folder / "out", **given)

    def trace(self) -> Path:
        path = self.folder / "trace.jsonl"
        lines = [{"arrival_s": 0.03 * index, "prompt_tokens": 20, "output_tokens": 4} for index in range(6)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    def alive(self) -> list[int]:
        return [process.pid for process in self.run.started if process.poll() is None]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    shared = tmp_path / "run"
    shared.mkdir()
    log: list[str] = []
    found = Bench(tmp_path, log, RealTimeRun(shared, log), [])
    wrapper = tmp_path / "bin" / "vllm"
    wrapper.parent.mkdir()
    engine = EngineEnvironment(Path(sys.executable), {"vllm": "0.23.0"})
    monkeypatch.setattr(benchmark, "find_engine", lambda explicit, progress: engine)
    monkeypatch.setattr(EngineEnvironment, "command", property(lambda self: [sys.executable, str(SERVER)]))
    monkeypatch.setattr(launcher, "Run", lambda gpu, gpus, **_: found.run)
    monkeypatch.setattr(benchmark.PricingProcess, "start", lambda run, fixed_step, log_file, **_: log.append("pricing"))
    device_time = iter([{"measured": 10, "unknown": 0}, {"measured": 40, "unknown": 10}])
    monkeypatch.setattr(benchmark, "device_time_ns", lambda directory: next(device_time))
    monkeypatch.setattr(benchmark, "host_time", lambda options, engine: {"api_request_ns": 5})
    served = dataclasses.replace(
        default_engine(),
        serve_args=lambda model, detail, executable=(), port=0, **rest: SimpleNamespace(
            argv=[*executable, "serve", str(model), "--port", str(port), *found.server_options],
            environment={},
            tensor_parallel_size=1,
        ),
    )
    monkeypatch.setattr(EngineEnvironment, "engine", served)
    monkeypatch.setattr(benchmark, "provenance", lambda **facts: {"engine_flags": list(facts["engine_flags"])})
    yield found
    assert found.alive() == []


def test_a_trace_runs_in_the_right_order_and_gives_a_result(stand_in: Bench) -> None:
    run = run_bench(stand_in.options(max_in_flight=4))
    result = run.result
    order = "pricing, REAL, spawn completions_server.py, PARKED, spawn -P, PARKED at an epoch, FROZEN, PARKED"
    assert ", ".join(stand_in.log) == order
    assert result.metrics.requests == 6
    assert (result.kv_blocks, result.kv_block_size, result.preemptions) == (123, 16, 0)
    assert result.coverage["measured"] == 0.75
    assert 0.15 < result.virtual_s < 2
    assert 0.1 < result.real_s < 5
    assert result.startup_s > 0
    records = read_requests(Path(result.requests_file))
    assert [record.output_tokens for record in records] == [4] * 6
    assert json.loads((run.folder / "result.json").read_text()) == result.as_json()


def command(stand_in: Bench, *arguments: str) -> Result:
    return CliRunner().invoke(bench.command, [*arguments])


def test_json_prints_one_object_and_nothing_else(stand_in: Bench) -> None:
    result = command(stand_in, "--trace", str(stand_in.trace()), "--json", "--output", str(stand_in.folder / "out"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["requests"] == 6
    assert "unknown-kernel, 3 times: some_kernel" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "variable", "policy"),
    [([], None, "abort"), ([], "warn", "warn"), (["--unsupported", "error"], "warn", "error")],
)
def test_the_engine_is_told_what_an_unsupported_call_does(
    stand_in: Bench, monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None, policy: str
) -> None:
    if variable is None:
        monkeypatch.delenv(UNSUPPORTED_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(UNSUPPORTED_VARIABLE, variable)
    trace, output = str(stand_in.trace()), str(stand_in.folder / "out")
    result = command(stand_in, "--trace", trace, "--json", "--output", output, *arguments)
    assert result.exit_code == 0, result.output
    assert set(stand_in.run.policies) == {policy}


def test_the_tables_come_without_json(stand_in: Bench) -> None:
    result = command(stand_in, "--trace", str(stand_in.trace()), "--output", str(stand_in.folder / "out"))
    assert result.exit_code == 0, result.output
    assert "TTFT" in result.stdout
    assert "KV-cache blocks" in result.stdout


def test_a_server_that_fails_at_its_start_shows_its_last_lines(stand_in: Bench) -> None:
    stand_in.server_options.append("--fail-at-start")
    with pytest.raises(BenchError) as caught:
        run_bench(stand_in.options())
    message = str(caught.value)
    assert "ended before it was ready (exit status 7)" in message
    assert "line 39" in message
    assert "line 10" in message
    assert "line 9\n" not in message
    assert caught.value.status == 1


def test_a_server_that_dies_shows_its_status_and_last_lines(stand_in: Bench) -> None:
    stand_in.server_options.extend(["--die-after", "4"])
    with pytest.raises(BenchError) as caught:
        run_bench(stand_in.options())
    message = str(caught.value)
    assert "the server died (exit status 3)" in message
    assert "fatal: out of something" in message


def test_a_failed_request_is_no_result(stand_in: Bench) -> None:
    stand_in.server_options.extend(["--refuse", "3"])
    result = command(stand_in, "--trace", str(stand_in.trace()), "--json", "--output", str(stand_in.folder / "out"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "1 of 6 requests failed; the first: HTTP 400" in result.stderr


def test_a_predictor_that_failed_is_no_result(stand_in: Bench) -> None:
    stand_in.run.event = "predictor-failed"
    result = command(stand_in, "--trace", str(stand_in.trace()), "--json", "--output", str(stand_in.folder / "out"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "predictor-failed, 3 times: some_kernel" in result.stderr


def test_no_progress_ends_the_run(stand_in: Bench) -> None:
    stand_in.run.stuck_after_s = 0.0
    with pytest.raises(BenchError, match="makes no progress"):
        run_bench(stand_in.options())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen3-15b"], "qwen3-14b"),
        (["--gpus", "0"], "--gpus"),
        (["--rate", "0"], "not above 0"),
        (["--rate", "inf"], "not above 0"),
        (["--rate", "fast"], "not a number"),
        (["--max-in-flight", "4"], "belongs to --trace"),
        (["--step-fixed", "10"], "expected STEP,PER_PROMPT_TOKEN"),
        (["--trace", "/nowhere.jsonl"], "No such file"),
        (["--trace", "/nowhere.jsonl", "--rate", "3"], "--rate has no meaning with --trace"),
        (["--gpus", "3"], "3 GPUs cannot share 40 attention heads evenly"),
        (["--gpus", "3", "--", "-dp", "2"], "cannot be divided among 2 replicas"),
        (["--input-len", "40000", "--output-len", "961"], "the longest sequence that is served is 40960 tokens"),
        (["--input-len", "900", "--output-len", "125", "--", "--max-model-len", "1024"], "is 1024 tokens"),
        (["--", "--api-key=secret"], "speaks plain HTTP without a key"),
        (["--", "--port", "8000"], "--port is set by hyperlapse bench"),
        (["--", "--served-model-name=x"], "--served-model-name is set"),
        (["--detail", "instruction"], "kernel"),
    ],
)
def test_bad_input_is_named_and_exits_with_2(stand_in: Bench, arguments: list[str], message: str) -> None:
    result = command(stand_in, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert stand_in.run.started == []


def test_a_malformed_trace_is_named_by_file_and_line(stand_in: Bench) -> None:
    path = stand_in.trace()
    with path.open("a") as file:
        file.write('{"arrival_s": 1}\n')
    result = command(stand_in, "--trace", str(path))
    assert result.exit_code == 2
    assert f"{path}:7: 'prompt_tokens' is missing" in result.stderr


def test_results_are_never_overwritten(stand_in: Bench) -> None:
    (stand_in.folder / "out").mkdir()
    (stand_in.folder / "out" / "result.json").write_text("{}")
    with pytest.raises(BenchError, match="not empty"):
        run_bench(stand_in.options())


def test_without_an_output_folder_results_go_to_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, two = benchmark.make_folder(None), benchmark.make_folder(None)
    assert one != two
    assert one.parent == two.parent == tmp_path / "hyperlapse" / "bench"


def test_host_time_of_a_fixed_step_run_is_none() -> None:
    engine = default_engine().name
    rule = benchmark.host_time_rule(engine)
    assert benchmark.host_time(BenchOptions(), engine)[rule] > 0
    assert benchmark.host_time(BenchOptions(fixed_step="10ms,40us"), engine) == {}
    assert benchmark.host_time(BenchOptions(fixed_step="10ms,40us", host_time_ns=7), engine) == {rule: 7}
    assert benchmark.host_time(BenchOptions(host_time_ns=0), engine) == {}


def test_events_of_the_start_up_are_not_the_measurements() -> None:
    before = [Event("unknown-kernel", "warm", 5), Event("unknown-kernel", "both", 2)]
    after = [*before[:1], Event("unknown-kernel", "both", 3), Event("unvirtualised-wait", "alarm", 1)]
    assert events_since(before, after) == [
        Event("unknown-kernel", "both", 1),
        Event("unvirtualised-wait", "alarm", 1),
    ]
