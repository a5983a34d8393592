"""`hyperlapse predict`: a table for people, JSON for programs, exit status 2 for wrong input."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from hyperlapse.cli.predict import command
from hyperlapse.predictor.database import KernelDatabase


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


@pytest.mark.usefixtures("database")
def test_the_table() -> None:
    result = run("--model", "qwen3-14b", "--gpu", "h100-sxm-80gb", "--batch", "1:1088x4")
    assert result.exit_code == 0, result.output
    for word in ("gate_up_proj", "attention", "interpolated", "graph=full tokens=4 rows=4", "Where it comes from"):
        assert word in result.output


def test_json(database: KernelDatabase) -> None:
    batch = ("--batch", "1:1088x3,512:0", "--graph", "piecewise")
    result = run("--model", "qwen3-14b", "--gpu", "h100-sxm", *batch, "--json")
    assert result.exit_code == 0, result.output
    step = json.loads(result.output)
    assert step["batch"] == "v1 graph=piecewise tokens=515 rows=4 seqs=1:1088x3,512:0"
    assert sum(step["coverage_ns"].values()) == step["duration_ns"]
    assert sum(operator["total_ns"] for operator in step["operators"]) == step["duration_ns"]
    assert database.system == "h100_sxm"


@pytest.mark.usefixtures("database")
def test_a_whole_composition() -> None:
    result = run("--model", "qwen3-14b", "--batch", "v1 graph=full tokens=8 rows=5 seqs=1:1030x5", "--json")
    assert json.loads(result.output)["batch"] == "v1 graph=full tokens=8 rows=5 seqs=1:1030x5"


@pytest.mark.usefixtures("database")
def test_experts_on_two_gpus() -> None:
    result = run("--model", "mixtral-8x7b", "--tp", "2", "--gpu", "h100-sxm-80gb", "--batch", "1:1000x16", "--json")
    operators = {each["name"]: each for each in json.loads(result.output)["operators"]}
    assert operators["experts"]["coverage"] == "measured"
    assert operators["feed_forward_all_reduce"]["count"] == operators["experts"]["count"] == 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "qwen3-41b", "--batch", "1:1"), "qwen3-14b"),
        (("--model", "qwen3-14b", "--gpu", "h100-sxn-80gb", "--batch", "1:1"), "h100-sxm-80gb"),
        (("--model", "qwen3-14b", "--batch", "1:x"), "'1:x'"),
        (("--model", "qwen3-14b", "--batch", ""), "no sequence"),
        (("--model", "qwen3-14b", "--batch", "4:0", "--tokens", "3"), "fewer than the 4"),
        (("--model", "qwen3-14b", "--batch", "v1 graph=full tokens=8 rows=1 seqs=1:1", "--rows", "1"), "already"),
        (("--model", "qwen3-14b", "--batch", "1:1", "--graph", "half"), "half"),
        (("--model", "qwen3-14b", "--batch", "1:1", "--dtype", "int3"), "int3"),
    ],
)
def test_wrong_input(arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert "Traceback" not in result.output
