"""Telling the user what a run counted: calls, kernels and waits that its result depends on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperlapse.shim.launcher import Event

SHOWN = 10


def print_events(events: Sequence[Event]) -> None:
    """On stderr, a line an event, the first ones only and how many more there are."""
    for event in events[:SHOWN]:
        print(f"hyperlapse: {event.kind}, {event.count} times: {event.text}", file=sys.stderr)
    if len(events) > SHOWN:
        print(f"hyperlapse: and {len(events) - SHOWN} more kinds of events", file=sys.stderr)
