"""``hyperlapse run``: any command on virtual GPUs and the virtual clock."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperlapse.cli.hosts import node_options, with_options
from hyperlapse.shim.environment import (
    COMPILE_CACHE_VARIABLE,
    COMPILE_CACHES,
    UNSUPPORTED_POLICIES,
    UNSUPPORTED_VARIABLE,
)
from hyperlapse.shim.launcher import Mode, Run, RunError, exit_status

if TYPE_CHECKING:
    from hyperlapse.coordinator.node import End, Node

NO_PROGRESS_STATUS = 75  # EX_TEMPFAIL: the command was stopped because nobody could go on
_LOOK_S = 0.02
_PROBE_S = 0.5


def _answers(url: str) -> bool:
    # without the environment's proxies: the server is one that the command started
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(200 <= response.status < 300)
    except (urllib.error.URLError, OSError, ValueError):
        return False


class _Interrupts:
    """Ctrl-C reaches the command through the terminal; the launcher only stays alive, and kills on the second one."""

    def __init__(self) -> None:
        self.count = 0
        self.terminated = False

    def __call__(self, number: int, frame: Any) -> None:  # noqa: ARG002 - signal's signature
        self.count += 1
        self.terminated = self.terminated or number == signal.SIGTERM


def _wait(
    run: Run,
    process: subprocess.Popen[bytes],
    ready_url: str | None,
    when_ready: Callable[[], None],
    interrupts: _Interrupts,
    node: Node | None,
) -> int:
    """Follows the command to its end and returns its exit status. Raises RunError when the run cannot go on."""
    waits_for_ready = ready_url is not None
    next_probe = 0.0
    while True:
        try:
            status = exit_status(process.wait(_LOOK_S))
            return status if node is None else _wait_for_others(run, status, interrupts, node)
        except subprocess.TimeoutExpired:
            pass
        if interrupts.count > 1 or interrupts.terminated:
            if node is not None:
                node.fail("it was interrupted")
            process.send_signal(signal.SIGTERM if interrupts.terminated else signal.SIGKILL)
            run.stop_processes()
            return exit_status(process.wait())
        if node is not None:
            end = _follow(node)
            if end is not None:
                run.stop_processes()
                process.wait()
                return 0 if end.good else NO_PROGRESS_STATUS
        run.check()
        if waits_for_ready and time.monotonic() >= next_probe:
            assert ready_url is not None
            next_probe = time.monotonic() + _PROBE_S
            if _answers(ready_url):
                when_ready()
                waits_for_ready = False


def _follow(node: Node) -> End | None:
    """What the other nodes want: the end if it has come; a clock that has just been stopped is told to have been."""
    before = node.has("parked")
    end = node.check()
    if end is not None:
        click.echo(f"hyperlapse: the run of all nodes is over: {end.reason}", err=True)
    elif node.on_real_time and not before and node.has("parked"):
        node.tell("started")
        click.echo("hyperlapse: all nodes are ready: the clock is frozen from here", err=True)
    return end


def _meet(node: Node) -> None:
    """Waits for the other nodes; on the way back the clock stands still, or it is real until all are ready."""
    node.wait_for("begin")
    if not node.on_real_time:
        node.tell("ready")
        node.wait_for("parked")


def _wait_for_others(run: Run, status: int, interrupts: _Interrupts, node: Node) -> int:
    """After the end of this node's command: its clock goes on with the others' until all are done."""
    node.tell(f"finished {status}")
    while (end := _follow(node)) is None:
        if interrupts.count > 1 or interrupts.terminated:
            node.fail("it was interrupted")
            return status or 128 + signal.SIGINT
        run.check()
        time.sleep(_LOOK_S)
    return status or (0 if end.good else NO_PROGRESS_STATUS)


def _activated(engine: str) -> dict[str, str]:
    """What an environment's `activate` sets."""
    from hyperlapse.cli.engine_environment import EngineNotFoundError, find_engine
    from hyperlapse.cli.progress import TerminalProgress

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with TerminalProgress() as progress:
            folder = find_engine(engine, progress=progress).python.parent
    except EngineNotFoundError as error:
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("hyperlapse: interrupted before the command was started", err=True)
        sys.exit(130)
    return {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "VIRTUAL_ENV": str(folder.parent)}


