"""The launcher's handle on its node agent (agent.py): start it, follow what it says, tell it what the command does."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.shim.launcher import Run, RunError


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How this node comes to its coordinator. addresses: by which other nodes reach it, empty for all of the host's."""

    coordinator: str
    rank: int
    nodes: int
    addresses: Sequence[str] = ()
    token_file: Path | None = None
    tls_ca: Path | None = None
    starts_frozen: bool = True


@dataclass(frozen=True, slots=True)
class End:
    """The run of all nodes is over. good: its first node's command ended with status 0."""

    good: bool
    reason: str


class Node:
    """One node of a run of several. ``check`` and ``wait_for`` raise RunError when the agent fails."""

    def __init__(self, run: Run, options: NodeOptions) -> None:
        command = [sys.executable, "-m", "hyperlapse.coordinator.agent", "--run-dir", str(run.directory)]
        command += ["--coordinator", options.coordinator, "--rank", str(options.rank), "--nodes", str(options.nodes)]
        for address in options.addresses:
            command += ["--address", address]
        if options.token_file is not None:
            command += ["--token-file", str(options.token_file)]
        if options.tls_ca is not None:
            command += ["--tls-ca", str(options.tls_ca)]
        if options.starts_frozen:
            command += ["--starts-frozen"]
        self._process = run.spawn_service(
            command, followed=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._seen: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put({"event": "error", "reason": "the node agent ended without a word (killed?)"})

    def check(self, timeout_s: float = 0.0) -> End | None:
        """The end, if it has come. Waits up to timeout_s for news. Raises RunError when the agent has failed."""
        try:
            while "end" not in self._seen and "error" not in self._seen:
                event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
                self._seen[event["event"]] = event
                timeout_s = 0.0
        except queue.Empty:
            pass
        if "end" in self._seen:
            return End(bool(self._seen["end"]["good"]), str(self._seen["end"]["reason"]))
        if "error" in self._seen:
            raise RunError(str(self._seen["error"]["reason"]))
        return None

    def has(self, event: str) -> bool:
        """Whether the agent has told of this event: begin, parked, frozen."""
        return event in self._seen

    @property
    def on_real_time(self) -> bool:
        """After `begin`: the commands start before the clock is stopped."""
        return bool(self._seen["begin"]["on_real_time"])

    def wait_for(self, event: str) -> None:
        """Waits until the agent tells of it: the coordinator ends what does not come. Raises RunError."""
        while not self.has(event):
            end = self.check(0.1)
            if end is not None:
                raise RunError(f"the run of all nodes is over before it began: {end.reason}")

    def tell(self, line: str) -> None:
        """A line to the agent: ready, started, finished STATUS, failed REASON. Silent when it is gone (see check)."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.replace("\n", " ") + "\n")
            self._process.stdin.flush()
        except OSError:
            return

    def fail(self, reason: str) -> None:
        """Tells the coordinator that this node cannot go on, and waits a moment until the others know."""
        self.tell(f"failed {reason}")
        limit_s = time.monotonic() + 2.0
        while time.monotonic() < limit_s:
            try:
                if self.check(0.1) is not None:
                    return
            except RunError:
                return
