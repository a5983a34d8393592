"""Starts a server and then its client on a run's clock, and watches both from outside.

Why: a benchmark is two processes that talk HTTP; everything the launcher learns about them comes from their logs, their
exit statuses and the clock page, never by asking them while the clock is virtual. The order matters: start-up on real
time (so that time-outs and durations in the log make sense), then a parked clock until the client is registered (an
idle server would let virtual hours pass), then a fixed epoch (so that repeated runs agree to the last digit). It must
never leave a process behind or wait without looking whether what it waits for is still alive.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hyperlapse.cli.engine_log import EngineLog
from hyperlapse.cli.load import LoadPlan
from hyperlapse.cli.log_follower import LogFollower, error_lines, last_lines
from hyperlapse.cli.progress import Progress

POLL_S = 0.05
STARTUP_LIMIT_S = 1800.0
REGISTRATION_LIMIT_S = 60.0
CLIENT_END_LIMIT_S = 60.0
OWN_MESSAGE = "hyperlapse: "
LAST_LINES = 30
ERRORS_SHOWN = 5
EPOCH_STEP_NS = 100_000 * 1_000_000_000
HOST = "127.0.0.1"


class ServingError(Exception):
    """A run that did not come to its end. The text is for the user: what died, its exit status, its last lines."""


class Clock(Protocol):
    """The part of hyperlapse.shim.launcher.Run that a benchmark needs."""

    @property
    def directory(self) -> Path: ...

    def spawn(
        self, command: Sequence[str], extra_environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]: ...

    def participants(self) -> list[int]: ...

    def now_ns(self) -> int: ...

    def check(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Server:
    """A started server. `startup_s`: real seconds from its start to its first answer to /health."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    startup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Client:
    """A started client, its log and what it is to do."""

    process: subprocess.Popen[bytes]
    log: Path
    plan: LoadPlan


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def start_server(
    run: Clock,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    port: int,
    log: Path,
    progress: Progress,
) -> Server:
    """Starts the server (its output goes to `log`, what hyperlapse says in it is shown) and returns when it is ready.

    Raises ServingError when it ends or is not ready within half an hour.
    """
    began = time.monotonic()
    with log.open("wb") as output:
        process = run.spawn(
            command,
            environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the launcher's to handle
        )
    lines = LogFollower(log)
    while not _healthy(port):
        for line in lines.new_lines():
            if OWN_MESSAGE in line:
                progress.phase(line.partition(OWN_MESSAGE)[2])
        if process.poll() is not None:
            raise failure("the server ended before it was ready", process, log)
        run.check()
        if time.monotonic() - began > STARTUP_LIMIT_S:
            raise failure(f"the server was not ready after {STARTUP_LIMIT_S:.0f} s", process, log)
        time.sleep(POLL_S)
    return Server(process, port, log, time.monotonic() - began)


def _healthy(port: int) -> bool:
    # http.client and not urllib: an http_proxy in the environment must not see this.
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until_registered(run: Clock, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the process takes part in the run's clock. Raises ServingError."""
    began = time.monotonic()
    while process.pid not in run.participants():
        if process.poll() is not None:
            raise failure("the client ended at once", process, log)
        if time.monotonic() - began > REGISTRATION_LIMIT_S:
            raise failure("the client did not register on the virtual clock", process, log)
        time.sleep(0.005)


def epoch_ns(now_ns: int) -> int:
    """The virtual instant at which a measurement starts: the same for every run whose start-up takes less than a day
    (a run's clock starts at 1,000 s). Small, because the stock client keeps instants as double seconds.
    """
    return (now_ns // EPOCH_STEP_NS + 1) * EPOCH_STEP_NS


def follow_client(run: Clock, server: Server, started: Client, progress: Progress) -> float:
    """Waits for the client to end and returns the real seconds that its measurement took.

    Raises ServingError when the server or the client fails, RuntimeError when the run makes no progress.
    """
    client, log, plan = started.process, started.log, started.plan
    lines, engine_log = LogFollower(log), EngineLog(run.directory)
    done = 0
    started_s: float | None = None
    ended_s: float | None = None
    started_virtual_ns = 0
    ended_monotonic = 0.0
    while True:
        has_ended = client.poll() is not None
        for line in lines.new_lines():
            # The file's time of change is the kernel's real time, whatever clock its writer sees.
            if started_s is None and plan.started in line:
                started_s, started_virtual_ns = log.stat().st_mtime, run.now_ns()
                engine_log.newly_finished()
            elif started_s is not None and ended_s is None and plan.ended in line:
                ended_s, ended_monotonic = log.stat().st_mtime, time.monotonic()
        if started_s is not None and ended_s is None:
            done += engine_log.newly_finished()
            progress.requests(min(done, plan.total), plan.total, (run.now_ns() - started_virtual_ns) / 1e9)
        if has_ended:
            break
        if server.process.poll() is not None:
            raise failure("the server died", server.process, server.log)
        run.check()
        if ended_s is not None and time.monotonic() - ended_monotonic > CLIENT_END_LIMIT_S:
            raise failure("the client has measured but does not end", client, log)
        time.sleep(POLL_S)
    if client.returncode != 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(2)  # a dying server makes its client fail first
        if server.process.poll() is not None:
            raise failure("the server died", server.process, server.log)
        raise failure("the client failed", client, log)
    if started_s is None or ended_s is None:
        raise failure("the client ended without measuring", client, log)
    return max(ended_s - started_s, 1e-3)


def failure(what: str, process: subprocess.Popen[bytes], log: Path) -> ServingError:
    """What died, how, its last log lines, and the errors that the log holds."""
    status = process.poll()
    how = "" if status is None else f" ({status_text(status)})"
    lines = last_lines(log, LAST_LINES) or ["(no output)"]
    message = [f"{what}{how}. Last lines of {log}:", *(f"  {line}" for line in lines)]
    if errors := error_lines(log, ERRORS_SHOWN):
        message += ["Errors in it:", *(f"  {error}" for error in errors)]
    return ServingError("\n".join(message))


def status_text(status: int) -> str:
    """`exit status 3` or `ended by signal 9`."""
    return f"exit status {status}" if status >= 0 else f"ended by signal {-status}"


def loopback_environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Keeps HTTP between client and server off any proxy of the environment, and Python's output unbuffered."""
    names = [name for name in base.get("NO_PROXY", base.get("no_proxy", "")).split(",") if name]
    without = ",".join([*names, HOST, "localhost"])
    return {"NO_PROXY": without, "no_proxy": without, "PYTHONUNBUFFERED": "1"}
