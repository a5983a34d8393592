"""``hyperlapse clock``: look at, or change, the clock of a run from outside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from hyperlapse.shim._core import core
from hyperlapse.shim.launcher import Mode

_REQUEST_LIMIT_MS = 10_000


@click.command("clock")
@click.argument("run_directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("mode", required=False, type=click.Choice([mode.name.lower() for mode in Mode if mode != Mode.HELD]))
def command(run_directory: Path, mode: str | None) -> None:
    """Show the clock of the run in RUN_DIRECTORY, or set its MODE (for `run --freeze manual`)."""
    if not (run_directory / "clock").exists():
        raise click.UsageError(f"{run_directory} is no run directory (it has no clock page)")
    os.environ.pop("HYPERLAPSE_RUN_DIR", None)
    binding = core()
    page = binding.lib.hl_page_map(str(run_directory).encode())
    if mode is not None and binding.lib.hl_hosts_shared(page):
        raise click.UsageError(
            "other hosts share this clock: it stops and starts on all of them at once (--freeze of `run`)"
        )
    if mode is not None and binding.lib.hl_control_set_mode(page, int(Mode[mode.upper()]), 0, _REQUEST_LIMIT_MS) != 0:
        click.echo("hyperlapse: the run's time-keeper does not answer; has the run ended?", err=True)
        sys.exit(1)
    statistics = binding.ffi.new("hl_statistics *")
    binding.lib.hl_control_statistics(page, statistics)
    click.echo(
        f"{Mode(statistics.mode).name.lower()}  virtual {statistics.now_ns / 1e9:.6f} s  jumps {statistics.jumps}  "
        f"processes {statistics.processes}  threads {statistics.threads}"
    )
