"""Log files that grow while they are read."""

from __future__ import annotations

import json
from pathlib import Path

from hyperlapse.cli.engine_log import EngineLog, engine_statistics
from hyperlapse.cli.log_follower import LogFollower, error_lines, last_lines


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_only_complete_new_lines_are_given(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = LogFollower(path)
    assert follower.new_lines() == []
    append(path, "one\ntw")
    assert follower.new_lines() == ["one"]
    assert follower.new_lines() == []
    append(path, "o\nthree\n")
    assert follower.new_lines() == ["two", "three"]


def test_last_lines_of_long_short_and_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_lines(path, 3) == []
    append(path, "".join(f"line {number}\n" for number in range(20_000)))
    assert last_lines(path, 2) == ["line 19998", "line 19999"]
    path.write_bytes(b"\xff\n")
    assert last_lines(path, 30) == ["\ufffd"]


def test_errors_are_found_behind_the_headers_of_a_server(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        "(EngineCore pid=7) ERROR 11-22 17:14:10 [core.py:1195]     raise ValueError(\n"
        "(EngineCore pid=7) ERROR 11-22 17:14:10 [core.py:1195] ValueError: No available memory.\n"
        "(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory.\n"
        "(EngineCore pid=7) ValueError: No available memory.\n"
        "hyperlapse: cudaFoo is not supported\n"
        "(APIServer pid=6) WARNING such as `OSError: [Errno 24] Too many open files`\n"
        "(APIServer pid=6) RuntimeError: See root cause above.\n"
    )
    assert error_lines(path, 10) == [
        "torch.OutOfMemoryError: CUDA out of memory.",
        "ValueError: No available memory.",
        "hyperlapse: cudaFoo is not supported",
        "RuntimeError: See root cause above.",
    ]
    assert error_lines(path, 1) == ["RuntimeError: See root cause above."]
    assert error_lines(tmp_path / "none", 1) == []


def line(**fields: object) -> str:
    return json.dumps(fields) + "\n"


def test_statistics_of_an_engine_and_what_is_finished(tmp_path: Path) -> None:
    log = EngineLog(tmp_path)
    assert log.newly_finished() == 0
    limits = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
    first = tmp_path / "engine-11.jsonl"
    append(first, line(kind="worker", profile="cached", compile_cache="cold", available_bytes=1, attention=["A", "B"]))
    append(first, line(kind="engine", engine_index=0, kv_blocks=12_345, block_size=16, **limits))
    append(first, line(kind="step", engine_index=0, preemptions=0, finished=2, prefix_hits=16))
    assert log.newly_finished() == 2
    second = tmp_path / "engine-12.jsonl"
    append(second, line(kind="imports", cpu_ns=5))
    append(first, line(kind="step", engine_index=0, preemptions=3, finished=1))
    append(first, '{"kind": "step", "half')
    assert log.newly_finished() == 1
    found = engine_statistics(tmp_path)
    assert (found.kv_blocks, found.block_size, found.preemptions) == (12_345, 16, 3)
    assert (found.steps, found.prefix_hit_tokens, found.profile) == (2, 16, "cached")
    assert (found.attention, found.compile_cache) == (("A", "B"), "cold")
    assert (found.token_budget, found.max_running) == (8192, 256)


def test_nothing_reported_is_none_and_not_zero(tmp_path: Path) -> None:
    found = engine_statistics(tmp_path)
    assert (found.kv_blocks, found.block_size, found.preemptions) == (None, None, None)
