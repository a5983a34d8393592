"""The engine environments of these tests; they are skipped where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperlapse.cli.engine_environment import (
    ENVIRONMENT_VARIABLE,
    EngineEnvironment,
    EngineNotFoundError,
    find_engine,
)

PREVIOUS_VARIABLE = "HYPERLAPSE_ENGINE_PYTHON_PREVIOUS"

# Importing vLLM takes 15 s of CPU time: one interpreter serves all pieces of a session.
_LOOP = """
import contextlib, io, json, sys, traceback
answers = sys.stdout
for line in sys.stdin:
    printed, error = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(json.loads(line), "<test>", "exec"), {})
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)
"""


def _usable(variable: str) -> EngineEnvironment:
    """The environment that this variable names, by its path: a release (vllm==...) would be installed by a test."""
    chosen = os.environ.get(variable)
    if chosen and not Path(chosen).exists():
        pytest.fail(f"{variable}={chosen}: no such path; the tests take an environment that exists")
    try:
        found = find_engine(chosen)
    except EngineNotFoundError as error:
        pytest.skip(str(error))
    if "hyperlapse" not in found.versions:
        pytest.skip(f"{found.python} has no hyperlapse: install it there (make demo does)")
    return found


@pytest.fixture(scope="session")
def engine() -> EngineEnvironment:
    """The engine that everything is tested with."""
    return _usable(ENVIRONMENT_VARIABLE)


@pytest.fixture(scope="session")
def previous_engine() -> EngineEnvironment:
    """An older version, which what differs between versions is tested with, too."""
    if not os.environ.get(PREVIOUS_VARIABLE):
        pytest.skip(f"no older engine: set {PREVIOUS_VARIABLE} to the Python of its environment (make test does)")
    return _usable(PREVIOUS_VARIABLE)


@pytest.fixture(params=["engine", "previous_engine"])
def each_engine(request: pytest.FixtureRequest) -> EngineEnvironment:
    found: EngineEnvironment = request.getfixturevalue(request.param)
    return found


@contextlib.contextmanager
def _interpreter(engine: EngineEnvironment) -> Iterator[Callable[[str], str]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("HYPERLAPSE_RUN_DIR", None)
    with subprocess.Popen(
        [str(engine.python), "-c", _LOOP], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(body: str) -> str:
            print(json.dumps(textwrap.dedent(body)), file=process.stdin, flush=True)
            printed, error = json.loads(process.stdout.readline())
            assert not error, error
            return printed

        yield run
        process.stdin.close()


@pytest.fixture(scope="session")
def in_engine(engine: EngineEnvironment) -> Iterator[Callable[[str], str]]:
    """Runs a piece of Python in the engine's environment, outside any run; what it printed."""
    with _interpreter(engine) as run:
        yield run


@pytest.fixture(scope="session")
def in_previous(previous_engine: EngineEnvironment) -> Iterator[Callable[[str], str]]:
    with _interpreter(previous_engine) as run:
        yield run


@pytest.fixture(params=["in_engine", "in_previous"])
def in_each(request: pytest.FixtureRequest) -> Callable[[str], str]:
    found: Callable[[str], str] = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def in_fresh_engine(engine: EngineEnvironment) -> Iterator[Callable[[str], str]]:
    """The same in an interpreter that has imported nothing yet."""
    with _interpreter(engine) as run:
        yield run
