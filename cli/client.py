"""The small streaming client that replays a trace; run as a script by the engine's Python, on the virtual clock.

Why: `vllm bench serve` cannot replay our traces. Its `timed_trace` data set makes text prompts (the server's tokenizer
need not give back the same number of tokens) and seeds them with `hash(str)`, which differs from process to process.
What the two can both do they measure alike, because this file follows the stock client step by step: one asyncio
loop, one aiohttp session without a connection limit, `asyncio.sleep` until each arrival, one task a request, an
instant for every chunk that has choices. tests/engines holds the comparison.

It must never import the project or anything beyond the standard library and aiohttp: the engine's environment has its
own versions of everything else. It must never write to the terminal while it measures: two lines mark the start and the
end, the rest goes to files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import aiohttp

# The same lines stand in client_script.py; a test compares them.
STARTED_LINE = "hyperlapse: measurement started"
ENDED_LINE = "hyperlapse: measurement ended"
START_PREFIX = "start_ns="
TIMEOUT_S = 6 * 60 * 60
ERROR_LENGTH = 2000


@dataclass(slots=True)
class Request:
    """One request to send. `arrival_ns` counts from the start of the measurement."""

    index: int
    arrival_ns: int
    output_tokens: int
    prompt: str | array[int]


@dataclass(slots=True)
class Outcome:
    """What became of a request. Instants are nanoseconds of the client's monotonic clock; one per streamed chunk."""

    send_ns: int = 0
    chunk_ns: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


def read_workload(path: Path) -> list[Request]:
    """The requests that `hyperlapse.cli.workload.write_workload` wrote."""
    requests = []
    with path.open(encoding="ascii") as file:
        for index, line in enumerate(file):
            fields = json.loads(line)
            prompt = fields["prompt"]
            if isinstance(prompt, list):
                prompt = array("I", prompt)  # 4 bytes a token, where a list of ints takes 36
            requests.append(Request(index, fields["arrival_ns"], fields["output_tokens"], prompt))
    return requests


def request_body(model: str, request: Request) -> bytes:
    """The JSON body of a request; the fields are those that the stock client sends."""
    fields: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt if isinstance(request.prompt, str) else request.prompt.tolist(),
        "repetition_penalty": 1.0,
        "max_tokens": request.output_tokens,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    return json.dumps(fields).encode()


async def send(session: aiohttp.ClientSession, url: str, model: str, request: Request) -> Outcome:
    """Sends one request and reads its stream to the end. Never raises: a failure is in `Outcome.error`."""
    outcome = Outcome()
    body = request_body(model, request)
    outcome.send_ns = time.perf_counter_ns()
    try:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                text = await response.text()
                outcome.error = f"HTTP {response.status} {response.reason}: {text[:ERROR_LENGTH]}"
                return outcome
            buffer = b""
            async for data in response.content.iter_any():
                now_ns = time.perf_counter_ns()
                *messages, buffer = (buffer + data).split(b"\n\n")
                for message in messages:
                    _take(outcome, message.strip(), now_ns)
            _take(outcome, buffer.strip(), time.perf_counter_ns())
        if not outcome.error and not outcome.chunk_ns:
            outcome.error = "the stream ended without a token"
    except Exception as error:  # whatever one request dies of, the others go on
        outcome.error = f"{type(error).__name__}: {error}"[:ERROR_LENGTH]
    return outcome


def _take(outcome: Outcome, message: bytes, now_ns: int) -> None:
    # A server-sent comment (a ping) starts with a colon.
    if not message or message.startswith(b":"):
        return
    text = message.removeprefix(b"data: ")
    if text == b"[DONE]":
        return
    fields = json.loads(text)
    if fields.get("choices"):
        outcome.chunk_ns.append(now_ns)
    elif usage := fields.get("usage"):
        outcome.prompt_tokens = usage.get("prompt_tokens") or 0
        outcome.output_tokens = usage.get("completion_tokens") or 0
    elif error := fields.get("error"):
        # vLLM reports an engine failure inside a stream that began with status 200.
        outcome.error = json.dumps(error)[:ERROR_LENGTH]


def outcome_line(request: Request, outcome: Outcome, start_ns: int) -> str:
    """The line of requests.jsonl; every instant counts from the start of the measurement."""
    chunks = [instant - start_ns for instant in outcome.chunk_ns]
    fields = {
        "index": request.index,
        "arrival_ns": request.arrival_ns,
        "send_ns": outcome.send_ns - start_ns,
        "first_token_ns": chunks[0] if chunks else None,
        "token_ns": chunks,
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        "wanted_output_tokens": request.output_tokens,
        "status": "failed" if outcome.error else "ok",
        "error": outcome.error,
    }
    return json.dumps(fields, separators=(",", ":")) + "\n"


async def replay(
    url: str, model: str, requests: list[Request], output: IO[str], *, max_in_flight: int, warmups: list[Request]
) -> int:
    """Sends `requests` at their arrivals (`warmups` first, one after the other, unmeasured) and writes their outcomes.

    At most `max_in_flight` are in flight (0: no limit); one that has to wait is sent when another ends. Returns the
    number of failed requests. Raises RuntimeError when a warm-up fails: then nothing else would work.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    failed = 0
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for warmup in warmups:
            outcome = await send(session, url, model, warmup)
            if outcome.error:
                raise RuntimeError(f"the warm-up request failed: {outcome.error}")
        gc.collect()
        gc.freeze()
        limit = asyncio.Semaphore(max_in_flight) if max_in_flight else contextlib.nullcontext()

        async def one(request: Request) -> None:
            nonlocal failed
            async with limit:
                outcome = await send(session, url, model, request)
            failed += bool(outcome.error)
            output.write(outcome_line(request, outcome, start_ns))
            output.flush()

        print(STARTED_LINE, flush=True)
        start_ns = time.perf_counter_ns()
        # time.time() and not loop.time(): the stock client's sleeps are computed from it, and asyncio rounds each
        # sleep up to a millisecond, so another clock could round to another millisecond.
        start_s = time.time()
        tasks = []
        for request in requests:
            if request.arrival_ns > 0:
                remaining_s = start_s + request.arrival_ns / 1e9 - time.time()
                if remaining_s > 0:
                    await asyncio.sleep(remaining_s)
            tasks.append(asyncio.create_task(one(request)))
        await asyncio.gather(*tasks)
        print(ENDED_LINE, START_PREFIX + str(start_ns), flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: everything was sent (failures are in the output file); 1: the warm-up failed."""
    parser = argparse.ArgumentParser(description="replay a workload against a completions server")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True, help="the name the server serves the model under")
    parser.add_argument("--workload", type=Path, required=True, help="as written by hyperlapse bench")
    parser.add_argument("--output", type=Path, required=True, help="requests.jsonl, a line for each finished request")
    parser.add_argument("--max-in-flight", type=int, default=0, help="0: no limit")
    parser.add_argument("--warmups", type=Path, help="requests to send before the measurement, in the same format")
    options = parser.parse_args(arguments)
    requests = read_workload(options.workload)
    warmups = read_workload(options.warmups) if options.warmups else []
    url = options.base_url.rstrip("/") + "/v1/completions"
    with options.output.open("w", encoding="ascii") as output:
        try:
            asyncio.run(
                replay(url, options.model, requests, output, max_in_flight=options.max_in_flight, warmups=warmups)
            )
        except RuntimeError as error:
            print(f"hyperlapse: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
