"""``hyperlapse top``: what a run is doing now, as `top` shows a host.

Rates are those of the time since the last look. It reads the run's shared memory alone, so it slows nothing down.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Group

    from hyperlapse.shim.observation import ProcessView, Snapshot


@click.command("top")
@click.argument("run_directory", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(0.05, 60), help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look for one interval, print it, and end.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
def command(run_directory: Path | None, interval: float, *, once: bool, as_json: bool) -> None:
    """Show the clock, the processes and what they wait for of the run in RUN_DIRECTORY (the only one, if left out).

    Ends with the run, or by Ctrl-C.
    """
    from rich.console import Console
    from rich.live import Live

    from hyperlapse.shim.observation import NoRunError, Observer, only_run

    try:
        observer = Observer(run_directory or only_run())
    except NoRunError as error:
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(2)
    before = observer.look()
    time.sleep(interval)
    now = observer.look()
    if as_json:
        click.echo(json.dumps(as_object(before, now), indent=2))
        return
    console = Console()
    if once or not console.is_terminal:
        console.print(screen(before, now))
        return
    try:
        with Live(screen(before, now), console=console, screen=True, auto_refresh=False) as live:
            while not observer.ended:
                time.sleep(interval)
                before, now = now, observer.look()
                live.update(screen(before, now), refresh=True)
    except KeyboardInterrupt:
        return
    click.echo("hyperlapse: the run has ended", err=True)


def rates(before: Snapshot, now: Snapshot) -> dict[str, float]:
    """speed: virtual time over real time; jumps_per_s; us_per_jump: of real time, from the moment when everybody slept;
    refused: share of the proofs that found somebody awake.
    """
    real_s = max((now.real_ns - before.real_ns) / 1e9, 1e-9)
    jumps = now.clock.jumps - before.clock.jumps
    proofs = now.clock.proofs - before.clock.proofs
    spent_ns = now.clock.trigger_to_wake_ns_total - before.clock.trigger_to_wake_ns_total
    return {
        "speed": (now.clock.now_ns - before.clock.now_ns) / 1e9 / real_s,
        "jumps_per_s": jumps / real_s,
        "us_per_jump": spent_ns / 1e3 / jumps if jumps else 0.0,
        "refused": (now.clock.proofs_refused - before.clock.proofs_refused) / proofs if proofs else 0.0,
    }


def as_object(before: Snapshot, now: Snapshot) -> dict[str, Any]:
    from hyperlapse.shim.launcher import Mode

    clock = {**asdict(now.clock), "mode": Mode(now.clock.mode).name.lower()}
    return {"clock": clock, "rates": rates(before, now), "processes": [asdict(each) for each in now.processes]}


def screen(before: Snapshot, now: Snapshot) -> Group:
    """Two lines about the clock, and a table with a row for each process."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from hyperlapse.shim.launcher import Mode

    clock, found = now.clock, rates(before, now)
    held = [f"{clock.holds} launches without a price"] if clock.holds else []
    if clock.external_processes:
        held.append(f"{clock.external_processes} processes on real time (pid {clock.external_pid})")
    lines = Text(
        f"{Mode(clock.mode).name.lower()}   virtual {clock.now_ns / 1e9:,.6f} s   {found['speed']:.2f} times real time   "
        f"{len(now.processes)} processes, {clock.threads} threads\n"
        f"{found['jumps_per_s']:,.0f} jumps/s, {found['us_per_jump']:.0f} us each   {found['refused']:.0%} of the looks found "
        f"somebody awake" + (f"   held by {', '.join(held)}" if held else "")
    )
    table = Table(box=None, pad_edge=False)
    for column in ("pid", "awake", "threads", "jumps/s"):
        table.add_column(column, justify="right")
    for column in ("process", "waits for", "next deadline"):
        table.add_column(column, overflow="fold")
    real_s = max((now.real_ns - before.real_ns) / 1e9, 1e-9)
    earlier = {process.pid: process.jumps for process in before.processes}
    for process in now.processes:
        waits, deadline = _next(process, clock.now_ns)
        jumps = (process.jumps - earlier.get(process.pid, process.jumps)) / real_s
        table.add_row(
            str(process.pid),
            str(process.running),
            str(len(process.threads)),
            f"{jumps:,.0f}",
            process.name,
            waits,
            deadline,
        )
    return Group(lines, table)


def _next(process: ProcessView, now_ns: int) -> tuple[str, str]:
    """What the thread with the earliest deadline waits for, and in how long; else what most threads wait for."""
    thread = process.next
    if thread is not None and thread.deadline_ns is not None:
        return thread.waits_for, f"in {(thread.deadline_ns - now_ns) / 1e6:,.3f} ms"
    waiting = [each.waits_for for each in process.threads if each.waits_for]
    return (max(set(waiting), key=waiting.count) if waiting else "", "none" if waiting else "")
