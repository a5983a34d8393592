"""`hyperlapse engines`: the environments that --engine NAME==VERSION made, and their sizes."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType

import click


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.group("engines", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Show, make and remove engine environments."""
    if context.invoked_subcommand is None:
        context.invoke(list_command)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_command(as_json: bool = False) -> None:
    """Show every environment of the cache: release, Python, size, and whether its hyperlapse is this one."""
    from hyperlapse.cli.engine_cache import cache_folder, cached_environments
    from hyperlapse.cli.own_wheel import contents_sha256
    from hyperlapse.integrations import default_engine

    own, found = contents_sha256(), cached_environments()
    rows = [
        {
            "engine": environment.engine,
            "version": environment.version,
            "python_version": environment.python_version,
            "complete": environment.complete,
            "hyperlapse_matches": environment.hyperlapse_sha256 == own,
            "created": environment.created,
            "size_bytes": environment.size_bytes(),
            "folder": str(environment.folder),
        }
        for environment in found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        example = f"hyperlapse engines add {default_engine().name}==VERSION"
        click.echo(f"No engine environments in {cache_folder()}; `{example}` makes one.")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=f"in {cache_folder()}", caption_justify="left")
    for name in ("engine", "Python", "size", "made", "state"):
        table.add_column(name, justify="right" if name == "size" else "left")
    for environment, row in zip(found, rows, strict=True):
        state = "ready" if row["hyperlapse_matches"] else "ready; gets this hyperlapse at its next use"
        table.add_row(
            f"{environment.engine}=={environment.version}" if environment.complete else environment.folder.name,
            environment.python_version,
            f"{environment.size_bytes() / 1e9:.1f} GB",
            environment.created[:10],
            state if environment.complete else "unfinished: add or remove it",
        )
    Console().print(table)


@command.command("add")
@click.argument("engine", metavar="NAME==VERSION")
def add_command(engine: str) -> None:
    """Make the environment of a release, e.g. vllm==0.32.0, with this hyperlapse in it."""
    from hyperlapse.cli.engine_cache import EngineCacheError, ensure
    from hyperlapse.cli.progress import TerminalProgress
    from hyperlapse.integrations import default_engine
    from hyperlapse.integrations.environments import EngineReleaseError, parse_release

    try:
        release = parse_release(engine)
    except EngineReleaseError as error:
        raise click.BadParameter(str(error), param_hint="NAME==VERSION") from None
    if release is None:
        known = default_engine()
        raise click.BadParameter(
            f"{engine}: name a release, for example {known.name}=={known.tested_versions[-1]}",
            param_hint="NAME==VERSION",
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with TerminalProgress() as progress:
            python = ensure(release, progress)
    except EngineCacheError as error:
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("hyperlapse: interrupted; the unfinished environment has been removed", err=True)
        sys.exit(130)
    click.echo(f"{release.name}: {python}")


@command.command("remove")
@click.argument("engine", metavar="NAME==VERSION|FOLDER")
def remove_command(engine: str) -> None:
    """Delete an environment of the cache, by its release or its folder's name."""
    from hyperlapse.cli.engine_cache import EngineCacheError, cached_environments, remove

    wanted = [
        found
        for found in cached_environments()
        if engine in (f"{found.engine}=={found.version}", found.folder.name, str(found.folder))
    ]
    if not wanted:
        known = [
            f"{found.engine}=={found.version}" if found.complete else found.folder.name
            for found in cached_environments()
        ]
        click.echo(f"hyperlapse: no environment {engine}; there are: {', '.join(known) or 'none'}", err=True)
        sys.exit(2)
    for found in wanted:
        try:
            remove(found.folder)
        except EngineCacheError as error:
            click.echo(f"hyperlapse: {error}", err=True)
            sys.exit(1)
        click.echo(f"removed {found.folder}")
