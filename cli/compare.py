"""`hyperlapse compare`: two reports side by side."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with charts too.")
def command(a: Path, b: Path, as_json: bool, page: Path | None) -> None:
    """Compare two runs: report folders, report.json files, or outputs of `bench --json`."""
    from hyperlapse.cli.comparison import compare, render
    from hyperlapse.cli.report import read_report
    from hyperlapse.cli.report_data import ReportError

    try:
        one, other = read_report(a), read_report(b)
        found = compare(one, other, (a, b))
        if page is not None:
            write_page(page, render(found, one, other))
    except ReportError as error:
        print(f"hyperlapse: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyError, TypeError, AttributeError) as error:
        print(f"hyperlapse: {a} or {b} is no whole report: {type(error).__name__} {error}", file=sys.stderr)
        sys.exit(2)
    for text in found["warnings"]:
        print(f"hyperlapse: warning: {text}", file=sys.stderr)
    if as_json:
        click.echo(json.dumps(found, allow_nan=False))
    else:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console.width = 120  # a pipe or a file has no width of its own
        print_comparison(console, found)
    if page is not None:
        print(f"hyperlapse: comparison: {page.absolute()}", file=sys.stderr)


def write_page(path: Path, text: str) -> None:
    """Whole or not at all. A file that is no page of ours is not replaced. Raises ReportError."""
    from hyperlapse.cli.report import PART_SUFFIX
    from hyperlapse.cli.report_data import ReportError

    part = path.with_name(path.name + PART_SUFFIX)
    try:
        if path.is_dir():
            raise ReportError(f"--html {path}: this is a folder; name a file")
        if path.exists() and 'content="hyperlapse ' not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
            raise ReportError(f"--html {path}: there is a file that hyperlapse did not make; name another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"--html {path}: {error.strerror}; nothing was written") from None


def print_comparison(console: Console, found: dict[str, Any]) -> None:
    """Tables: what differs in how the two were made, and the figures."""
    from rich import box
    from rich.table import Table

    from hyperlapse.cli.comparison import difference_text, verdict, without_estimate
    from hyperlapse.cli.report_html import number

    for name in ("a", "b"):
        console.print(f"[bold]{name.upper()}[/bold]  {found[name]['title']}, {found[name]['about']}", highlight=False)
    changed = [row for row in found["configuration"] if not row["same"]]
    if changed:
        settings = Table("differs", "A", "B", box=box.SIMPLE_HEAD)
        for row in changed:
            settings.add_row(
                row["name"], *("not recorded" if row[side] is None else str(row[side]) for side in ("a", "b"))
            )
        console.print(settings)
    else:
        console.print("No difference in how they were made.")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "A", "B", "difference", "error estimate", "is"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for entry in found["metrics"]:
        label = f"{entry['name']} {entry['statistic']}".strip() + (f", {entry['unit']}" if entry["unit"] else "")
        estimate = "-" if entry["estimate"] is None else f"± {number(entry['estimate'])}"
        table.add_row(label, number(entry["a"]), number(entry["b"]), difference_text(entry), estimate, verdict(entry))
    console.print(table)
    for text in without_estimate(found["metrics"]):
        console.print(text, highlight=False)
