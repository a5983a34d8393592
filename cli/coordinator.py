"""``hyperlapse coordinator``: one virtual instant for several hosts."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from hyperlapse.cli.run import NO_PROGRESS_STATUS

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("coordinator")
@click.option("--listen", required=True, metavar="HOST:PORT", help="Where nodes find it. Port 0: any free one.")
@click.option(
    "--nodes", default=2, show_default=True, type=click.IntRange(2, 64), help="How many nodes share the clock."
)
@click.option(
    "--token-file", type=_FILE, help="A shared secret: who does not have it can neither join nor move the clock."
)
@click.option("--tls-cert", type=_FILE, help="Speak TLS: the certificate chain (PEM).")
@click.option("--tls-key", type=_FILE, help="Its private key (PEM).")
@click.option(
    "--join-limit",
    default=120.0,
    show_default=True,
    type=click.FloatRange(1, 86_400),
    help="Real seconds until all must be there.",
)
@click.option(
    "--no-progress",
    default=10,
    show_default=True,
    type=click.IntRange(0, 86_400),
    metavar="SECONDS",
    help="End a run in which no node can go on after this many real seconds; 0: never.",
)
@click.option(
    "--silence",
    default=10.0,
    show_default=True,
    type=click.FloatRange(2, 3600),
    help="Real seconds after which a silent node is lost.",
)
def command(
    listen: str,
    nodes: int,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    join_limit: float,
    no_progress: int,
    silence: float,
) -> None:
    """Grant jumps of one clock that NODES hosts share, for one run.

    Start it anywhere, then on each host: hyperlapse run --coordinator HOST:PORT --node-rank R --nodes N -- COMMAND.
    The exit status is 0 when the command of node 0 ended well, 75 when the run was ended otherwise.
    """
    from hyperlapse.coordinator.protocol import HostsError, is_loopback, read_token, split_endpoint
    from hyperlapse.coordinator.service import Coordinator, Settings, serve

    def say(line: str) -> None:
        click.echo(f"hyperlapse coordinator: {line}", err=True)

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    try:
        host, _ = split_endpoint(listen)
        token = None if token_file is None else read_token(token_file)
        if token is None and not is_loopback(host):
            raise click.UsageError(
                f"{host} can be reached from other hosts: give --token-file, so that no stranger joins or moves the clock"
            )
    except HostsError as error:
        raise click.UsageError(str(error)) from None
    certificate = None
    if tls_cert is not None and tls_key is not None:
        certificate = (tls_key.read_bytes(), tls_cert.read_bytes())

    def started(coordinator: Coordinator, port: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, coordinator.interrupt)
        say(f"listening on {host}:{port} for {nodes} nodes{' (TLS)' if certificate else ''}")

    settings = Settings(nodes, token, join_limit, no_progress, silence)
    try:
        good = asyncio.run(serve(settings, listen, certificate=certificate, say=say, started=started))
    except OSError as error:
        click.echo(f"hyperlapse: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if good else NO_PROGRESS_STATUS)
