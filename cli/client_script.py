"""Where the trace client's script is and what it prints.

The script (`cli/client.py`) imports aiohttp, which only the engine's environment has; the launcher must not import it.
"""

from __future__ import annotations

from pathlib import Path

STARTED_LINE = "hyperlapse: measurement started"
ENDED_LINE = "hyperlapse: measurement ended"
START_PREFIX = "start_ns="  # after ENDED_LINE: the instant that requests.jsonl counts from


def path() -> Path:
    """The script, to be run by the engine's Python."""
    return Path(__file__).with_name("client.py")
