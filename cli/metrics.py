"""Latencies and throughput of a run, from what its client recorded.

Why: the stock client and ours write different files; both become `RequestRecord`s, so that every figure the project
prints has one definition. It must never round before it averages, and never count a failed request. All inputs are
integer nanoseconds; floats begin with the statistics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERCENTILES = (50, 90, 99)
NANOSECONDS_PER_MS = 1_000_000
NANOSECONDS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request. Instants are nanoseconds from the start of the measurement, seen by the client.

    `token_ns` has an instant for every streamed chunk. vLLM streams one token a chunk unless the front end falls
    behind; then a chunk carries several, and `output_tokens` (the server's count) is larger than `len(token_ns)`.
    """

    index: int
    arrival_ns: int | None
    send_ns: int
    token_ns: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def ttft_ns(self) -> int:
        """Time to first token: from the send to the first chunk."""
        return self.token_ns[0] - self.send_ns

    @property
    def e2e_ns(self) -> int:
        """From the send to the last chunk."""
        return self.token_ns[-1] - self.send_ns

    @property
    def itl_ns(self) -> tuple[int, ...]:
        """The gaps between neighbouring chunks."""
        return tuple(after - before for before, after in zip(self.token_ns, self.token_ns[1:], strict=False))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and percentiles (linear interpolation) of one latency, in milliseconds. All are None without a sample."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of a run. `requests` counts the successful ones, which alone enter the figures."""

    requests: int
    failed: int
    ttft_ms: Statistics
    tpot_ms: Statistics
    itl_ms: Statistics
    e2e_ms: Statistics
    requests_per_s: float | None
    output_tokens_per_s: float | None
    span_ns: int


def measure(records: Sequence[RequestRecord]) -> Metrics:
    """The metrics of a run.

    TPOT of a request is (E2E - TTFT) / (output tokens - 1), a request of one token has none and no ITL; ITL pools the gaps of
    all requests; throughput counts over the span from the first send to the last token.
    """
    good = [record for record in records if record.ok]
    span_ns = 0
    if good:
        span_ns = max(record.token_ns[-1] for record in good) - min(record.send_ns for record in good)
    span_s = span_ns / NANOSECONDS_PER_S
    tokens = sum(record.output_tokens for record in good)
    return Metrics(
        requests=len(good),
        failed=len(records) - len(good),
        ttft_ms=statistics_ms([record.ttft_ns for record in good]),
        tpot_ms=statistics_ms(
            [(r.e2e_ns - r.ttft_ns) / (r.output_tokens - 1) for r in good if r.output_tokens > 1],
        ),
        itl_ms=statistics_ms([gap for record in good for gap in record.itl_ns]),
        e2e_ms=statistics_ms([record.e2e_ns for record in good]),
        requests_per_s=len(good) / span_s if span_ns else None,
        output_tokens_per_s=tokens / span_s if span_ns else None,
        span_ns=span_ns,
    )


def statistics_ms(samples_ns: Sequence[float]) -> Statistics:
    """Statistics in milliseconds of samples in nanoseconds."""
    import numpy

    if not samples_ns:
        return Statistics(None, None, None, None)
    values = numpy.asarray(samples_ns, dtype=numpy.float64) / NANOSECONDS_PER_MS
    p50, p90, p99 = (float(value) for value in numpy.percentile(values, PERCENTILES))
    return Statistics(float(values.mean()), p50, p90, p99)


def read_requests(path: Path) -> list[RequestRecord]:
    """The records of a requests.jsonl (of ours, or made from the stock client's result), in the order of sending."""
    records = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            records.append(
                RequestRecord(
                    index=fields["index"],
                    arrival_ns=fields["arrival_ns"],
                    send_ns=fields["send_ns"],
                    token_ns=tuple(fields["token_ns"]),
                    prompt_tokens=fields["prompt_tokens"],
                    output_tokens=fields["output_tokens"],
                    error=fields["error"],
                )
            )
    records.sort(key=lambda record: (record.send_ns, record.index))
    return records


def write_requests(path: Path, records: Sequence[RequestRecord]) -> None:
    """Writes requests.jsonl as `cli/client.py` does."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            fields = {
                "index": record.index,
                "arrival_ns": record.arrival_ns,
                "send_ns": record.send_ns,
                "first_token_ns": record.token_ns[0] if record.token_ns else None,
                "token_ns": list(record.token_ns),
                "prompt_tokens": record.prompt_tokens,
                "output_tokens": record.output_tokens,
                "wanted_output_tokens": None,
                "status": "ok" if record.ok else "failed",
                "error": record.error,
            }
            file.write(json.dumps(fields, separators=(",", ":")) + "\n")


def stock_records(result: dict[str, Any]) -> list[RequestRecord]:
    """Records from the JSON that `vllm bench serve --save-result --save-detailed` writes (vLLM 0.23.0).

    It holds start instants, TTFTs and gaps as float seconds of `perf_counter`; instants here count from the first
    start and are exact to 1 ns as long as the clock has run for less than 2**53 / 1e9 s.
    """
    starts = [round(value * NANOSECONDS_PER_S) for value in result["start_times"]]
    zero = min(starts, default=0)
    records = []
    for index, start in enumerate(starts):
        error = result["errors"][index]
        if not error and not result["output_lens"][index]:
            error = "failed without a message"  # a refused request whose reason phrase is empty
        tokens: list[int] = []
        if not error:
            instant_s = result["ttfts"][index]
            tokens.append(start - zero + round(instant_s * NANOSECONDS_PER_S))
            for gap_s in result["itls"][index]:
                tokens.append(tokens[-1] + round(gap_s * NANOSECONDS_PER_S))
        records.append(
            RequestRecord(
                index=index,
                arrival_ns=None,
                send_ns=start - zero,
                token_ns=tuple(tokens),
                prompt_tokens=result["input_lens"][index],
                output_tokens=result["output_lens"][index],
                error=error,
            )
        )
    return records


def unmet_lengths(records: Sequence[RequestRecord], wanted: Mapping[int, int]) -> list[RequestRecord]:
    """Successful requests whose output has another length than `wanted[index]` asks for."""
    return [record for record in records if record.ok and record.output_tokens != wanted[record.index]]
