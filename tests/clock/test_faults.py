"""Nothing hangs: deadlocks, killed parts, programs without the shim, Ctrl-C, exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hyperlapse.shim.launcher import Mode, Run
from tests.clock.fixture import HYPERLAPSE, PROGRAMS, Clock


def test_exit_status_is_the_commands(clock: Clock) -> None:
    assert clock.run("sh", "-c", "exit 7").returncode == 7


def test_death_by_signal_is_told_as_a_shell_would(virtual_clock: Clock) -> None:
    assert virtual_clock.run("sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_unknown_command_and_missing_command() -> None:
    done = subprocess.run(
        [*HYPERLAPSE, "run", "--gpu", "none", "--", "no-such-program"], capture_output=True, text=True
    )
    assert done.returncode == 127
    assert "no-such-program: command not found" in done.stderr
    done = subprocess.run(
        [*HYPERLAPSE, "run", "--gpu", "none", "--freeze", "never", "--", "true"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected start, ready=URL or manual" in done.stderr


def test_deadlock_is_reported_and_ended() -> None:
    program = "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"
    done = subprocess.run(
        [*HYPERLAPSE, "run", "--gpu", "none", "--no-progress", "1", "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 75
    assert "everybody waits, and nobody has a deadline" in done.stderr
    assert "waits for a semaphore, without a deadline" in done.stderr


def test_killed_participant_does_not_hold_the_clock(virtual_clock: Clock) -> None:
    program = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
time.sleep(1); os.kill(child.pid, signal.SIGKILL); child.wait()
began = time.monotonic(); time.sleep(5); print(time.monotonic() - began)
"""
    done = virtual_clock.run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(5.000001)


