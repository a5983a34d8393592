"""The log of an engine's steps: what is written is read, as far as it was written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyperlapse.shim.step_log import (
    ENVIRONMENT_VARIABLE,
    GROW_BYTES,
    LoggedStep,
    LoggedSteps,
    StepLog,
    StepLogError,
    read_logs,
)

BATCH = b"v1 graph=full tokens=1 rows=1 seqs=1:1088"


def test_steps_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps-1-0.bin", {"device": 0, "model_key": "key"})
    assert list(LoggedSteps.open(tmp_path / "steps-1-0.bin")) == []
    for number in range(3):
        log.add(10**14 + number, 10**14 + number + 5, BATCH)
    # read while the writer lives: a process that is killed leaves the same file
    (found,) = read_logs(tmp_path)
    assert found.header == {"device": 0, "model_key": "key"}
    assert list(found) == [LoggedStep(10**14 + n, 10**14 + n + 5, BATCH.decode()) for n in range(3)]


def test_a_log_grows(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps-1-0.bin", {})
    batch = b"x" * 16_384
    count = 3 * GROW_BYTES // len(batch)
    for number in range(count):
        log.add(number, number, batch)
    steps = list(LoggedSteps.open(tmp_path / "steps-1-0.bin"))
    assert [step.launch_ns for step in steps] == list(range(count))
    assert {step.batch for step in steps} == {batch.decode()}


def test_logs_come_in_the_order_of_devices(tmp_path: Path) -> None:
    for process, device in ((3, 1), (4, 0)):
        StepLog(tmp_path / f"steps-{process}-{device}.bin", {"device": device}).add(device, device, BATCH)
    assert [log.header["device"] for log in read_logs(tmp_path)] == [0, 1]


def test_there_is_a_log_only_when_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert StepLog.of_run(0) is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert StepLog.of_run(0) is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    assert StepLog.of_run(2, model_key="key") is not None
    assert read_logs(tmp_path)[0].header == {"device": 2, "model_key": "key"}


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    for text, message in ((b"", "cut off"), (b"x" * 100, "no step log of this version")):
        (tmp_path / "steps-1-0.bin").write_bytes(text)
        with pytest.raises(StepLogError, match=message):
            read_logs(tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from hyperlapse.shim.step_log import GROW_BYTES, StepLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (GROW_BYTES, GROW_BYTES))
log = StepLog(Path(sys.argv[1]), {})
for number in range(200):
    log.add(number, number, b"x" * 16_384)
print("still running")
"""


def test_a_full_disk_ends_the_log_and_not_the_program(tmp_path: Path) -> None:
    path = tmp_path / "steps-1-0.bin"
    found = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "still running\n"), found.stderr
    steps = list(LoggedSteps.open(path))
    assert [step.launch_ns for step in steps] == list(range(len(steps)))
    assert 50 < len(steps) < 64
