"""`hyperlapse run`: what it refuses before anything starts, and what it tells the program."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hyperlapse.cli.main import cli
from hyperlapse.integrations import default_engine
from hyperlapse.shim.environment import UNSUPPORTED_POLICIES, UNSUPPORTED_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240
# A call of the CUDA runtime that has no virtual answer.
CALL = "import ctypes; print(ctypes.CDLL('libcudart.so.13').cudaMallocArray())"


def test_flags_that_cannot_be_emulated_are_refused_before_there_is_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_run(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a run was made")

    monkeypatch.setattr("hyperlapse.cli.run.Run", no_run)
    line = f"run -- {default_engine().name} serve m --enable-lora"
    result = CliRunner().invoke(cli, shlex.split(line))
    assert result.exit_code == 2, result.output
    assert "LoRA adapters are not priced" in result.output


def test_the_policies_are_those_of_the_bridge() -> None:
    source = (ROOT / "csrc" / "bridge" / "unsupported.c").read_text(encoding="utf-8")
    function = source.partition("policy_of_environment(void)")[2].partition("\n}")[0]
    assert set(re.findall(r'strcmp\(text, "(\w+)"\)', function)) == set(UNSUPPORTED_POLICIES)
    default = function.index("return ABORT")
    assert function.index(f'"{UNSUPPORTED_POLICIES[0]}"') < default < function.index("return WARN")
    assert f'getenv("{UNSUPPORTED_VARIABLE}")' in function


@pytest.mark.parametrize(
    ("options", "status", "printed", "said"),
    [
        ((), 134, "", "cudaMallocArray of libcudart.so.13 is not supported"),
        (("--unsupported", "warn"), 0, "801\n", "warning: cudaMallocArray of libcudart.so.13 is not supported"),
        (("--unsupported", "error"), 0, "801\n", "unsupported-call, 1 times: cudaMallocArray"),
    ],
)
def test_an_unsupported_call_does_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], status: int, printed: str, said: str
) -> None:
    monkeypatch.delenv(UNSUPPORTED_VARIABLE, raising=False)
    result = subprocess.run(
        [sys.executable, "-m", "hyperlapse.cli.main", "run", *options, "--", sys.executable, "-c", CALL],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (result.returncode, result.stdout) == (status, printed), result.stderr
    assert said in result.stderr


def test_a_variable_that_is_no_policy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNSUPPORTED_VARIABLE, "maybe")
    result = CliRunner().invoke(cli, ["run", "--", "true"])
    assert result.exit_code == 2
    assert UNSUPPORTED_VARIABLE in result.output
    assert "'maybe' is not one of" in result.output
