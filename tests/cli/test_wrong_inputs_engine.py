"""What only the real engine can refuse, and an interrupt while it profiles the model: two starts, none of them whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hyperlapse.cli.engine_environment import EngineNotFoundError, find_engine

pytestmark = pytest.mark.engine
LIMIT_S = 500


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    try:
        python = find_engine(None).python
    except EngineNotFoundError as error:
        pytest.skip(f"no engine environment: {error}")
    words = ["bench", "--engine", str(python), "--output", str(tmp_path / "out"), "--requests", "1"]
    return [sys.executable, "-m", "hyperlapse.cli.main", *words]


def test_a_flag_that_the_engine_refuses_is_shown_with_its_own_words(command: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [*command, "--", "--max-num-seqz", "4"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert result.returncode == 1
    assert "the server ended before it was ready (exit status 2)" in result.stderr
    assert "unrecognized arguments: --max-num-seqz" in result.stderr
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_interrupt_while_it_profiles_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TEST_MARKER": str(tmp_path)}
    errors = tmp_path / "errors"
    with errors.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=output)
    limit = time.monotonic() + LIMIT_S
    while "profiling the model once" not in errors.read_text():
        assert process.poll() is None, errors.read_text()
        assert time.monotonic() < limit, errors.read_text()
        time.sleep(0.1)
    (keeper,) = [
        child for child in psutil.Process(process.pid).children() if "hyperlapse-keeper" in " ".join(child.cmdline())
    ]
    run_directory = Path(keeper.cmdline()[1])
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    assert "interrupted; everything that was started has been ended" in errors.read_text()
    assert not run_directory.exists()
    assert [other.pid for other in psutil.process_iter() if _is_of_the_run(other, str(tmp_path))] == []
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "vllm-profiles" in path.parts]
    assert [path for path in kept if path.suffix == ".json"] == [], "half a profile must not be used"


def _is_of_the_run(process: psutil.Process, marker: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TEST_MARKER") == marker
    except psutil.Error:
        return False
