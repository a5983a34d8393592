"""A real server that dies, a real model that does not fit, and `hyperlapse run` around an ordinary `vllm serve`."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from hyperlapse.cli.benchmark import BenchError, BenchOptions, run_bench
from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.serving import free_port
from hyperlapse.shim.models import resolve_model

pytestmark = pytest.mark.engine

HYPERLAPSE = [sys.executable, "-m", "hyperlapse.cli.main"]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def kill_the_engine_core_when_it_measures(log: Path, before: set[int]) -> None:
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        if log.exists() and "POST /v1/completions" in log.read_text(encoding="utf-8", errors="replace"):
            for process in children():
                if process.pid not in before and "EngineCore" in "".join(process.cmdline()):
                    process.kill()
                    return
        time.sleep(0.05)


def test_a_server_that_dies_is_told_with_its_last_words_and_leaves_nothing(
    engine: EngineEnvironment, tmp_path: Path
) -> None:
    before = {process.pid for process in children()}
    killer = threading.Thread(target=kill_the_engine_core_when_it_measures, args=(tmp_path / "server.log", before))
    killer.start()
    with pytest.raises(BenchError) as caught:
        run_bench(BenchOptions(requests=2000, rate=4, output=tmp_path, fixed_step="10ms,40us"))
    killer.join()
    assert "server died" in str(caught.value)
    assert "EngineCore" in str(caught.value)
    assert {process.pid for process in children()} <= before


def test_a_model_that_does_not_fit_fails_with_the_engines_own_words(engine: EngineEnvironment, tmp_path: Path) -> None:
    config = resolve_model("qwen3-14b").config()
    config["num_hidden_layers"] = 160  # 53 B parameters in bfloat16
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BenchError) as caught:
        run_bench(BenchOptions(model=str(tmp_path / "model"), requests=1, detail="kernel", output=tmp_path / "out"))
    assert "CUDA out of memory" in str(caught.value)


def test_run_serves_on_real_time_until_ready_then_on_the_virtual_clock(
    engine: EngineEnvironment, tmp_path: Path
) -> None:
    """A client outside of the run asks a server whose clock is frozen."""
    port = free_port()
    model = resolve_model("qwen3-14b")
    command = [
        *HYPERLAPSE,
        "run",
        "--detail",
        "step",
        "--model",
        "qwen3-14b",
        "--freeze",
        f"ready=http://127.0.0.1:{port}/health",
    ]
    serve = ["serve", str(model.directory), "--port", str(port)]
    log = (tmp_path / "log").open("w+b")
    process = subprocess.Popen([*command, "--", *engine.command, *serve], stdout=log, stderr=log, env=dict(os.environ))
    try:
        limit = time.monotonic() + 300
        text = ""
        while "the clock is frozen from here" not in text:
            assert process.poll() is None, text
            assert time.monotonic() < limit, text
            time.sleep(0.2)
            text = (tmp_path / "log").read_text(encoding="utf-8", errors="replace")
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4  # time-keeper, pricing service, API server, engine core
        request = {"model": str(model.directory), "prompt": [1000] * 100, "max_tokens": 200, "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 200, answer
    finally:
        process.terminate()
        process.wait(120)
        log.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


SCRIPT = """
import sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model = LLM(sys.argv[1], enforce_eager=True, max_model_len=1024, max_num_batched_tokens=256, num_gpu_blocks_override=121)
    prompts = [{"prompt_token_ids": list(range(1000, 1000 + length))} for length in (50, 400)]
    for answer in model.generate(prompts, SamplingParams(max_tokens=9, ignore_eos=True)):
        print("ids", *answer.outputs[0].token_ids)
"""


def test_a_script_with_an_engine_of_its_own_gets_our_worker(engine: EngineEnvironment, tmp_path: Path) -> None:
    """`hyperlapse run -- python script.py` with vLLM's offline API, which no command line tells its worker."""
    model = resolve_model("qwen3-14b")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [*HYPERLAPSE, "run", "--detail", "step", "--freeze", "manual", "--model", "qwen3-14b"]
    done = subprocess.run(
        [*command, "--", str(engine.python), str(tmp_path / "script.py"), str(model.directory)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ids = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ids ")]
    assert [len(answer) for answer in ids] == [9, 9]
    assert all(0 <= int(token) < 151_643 for answer in ids for token in answer)
    assert len({tuple(answer) for answer in ids}) == 2