@click.command(
    "run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, no_args_is_help=True
)
@click.option(
    "--gpu",
    default="h100-sxm-80gb",
    show_default=True,
    help="Profile name, YAML file, or none (clock only).",
)
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1, 16), help="How many of them.")
@click.option(
    "--clock",
    "clock",
    default="frozen",
    show_default=True,
    type=click.Choice(["frozen", "flow"]),
    help="frozen: time moves only when everybody waits. flow: it also follows real time while anybody runs.",
)
@click.option(
    "--freeze",
    default="start",
    show_default=True,
    metavar="start|ready=URL|manual",
    help="Until when the clock is real: not at all, until URL answers, or until `hyperlapse clock` says so.",
)
@click.option(
    "--detail",
    default="kernel",
    show_default=True,
    type=click.Choice(["kernel", "step"]),
    help="For engines that hyperlapse knows: run the real forward pass, or price each step as one launch.",
)
@click.option(
    "--model", "models", multiple=True, help="Model (short name, directory or config.json) whose kernels are priced."
)
@click.option(
    "--engine",
    metavar="NAME==VERSION|PATH",
    help="Put this engine's environment first on PATH: a release (made once, see `hyperlapse engines`), or a folder.",
)
@click.option(
    "--no-progress",
    default=10,
    show_default=True,
    type=click.IntRange(0, 86_400),
    metavar="SECONDS",
    help="End a run in which nobody can go on after this many real seconds; 0: never.",
)
@click.option(
    "--unsupported",
    type=click.Choice(UNSUPPORTED_POLICIES),
    default=UNSUPPORTED_POLICIES[0],
    show_default=True,
    envvar=UNSUPPORTED_VARIABLE,
    show_envvar=True,
    help="What a CUDA call without a virtual answer does: end the program, warn once and return an error, or return an error.",
)
@click.option(
    "--compile-cache",
    type=click.Choice(COMPILE_CACHES),
    default=COMPILE_CACHES[0],
    show_default=True,
    envvar=COMPILE_CACHE_VARIABLE,
    show_envvar=True,
    help="For engines: cold: KV cache as at the very first start, when compiling takes memory; warm: as at any later one.",
)
@with_options
@click.argument("command_line", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def command(
    gpu: str,
    gpus: int,
    clock: str,
    freeze: str,
    detail: str,
    models: tuple[str, ...],
    engine: str | None,
    no_progress: int,
    unsupported: str,
    compile_cache: str,
    coordinator: str | None,
    node_rank: int | None,
    nodes: int | None,
    node_addresses: tuple[str, ...],
    token_file: Path | None,
    tls_ca: Path | None,
    net_latency: str | None,
    command_line: tuple[str, ...],
) -> None:
    """Start COMMAND on virtual GPUs and the virtual clock; its children follow.

    The exit status is the command's; 75 when it was stopped because nobody could go on. With --coordinator several
    hosts share one clock: the run of all of them ends with the command of node 0, or with the first that fails.
    """
    from hyperlapse.cli.events import print_events
    from hyperlapse.cli.pricing_process import PricingError, PricingProcess
    from hyperlapse.coordinator.host_time import environment_of, load
    from hyperlapse.integrations import adapt_command, collective_kernels
    from hyperlapse.shim.devices import UnknownDeviceError
    from hyperlapse.shim.models import ModelError, resolve_model

    if not command_line or not command_line[0]:
        raise click.UsageError("no command given; write it after --, e.g. hyperlapse run -- python train.py")
    ready_url = freeze.removeprefix("ready=") if freeze.startswith("ready=") else None
    if ready_url is None and freeze not in ("start", "manual"):
        raise click.UsageError(f"--freeze {freeze!r}: expected start, ready=URL or manual")
    if ready_url is not None and not re.match(r"https?://[^/]", ready_url):
        raise click.UsageError(
            f"--freeze {freeze!r}: {ready_url!r} is no URL; write ready=http://127.0.0.1:8000/health"
        )
    running = Mode.FLOW if clock == "flow" else Mode.FROZEN
    hosts = node_options(
        coordinator, node_rank, nodes, node_addresses, token_file, tls_ca, net_latency, clock=clock, freeze=freeze
    )
    try:
        adapted = adapt_command(list(command_line), detail)
    except ValueError as error:  # flags that cannot be emulated
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(2)
    activated = {} if engine is None else _activated(engine)
    policy = {UNSUPPORTED_VARIABLE: unsupported, COMPILE_CACHE_VARIABLE: compile_cache}
    interrupts = _Interrupts()
    started = False
    try:
        with Run(
            None if gpu == "none" else gpu,
            gpus,
            no_progress_s=no_progress,
            outside=True,
            collective_kernels=collective_kernels(),
        ) as run:
            if run.gpu is not None:
                PricingProcess.start(
                    run,
                    models=[resolve_model(model).config_path for model in models],
                    tensor_parallel_size=adapted.tensor_parallel_size,
                    wait=False,
                )
            node: Node | None = None
            if hosts is not None:
                from hyperlapse.coordinator import node as other_hosts

                node = other_hosts.Node(run, hosts)
                _meet(node)
            elif freeze == "start":
                run.set_mode(running)
            elif freeze == "manual":
                click.echo(f"hyperlapse: real time until you say: hyperlapse clock {run.directory} {clock}", err=True)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, interrupts)
            charged = environment_of(load(adapted.engine) if adapted.engine else {}, run.directory)
            try:
                process = run.spawn(adapted.argv, {**activated, **adapted.environment, **charged, **policy})
                started = True
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                why = f"{command_line[0]}: {'command not found' if missing else error.strerror}"
                click.echo(f"hyperlapse: {why}", err=True)
                if node is not None:
                    node.fail(why)
                sys.exit(127 if missing else 126)

            def when_ready() -> None:
                if node is not None:
                    node.tell("ready")
                    return
                run.set_mode(running)
                click.echo(f"hyperlapse: {ready_url} answers: the clock is {clock} from here", err=True)

            if node is not None and not node.on_real_time:
                node.tell("started")
            elif node is not None and ready_url is None:
                node.tell("ready")
            try:
                status = _wait(run, process, ready_url, when_ready, interrupts, node)
            except RunError as error:
                if node is not None:
                    node.fail(str(error))
                raise
            print_events(run.events())
            sys.exit(status)
    except UnknownDeviceError as error:
        raise click.BadParameter(str(error), param_hint="--gpu") from None
    except ModelError as error:
        raise click.BadParameter(str(error), param_hint="--model") from None
    except RunError as error:
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(NO_PROGRESS_STATUS if started else 1)
    except PricingError as error:
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(1)
