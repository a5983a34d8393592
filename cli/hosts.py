"""One node of a run of several hosts, for ``hyperlapse run``: its options, and the order in which things happen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hyperlapse.coordinator.node import NodeOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

OPTIONS = (
    click.option(
        "--coordinator",
        metavar="HOST:PORT",
        help="Share the clock with the other nodes of this coordinator (see `hyperlapse coordinator`).",
    ),
    click.option("--node-rank", type=click.IntRange(0), metavar="R", help="This node's number, from 0."),
    click.option("--nodes", type=click.IntRange(2, 64), metavar="N", help="How many nodes share the clock."),
    click.option(
        "--node-address",
        "node_addresses",
        multiple=True,
        metavar="ADDRESS",
        help="By which the other nodes reach this one (default: all addresses of this host).",
    ),
    click.option("--token-file", type=_FILE, help="The coordinator's shared secret."),
    click.option("--tls-ca", type=_FILE, help="Speak TLS, with a coordinator whose certificate this authority signed."),
    click.option(
        "--net-latency",
        metavar="TIME",
        hidden=True,
        help="Not built: messages between nodes take no virtual time.",
    ),
)


def with_options(command: _Command) -> _Command:
    """The options of a node, put on a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def node_options(
    coordinator: str | None,
    node_rank: int | None,
    nodes: int | None,
    node_addresses: Sequence[str],
    token_file: Path | None,
    tls_ca: Path | None,
    net_latency: str | None,
    *,
    clock: str,
    freeze: str,
) -> NodeOptions | None:
    """None for a run of one host. Raises click.UsageError for options that do not go together."""
    if net_latency is not None:
        raise click.UsageError(
            "--net-latency is not built: messages between nodes arrive at the instant at which they were sent; leave it out"
        )
    if coordinator is None:
        given = {"--node-rank": node_rank, "--nodes": nodes, "--token-file": token_file, "--tls-ca": tls_ca}
        alone = [name for name, value in given.items() if value is not None] + ["--node-address"] * bool(node_addresses)
        if alone:
            raise click.UsageError(f"{alone[0]} needs --coordinator HOST:PORT")
        return None
    if node_rank is None or nodes is None:
        raise click.UsageError("--coordinator needs --node-rank R and --nodes N")
    if node_rank >= nodes:
        raise click.UsageError(f"--node-rank {node_rank}: ranks go from 0 to {nodes - 1}")
    if clock != "frozen":
        raise click.UsageError(
            "--coordinator shares a frozen clock: hosts whose clocks follow real time would drift apart"
        )
    if freeze == "manual":
        raise click.UsageError(
            "--coordinator: use --freeze start or ready=URL; the coordinator freezes all nodes at once"
        )
    from hyperlapse.coordinator.node import NodeOptions
    from hyperlapse.coordinator.protocol import HostsError, parse_address, split_endpoint

    try:
        split_endpoint(coordinator)
        for address in node_addresses:
            parse_address(address)
    except (HostsError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    return NodeOptions(
        coordinator, node_rank, nodes, node_addresses, token_file, tls_ca, starts_frozen=freeze == "start"
    )
