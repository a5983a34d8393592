"""`hyperlapse doctor`: does everything that a run needs work here, and what to do where it does not."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hyperlapse.cli.diagnosis import Finding


@click.command("doctor")
@click.option("--engine", metavar="NAME==VERSION|PATH", help="Look at this engine instead of the one found by itself.")
@click.option("--torch/--no-torch", default=True, show_default=True, help="Load torch of each engine: seconds each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(engine: str | None, torch: bool, as_json: bool) -> None:
    """Check this machine, the virtual libraries, the clock and the engines. Exit status 1 when something is broken."""
    from hyperlapse.cli.diagnosis import Status
    from hyperlapse.cli.progress import TerminalProgress

    findings: list[Finding] = []
    try:
        with TerminalProgress() as progress:
            progress.phase("examining")
            findings.extend(_all_findings(engine, torch=torch))
    except KeyboardInterrupt:
        click.echo("hyperlapse: interrupted", err=True)
        sys.exit(130)
    broken = [finding for finding in findings if finding.status is Status.BROKEN]
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"ok": not broken, "findings": rows}, indent=2))
    else:
        _print(findings)
        warnings = sum(finding.status is Status.WARNING for finding in findings)
        click.echo(f"{len(findings)} checks: {len(broken)} broken, {warnings} warnings.")
    sys.exit(1 if broken else 0)


def _all_findings(engine: str | None, *, torch: bool) -> Iterator[Finding]:
    from hyperlapse.cli.doctor_engines import engine_findings
    from hyperlapse.cli.doctor_host import host_findings
    from hyperlapse.cli.doctor_libraries import clock_finding, library_findings, probe_findings

    yield from host_findings()
    yield clock_finding()
    yield from library_findings()
    yield from probe_findings("this Python", Path(sys.executable), [], torch=False)
    yield from engine_findings(engine, torch=torch)


def _print(findings: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a pipe or a file has no width of its own
    styles = {"ok": "green", "note": "cyan", "warning": "yellow", "broken": "bold red"}
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "check", "state", "found"):
        table.add_column(name, no_wrap=name == "state", overflow="fold")
    group = ""
    for finding in findings:
        if group and finding.group != group:
            table.add_section()
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="yellow")
        state = Text(finding.status, style=styles[finding.status])
        table.add_row(finding.group if finding.group != group else "", finding.name, state, found)
        group = finding.group
    console.print(table)
