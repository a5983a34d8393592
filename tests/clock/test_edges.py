"""Edges of libc at which a virtual clock can hang or differ: each case natively and under the shim."""

from __future__ import annotations

import json
import sys

import pytest

from tests.clock.fixture import Clock


@pytest.mark.parametrize(
    "case",
    [
        "main thread ends first",
        "past deadline gives up the mutex",
        "sleep is a cancellation point",
        "timed lock times out",
        "another thread execs",
    ],
)
def test_takes_300_ms(clock: Clock, case: str) -> None:
    elapsed_s = clock.measure("edges", case)["elapsed"]
    assert elapsed_s >= 0.3
    assert not clock.virtual or elapsed_s <= 0.30001


@pytest.mark.parametrize("case", ["timed lock waits", "a thread forks"])
def test_takes_about_300_ms(clock: Clock, case: str) -> None:
    """Started by other waits, which may be 1 ms apart."""
    elapsed_s = clock.measure("edges", case)["elapsed"]
    assert not clock.virtual or 0.298 <= elapsed_s <= 0.304


def test_children_forked_while_timers_expire_have_timers(clock: Clock) -> None:
    """The thread that serves the parent's may hold their lock at the fork, and does not exist in the child."""
    elapsed_s = clock.measure("forks")["elapsed"]
    assert elapsed_s >= 0.4
    assert not clock.virtual or elapsed_s <= 0.40101  # the last child waits for 1 ms


def test_a_program_that_sets_its_own_preload_stays_on_the_clock(virtual_clock: Clock) -> None:
    """As the start scripts of jemalloc and tcmalloc do."""
    program = "import time; began = time.monotonic(); time.sleep(3600); print(time.monotonic() - began)"
    done = virtual_clock.run("sh", "-c", f"LD_PRELOAD=libm.so.6 {sys.executable} -c '{program}'")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(3600.000001)


def test_a_request_to_another_host_is_told(virtual_clock: Clock) -> None:
    """Nothing is sent: the address is of a network that exists for documentation only, and the socket is non-blocking."""
    program = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('192.0.2.1', 9))"
    done = virtual_clock.run(sys.executable, "-c", program)
    assert "outside-connection" in done.stderr, json.dumps(done.stderr)
