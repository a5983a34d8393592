"""Reads the `residency-vllm` recordings: Qwen3-14B on one H100-SXM-80GB under vLLM 0.23.0 (`replay.py` replays them).

Source: github.com/inference-sim/residency-vllm, `results/sweep_rate/agg_*rps/vanilla/trace.csv[.gz]` (no licence
stated, so the files are used where they lie and never copied into this project). What the columns mean, as seen in
the data:

* Instants are microseconds on the client's clock. A request is driven by `send_time_us`: in saturated cells the client
  was capped, and sends lag `arrival_time_us`.
* The client used the chat interface: its first chunk carries only the role and leaves the server with the first token
  (26 µs before it), and the last chunk is the usage record (38 µs after the last token). So `first_chunk_time_us` is
  the first token and `last_chunk_time_us` the last one, both to under 0.05 ms; `num_chunks` is output tokens + 2.
* `server_input_tokens` is the server's count, chat template included. Output lengths were forced (`min_tokens`), and
  `finish_reason` is `length` throughout.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperlapse.cli.metrics import Metrics, RequestRecord, measure
from hyperlapse.cli.workload import TraceRequest

FOLDER_VARIABLE = "HYPERLAPSE_RECORDED"
MODEL = "qwen3-14b"
GPU = "h100-sxm-80gb"
RECORDED_KV_BLOCKS = 18_038
EXTRA_CHUNKS = 2
NANOSECONDS_PER_US = 1_000
NANOSECONDS_PER_S = 1_000_000_000
RUNS = ("agg_2rps", "agg_4rps", "agg_6rps", "agg_8rps")
COLUMNS = (
    "request_id",
    "server_input_tokens",
    "output_tokens",
    "send_time_us",
    "first_chunk_time_us",
    "last_chunk_time_us",
    "num_chunks",
    "status",
)


class RecordingError(Exception):
    """A recording that cannot be read; the text names the file, and the line where there is one."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One recorded request. Instants are microseconds on the recording client's clock; lengths in tokens."""

    request_id: int
    send_us: int
    first_token_us: int
    last_token_us: int
    prompt_tokens: int
    output_tokens: int


def recorded_folder() -> Path | None:
    """The folder of the recordings on this machine: $HYPERLAPSE_RECORDED/residency-vllm, or None."""
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return None
    folder = Path(named) / "residency-vllm"
    return folder if folder.is_dir() else None


def trace_file(folder: Path, run: str) -> Path:
    """The CSV of a run of the rate sweep, packed or not. Raises RecordingError."""
    base = folder / "results" / "sweep_rate" / run / "vanilla" / "trace.csv"
    for path in (base, base.with_name("trace.csv.gz")):
        if path.is_file():
            return path
    known = sorted(path.name for path in (folder / "results" / "sweep_rate").glob("agg_*"))
    raise RecordingError(f"{base}: no such recording (runs in this folder: {', '.join(known) or 'none'})")


def read_recording(path: Path, seconds: float | None = None) -> list[RecordedRequest]:
    """The requests of a recording by their sends; with `seconds`, those sent in the first so many of them.

    Raises RecordingError for a file that is not such a recording, or that holds a failed request.
    """
    requests = [_parse(path, number, row) for number, row in _rows(path)]
    if not requests:
        raise RecordingError(f"{path}: no request in the file")
    requests.sort(key=lambda request: (request.send_us, request.request_id))
    if seconds is None:
        return requests
    end_us = requests[0].send_us + round(seconds * 1e6)
    return [request for request in requests if request.send_us < end_us]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path}: cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RecordingError(f"{path}:1: the column {missing[0]!r} is missing: not a residency-vllm trace.csv")
    for row in reader:
        yield reader.line_num, row