def test_program_without_the_shim_holds_the_clock_and_is_reported(tmp_path: Path) -> None:
    (tmp_path / "static.c").write_text("#include <unistd.h>\nint main(void) { sleep(3); return 0; }\n")
    built = subprocess.run(["gcc", "-static", "static.c", "-o", "static"], cwd=tmp_path, capture_output=True)
    if built.returncode != 0:
        pytest.skip("this machine has no static libc to link with")
    program = """
import subprocess, threading, time
threading.Thread(target=lambda: [time.sleep(0.01) for _ in range(10**6)], daemon=True).start()
began = time.monotonic(); subprocess.run(["./static"], check=True); print(time.monotonic() - began)
"""
    done = subprocess.run(
        [*HYPERLAPSE, "run", "--gpu", "none", "--no-progress", "1", "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5  # the clock stood while it lived; the decoy did not gallop
    assert "static" in done.stderr
    assert "not on the virtual clock" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything(number: int) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    process = subprocess.Popen(
        [*HYPERLAPSE, "run", "--gpu", "none", "--", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    launcher = psutil.Process(process.pid)
    limit = time.monotonic() + 60
    while len(launcher.children(recursive=True)) < 3 and time.monotonic() < limit:
        time.sleep(0.05)
    family = launcher.children(recursive=True)
    assert len(family) >= 3
    os.killpg(process.pid, number)
    assert process.wait(60) != 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_killed_launcher_takes_the_run_with_it() -> None:
    process = subprocess.Popen(
        [*HYPERLAPSE, "run", "--gpu", "none", "--", "cat"], stderr=subprocess.PIPE, stdin=subprocess.PIPE
    )
    launcher = psutil.Process(process.pid)
    limit = time.monotonic() + 60
    while len(launcher.children()) < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    family = launcher.children(recursive=True)
    assert len(family) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_killed_time_keeper_ends_the_run() -> None:
    process = subprocess.Popen(
        [*HYPERLAPSE, "run", "--gpu", "none", "--", sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    launcher = psutil.Process(process.pid)
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        keepers = [child for child in launcher.children() if child.name().startswith("hyperlapse-keep")]
        if keepers and len(launcher.children()) > 1:
            break
        time.sleep(0.02)
    keepers[0].kill()
    assert process.wait(60) == 75
    assert process.stderr is not None
    assert "the time-keeper died" in process.stderr.read()


def test_other_children_of_the_launcher_are_none_of_the_runs() -> None:
    """A program that starts runs by itself may have children of its own: they hold no clock and outlive the run."""
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        with Run() as run:
            run.set_mode(Mode.FROZEN)
            done = run.spawn(["sleep", "3600"])
            assert done.wait(60) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_process_that_died_before_the_clock_froze_does_not_hold_it() -> None:
    """It leaves a deadline behind; an epoch far ahead makes that one due, and nobody is there to see it."""
    died = (
        "import os, threading, time; threading.Thread(target=time.sleep, args=(50,)).start(); "
        "time.sleep(0.2); os.write(1, b'x'); os.read(0, 1); os._exit(0)"
    )
    waits = "import time; began = time.monotonic(); time.sleep(5); print(time.monotonic() - began)"
    with Run(no_progress_s=2) as run:
        run.set_mode(Mode.REAL)
        first = run.spawn([sys.executable, "-c", died], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert first.stdout is not None
        assert first.stdout.read(1) == b"x"
        first.communicate(b"x")
        run.set_mode(Mode.PARKED)
        run.set_mode(Mode.PARKED, epoch_ns=100_000 * 10**9)
        second = run.spawn([sys.executable, "-c", waits], stdout=subprocess.PIPE)
        run.set_mode(Mode.FROZEN)
        output, _ = second.communicate(timeout=60)
    assert float(output) == pytest.approx(5.000001)


@pytest.mark.parametrize("mode", [Mode.REAL, Mode.FROZEN])
def test_processes_that_have_ended_make_room_for_others(mode: Mode) -> None:
    """A shell that polls a server while the clock is real: the page has 512 entries, and nobody proves anything then."""
    polls = "i=0; while [ $i -lt 600 ]; do /bin/true || exit 9; i=$((i+1)); done"
    with Run(no_progress_s=60) as run:
        run.set_mode(mode)
        assert run.spawn(["sh", "-c", polls]).wait(120) == 0


def test_timers_catch_up_with_an_epoch_at_once(virtual_clock: Clock) -> None:
    """99 million expirations of each: one by one they would take minutes, in which nothing moves."""
    with Run(no_progress_s=60) as run:
        run.set_mode(Mode.REAL)
        process = run.spawn([virtual_clock.compiled("skipped")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        run.set_mode(Mode.PARKED)
        run.set_mode(Mode.PARKED, epoch_ns=100_000 * 10**9)
        run.set_mode(Mode.FROZEN)
        process.communicate(b"x", timeout=60)
    assert process.returncode == 0


@pytest.fixture
def broken_proc(build_directory: Path) -> dict[str, str]:
    """Environment in which the time-keeper, and nobody else, finds /proc broken."""
    library = build_directory / "broken_proc.so"
    source = PROGRAMS / "broken_proc.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library, source, "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


@pytest.mark.parametrize("folder", ["/proc", "/task"])
def test_a_proof_that_would_miss_threads_ends_the_run(
    virtual_clock: Clock, broken_proc: dict[str, str], folder: str
) -> None:
    done = virtual_clock.run("sleep", "1", env={**broken_proc, "FAIL_OPENDIR": folder})
    assert done.returncode == 75
    assert "too few file descriptors for the threads of the run: raise ulimit -n" in done.stderr


def test_a_proof_that_cannot_see_sleep_is_told(
    virtual_clock: Clock, broken_proc: dict[str, str], tmp_path: Path
) -> None:
    """As of a process that made itself undumpable, for a user who may not trace it."""
    (tmp_path / "wchan").write_text("0")
    done = virtual_clock.run("sleep", "1", env={**broken_proc, "WCHAN": str(tmp_path / "wchan")})
    assert done.returncode == 0, done.stderr
    assert "blind-proof" in done.stderr
    assert "sleep hides where its threads sleep" in done.stderr
