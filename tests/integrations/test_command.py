"""Command lines: what is added to `vllm serve`, and that nothing else is touched."""

from __future__ import annotations

import sys

import pytest

from hyperlapse.integrations import adapt_command, kernel_maps
from hyperlapse.integrations.vllm import command, serve_args


def test_importing_the_integration_imports_no_engine() -> None:
    assert "vllm" not in sys.modules
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    "argv",
    [
        ["vllm", "serve", "m"],
        ["/opt/engine/bin/vllm", "serve", "m"],
        ["python", "-m", "vllm.entrypoints.cli.main", "serve", "m"],
        ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"],
        ["env", "A=b", "vllm", "serve", "m"],
        ["env", "-u", "X", "vllm", "serve", "m"],
        ["nice", "-n", "5", "/opt/engine/bin/vllm", "serve", "m"],
        ["python", "-u", "-X", "dev", "-m", "vllm.entrypoints.cli.main", "serve", "m"],
        ["python3.11", "/opt/engine/bin/vllm", "serve", "m"],
    ],
)
def test_servers_get_their_worker(argv: list[str]) -> None:
    adapted = adapt_command(argv, "step")
    assert adapted.argv[: len(argv)] == argv
    added = adapted.argv[len(argv) :]
    assert added[added.index("--worker-cls") + 1] == command.WORKERS["step"]
    assert added[added.index("--load-format") + 1] == "dummy"
    assert added[added.index("--middleware") + 1] == command.MIDDLEWARE
    assert adapted.environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    "argv",
    [
        ["vllm", "bench", "serve", "--model", "m"],
        ["python", "train.py", "vllm", "serve"],
        ["sleep", "1"],
        ["mytool", "vllm", "serve"],
        ["python", "-m", "mytool", "vllm", "serve"],
        ["vllm"],
        [],
        ["python", "run.py", "--mode", "serve", "x", "y", "vllm", "serve"],
    ],
)
def test_other_commands_are_unchanged(argv: list[str]) -> None:
    adapted = adapt_command(argv, "kernel")
    assert adapted.argv == argv
    assert adapted.environment == {command.DETAIL_VARIABLE: "kernel"}
    assert adapted.engine == ""


def test_flags_of_the_user_win() -> None:
    given = ["vllm", "serve", "m", "--load_format=auto", "--max-logprobs", "5", "--worker-cls", "mine.Worker"]
    added = adapt_command(given, "step").argv[len(given) :]
    assert added == ["--middleware", command.MIDDLEWARE]


def test_serve_args() -> None:
    serve = serve_args(
        "/models/m", "kernel", executable=["/e/bin/vllm"], served_model_name="m", port=81, gpus=2,
        extra=["--max-num-seqs", "64"],
    )  # fmt: skip
    assert serve.argv[:3] == ["/e/bin/vllm", "serve", "/models/m"]
    assert serve.argv[serve.argv.index("--port") + 1] == "81"
    assert serve.argv[serve.argv.index("--tensor-parallel-size") + 1] == "2"
    assert serve.argv[serve.argv.index("--max-num-seqs") + 1] == "64"
    assert serve.argv[serve.argv.index("--worker-cls") + 1] == command.WORKERS["kernel"]


@pytest.mark.parametrize(
    ("gpus", "flags", "shared"),
    [
        (4, ["--data-parallel-size", "2"], 2),
        (8, ["-dp=2", "--pipeline_parallel_size", "2"], 2),
        (2, ["--data-parallel-size=2"], 1),
        (1, [], 1),
    ],
)
def test_gpus_are_divided_among_replicas_and_stages(gpus: int, flags: list[str], shared: int) -> None:
    serve = serve_args("/models/m", "kernel", gpus=gpus, extra=flags)
    assert serve.tensor_parallel_size == shared
    assert ("--tensor-parallel-size" in serve.argv) == (shared > 1)


def test_gpus_that_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match=r"3 GPUs .* 2 replicas .* --gpus 2"):
        serve_args("/models/m", "kernel", gpus=3, extra=["-dp", "2"])


def test_unknown_detail() -> None:
    with pytest.raises(ValueError, match="kernel, step"):
        adapt_command(["vllm", "serve", "m"], "layer")


def test_kernel_maps_exist() -> None:
    assert all(path.is_file() for path in kernel_maps())
