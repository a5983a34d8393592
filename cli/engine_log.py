"""What the engine says about itself during a run: `engine-<pid>.jsonl` in the run directory.

Why: the integration's statistics hook writes a line for every step there; reading the files costs the engine nothing
and takes no part in the run's time. Several API servers write several files. It must never fail on a half-written last
line: the run goes on while it reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.cli.log_follower import LogFollower

PATTERN = "engine-*.jsonl"


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Of a whole run. `kv_blocks`, `block_size` (tokens), `preemptions`: None when the engine reported none.
    `prefix_hit_tokens`: prompt tokens that the prefix cache saved; `token_budget`, `max_running`: the scheduler's
    limits of a step (tokens, requests); `profile`: `profiled`, `cached` or None; `attention`: names of the
    attention backends that the engine chose; `model_runner`: where an engine has several; `compile_cache`: in which state it
    was when the engine's memory was measured, `warm` or `cold`; `available_bytes`: for the KV cache of one device.
    """

    kv_blocks: int | None
    block_size: int | None
    preemptions: int | None
    steps: int
    prefix_hit_tokens: int
    token_budget: int | None
    max_running: int | None
    profile: str | None
    attention: tuple[str, ...] = ()
    model_runner: str | None = None
    compile_cache: str | None = None
    available_bytes: int | None = None


class EngineLog:
    """Follows the engine's files of a run."""

    def __init__(self, run_directory: Path) -> None:
        self._directory = run_directory
        self._followers: dict[Path, LogFollower] = {}

    def new_records(self) -> Iterator[dict[str, Any]]:
        """Records written since the last call."""
        for path in sorted(self._directory.glob(PATTERN)):
            follower = self._followers.setdefault(path, LogFollower(path))
            for line in follower.new_lines():
                yield json.loads(line)

    def newly_finished(self) -> int:
        """Requests finished since the last call."""
        return sum(record.get("finished", 0) for record in self.new_records())


def copy_engine_files(run_directory: Path, folder: Path) -> None:
    """Keeps the engine's files of a run, whose directory goes when it ends."""
    for path in sorted(run_directory.glob(PATTERN)):
        shutil.copyfile(path, folder / path.name)


def engine_statistics(run_directory: Path) -> EngineStatistics:
    """The statistics of a run so far. Blocks of several engines (data parallel) add up."""
    blocks: dict[int, int] = {}
    preemptions: dict[tuple[str, int], int] = {}
    block_size = token_budget = max_running = profile = model_runner = compile_cache = available = None
    attention: tuple[str, ...] = ()
    steps = hits = 0
    for path in sorted(run_directory.glob(PATTERN)):
        for line in LogFollower(path).new_lines():
            record = json.loads(line)
            engine = record.get("engine_index", 0)
            if record["kind"] == "engine":
                blocks[engine] = record["kv_blocks"]
                block_size = record["block_size"]
                model_runner = record.get("model_runner")
                token_budget, max_running = record["max_num_batched_tokens"], record["max_num_seqs"]
            elif record["kind"] == "step":
                steps += 1
                hits += record.get("prefix_hits", 0)
                preemptions[path.name, engine] = record["preemptions"]
            elif record["kind"] == "worker":
                profile = record.get("profile", profile)
                compile_cache = record.get("compile_cache", compile_cache)
                available = record.get("available_bytes", available)
                attention = tuple(record.get("attention", attention))
    return EngineStatistics(
        kv_blocks=sum(blocks.values()) if blocks else None,
        block_size=block_size,
        preemptions=sum(preemptions.values()) if blocks else None,
        steps=steps,
        prefix_hit_tokens=hits,
        token_budget=token_budget,
        max_running=max_running,
        profile=profile,
        attention=attention,
        model_runner=model_runner,
        compile_cache=compile_cache,
        available_bytes=available,
    )
