"""`hyperlapse top`: what real processes of a real run do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from hyperlapse.cli.main import cli
from hyperlapse.shim.launcher import Mode, Run, run_directories
from hyperlapse.shim.observation import NoRunError, Observer, only_run

SLEEPER = "import time\nwhile True: time.sleep(0.01)"


@pytest.fixture
def run() -> Iterator[Run]:
    with Run() as run:
        run.set_mode(Mode.FROZEN)
        run.spawn([sys.executable, "-c", SLEEPER])
        run.spawn([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
        yield run


def test_a_run_as_one_object(run: Run) -> None:
    result = CliRunner().invoke(cli, ["top", str(run.directory), "--json", "--interval", "2"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["clock"]["mode"] == "frozen"
    assert found["rates"]["jumps_per_s"] > 10
    assert found["rates"]["speed"] == pytest.approx(found["rates"]["jumps_per_s"] * 0.01, rel=0.3)
    sleeper, reader = (
        next(each for each in found["processes"] if word in each["name"]) for word in ("time.sleep", "stdin")
    )
    (thread,) = sleeper["threads"]
    assert thread["jumps"] > 10
    assert (thread["state"], thread["waits_for"]) in (("waits", "sleeps"), ("runs", ""))
    assert all(each["deadline_ns"] is None for each in reader["threads"])


def test_a_run_as_a_table(run: Run) -> None:
    result = CliRunner().invoke(cli, ["top", str(run.directory), "--once", "--interval", "1"])
    assert result.exit_code == 0, result.output
    assert "frozen" in result.output
    assert "jumps/s" in result.output


def test_observing_takes_part_in_nothing(run: Run) -> None:
    while run.statistics().processes < 2:
        time.sleep(0.02)
    observer = Observer(run.directory)
    assert len(observer.look().processes) == run.statistics().processes == 2
    assert not observer.ended


def test_the_end_of_a_run_is_seen() -> None:
    with Run() as run:
        assert run.directory in run_directories()
        observer = Observer(run.directory)
    assert observer.ended
    assert observer.look().processes == ()


def test_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli, ["top", str(tmp_path)])
    assert result.exit_code == 2
    assert "is no run directory" in result.stderr
    monkeypatch.setattr("hyperlapse.shim.observation.run_directories", list)
    with pytest.raises(NoRunError, match="hyperlapse bench"):
        only_run()
    monkeypatch.setattr("hyperlapse.shim.observation.run_directories", lambda: [Path("/a"), Path("/b")])
    with pytest.raises(NoRunError, match="hyperlapse top /b"):
        only_run()