def _parse(path: Path, number: int, row: dict[str, str]) -> RecordedRequest:
    if row["status"] != "ok":
        raise RecordingError(f"{path}:{number}: the request's status is {row['status']!r}")
    try:
        request = RecordedRequest(
            request_id=int(row["request_id"]),
            send_us=int(row["send_time_us"]),
            first_token_us=int(row["first_chunk_time_us"]),
            last_token_us=int(row["last_chunk_time_us"]),
            prompt_tokens=int(row["server_input_tokens"]),
            output_tokens=int(row["output_tokens"]),
        )
        chunks = int(row["num_chunks"])
    except (TypeError, ValueError) as error:
        raise RecordingError(f"{path}:{number}: {error}") from None
    # The output_tokens column is what the client asked for; the chunks are what the server sent.
    if chunks != request.output_tokens + EXTRA_CHUNKS:
        raise RecordingError(
            f"{path}:{number}: {chunks} chunks do not fit {request.output_tokens} output tokens "
            f"(expected {request.output_tokens + EXTRA_CHUNKS})"
        )
    return request


def to_trace(requests: Sequence[RecordedRequest]) -> list[TraceRequest]:
    """The recording as a workload: arrivals from its sends, lengths from the server's counts."""
    start_us = requests[0].send_us
    return [
        TraceRequest((request.send_us - start_us) * NANOSECONDS_PER_US, request.prompt_tokens, request.output_tokens)
        for request in requests
    ]


def to_records(requests: Sequence[RecordedRequest]) -> list[RequestRecord]:
    """The recording as measured requests. Only the first and the last token have an instant, so ITL means nothing."""
    start_us = requests[0].send_us
    return [
        RequestRecord(
            index=index,
            arrival_ns=None,
            send_ns=(request.send_us - start_us) * NANOSECONDS_PER_US,
            token_ns=(
                (request.first_token_us - start_us) * NANOSECONDS_PER_US,
                (request.last_token_us - start_us) * NANOSECONDS_PER_US,
            ),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
        )
        for index, request in enumerate(requests)
    ]


def idle_requests(requests: Sequence[RecordedRequest]) -> list[int]:
    """Indices of the requests that found the server idle: sent after the last token of every earlier one."""
    idle: list[int] = []
    busy_until_us = -1
    for index, request in enumerate(requests):
        if request.send_us > busy_until_us:
            idle.append(index)
        busy_until_us = max(busy_until_us, request.last_token_us)
    return idle


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of a recorded and an emulated run, in milliseconds, and the error that is allowed (a share)."""

    name: str
    recorded_ms: float
    emulated_ms: float
    allowed: float

    @property
    def error(self) -> float:
        """(emulated - recorded) / recorded."""
        return (self.emulated_ms - self.recorded_ms) / self.recorded_ms

    @property
    def within(self) -> bool:
        return abs(self.error) <= self.allowed


def compare(recorded: Metrics, emulated: Metrics) -> list[Comparison]:
    """Mean TPOT and E2E (within 5 %), mean TTFT (10 %), the p99 of each (15 %)."""
    measures = (
        ("TPOT", recorded.tpot_ms, emulated.tpot_ms, 0.05),
        ("E2E", recorded.e2e_ms, emulated.e2e_ms, 0.05),
        ("TTFT", recorded.ttft_ms, emulated.ttft_ms, 0.10),
    )
    rows = [_row(f"mean {name}", ours.mean, theirs.mean, allowed) for name, ours, theirs, allowed in measures]
    rows += [_row(f"p99 {name}", ours.p99, theirs.p99, 0.15) for name, ours, theirs, _ in measures]
    return rows


def _row(name: str, recorded_ms: float | None, emulated_ms: float | None, allowed: float) -> Comparison:
    if recorded_ms is None or emulated_ms is None:
        raise RecordingError(f"{name} was not measured: no request has it")
    return Comparison(name, recorded_ms, emulated_ms, allowed)


def recorded_metrics(requests: Sequence[RecordedRequest]) -> Metrics:
    """Metrics of the recording, by the same definitions as everything else."""
    return measure(to_records(requests))
