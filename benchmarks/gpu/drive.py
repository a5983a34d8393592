"""Sends a vLLM server requests whose batches are known, one phase after the other.

    python drive.py http://127.0.0.1:8000 RECORDING PHASE ... [--model NAME] [--limit SECONDS]

Writes RECORDING/client.jsonl: {"phase", "input_tokens", "output_tokens", "send_ns", "chunks_ns"} for each request and
{"mark", "at_ns", ...} where a phase begins; instants are perf_counter nanoseconds, as in engine_trace's records on the same
host. Phases: warm, idle, prefill, past, several, decode, skew, mixed, profile (the server needs --profiler-config), and
rate:REQUESTS_PER_S:SECONDS for Poisson arrivals. --limit ends the drive between two phases. Needs aiohttp, which vLLM
brings. Prompts are random token ids, the same in every run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

import aiohttp

PROMPT_LENGTHS = (1, 16, 64, 128, 192, 256, 384, 512, 640, 768, 896, 1000, 1024, 1025, 1152, 1280, 1536, 1792, 2048, 2049,
                  2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 16384, 32768)  # fmt: skip
SEVERAL = ((2, 1024), (3, 1024), (4, 1024), (6, 1024), (8, 1024), (16, 512), (32, 256), (64, 128), (128, 64), (8, 16))
DECODES = (
    (1024, (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)),
    (128, (1, 8, 32, 64, 128, 256)),
    (4096, (1, 4, 8, 16, 32, 64)),
    (16384, (1, 2, 4, 8, 16)),
)
SKEWED = ((1, 15), (1, 31), (4, 28), (8, 8), (2, 126))
MIXED = ((1, 1024), (4, 1024), (8, 1024), (16, 1024), (32, 1024), (64, 1024), (128, 512), (16, 4096))
JOINING = (32, 128, 256, 512, 1000, 1024, 2048, 4096)
PREFILLED_PER_S = 26_000  # tokens, roughly; how long a phase waits for its prompts


class Drive:
    """One client. A request that is refused ends the drive: a recording with a hole is worse than none."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, out: TextIO) -> None:
        self._session, self._url, self._model, self._out = session, url, model, out
        self._random = random.Random(7)

    def ids(self, count: int) -> list[int]:
        return [self._random.randrange(1000, 150_000) for _ in range(count)]

    def _write(self, record: dict[str, object]) -> None:
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()

    def mark(self, phase: str, **more: object) -> None:
        self._write({"mark": phase, "at_ns": time.perf_counter_ns(), **more})
        print(phase, *(f"{name}={value}" for name, value in more.items()), flush=True)

    async def request(self, phase: str, output_tokens: int, prompt: list[int]) -> None:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        send_ns, chunks_ns = time.perf_counter_ns(), []
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            if response.status != 200:
                sys.exit(f"{phase}: the server answered {response.status}: {(await response.text())[:300]}")
            async for line in response.content:
                if line.startswith(b"data:"):
                    chunks_ns.append(time.perf_counter_ns())
        self._write(
            {
                "phase": phase,
                "input_tokens": len(prompt),
                "output_tokens": output_tokens,
                "send_ns": send_ns,
                "chunks_ns": chunks_ns,
            }
        )

    async def burst(self, phase: str, count: int, length: int, output_tokens: int) -> None:
        self.mark(phase, count=count, length=length)
        await asyncio.gather(*(self.request(phase, output_tokens, self.ids(length)) for _ in range(count)))

    async def post(self, path: str) -> None:
        async with self._session.post(f"{self._url}{path}") as response:
            if response.status != 200:
                sys.exit(f"{path}: the server answered {response.status}: was it started with --profiler-config?")

    async def warm(self) -> None:
        for _ in range(4):
            await self.request("warm", 8, self.ids(100))

    async def idle(self) -> None:
        for length in (1024, 256, 2048):
            self.mark("idle", length=length)
            for _ in range(6):
                await self.request("idle", 8, self.ids(length))
                await asyncio.sleep(0.02)

    async def prefill(self) -> None:
        self.mark("prefill")
        for _ in range(2):
            for length in PROMPT_LENGTHS:
                await self.request("prefill", 3, self.ids(length))

    async def past(self) -> None:
        self.mark("past")
        for before in (1024, 4096, 8192, 16384):
            shared = self.ids(before)
            await self.request("past", 1, shared)
            for more in (32, 128, 256, 512, 1024, 2048, 4096):
                await self.request("past", 3, shared + self.ids(more))

    async def several(self) -> None:
        for count, length in SEVERAL:
            await self.burst("several", count, length, 3)

    async def decode(self) -> None:
        for length, counts in DECODES:
            for count in counts:
                await self.burst("decode", count, length, 24)

    async def skew(self) -> None:
        for long, short in SKEWED:
            self.mark("skew", long=long, short=short)
            prompts = [self.ids(8192) for _ in range(long)] + [self.ids(128) for _ in range(short)]
            await asyncio.gather(*(self.request("skew", 40, prompt) for prompt in prompts))

    async def mixed(self) -> None:
        for count, length in MIXED:
            self.mark("mixed", count=count, length=length)
            running = [asyncio.create_task(self.request("mixed", 110, self.ids(length))) for _ in range(count)]
            await asyncio.sleep(count * length / PREFILLED_PER_S + 0.15)
            for joining in JOINING:
                await self.request("joining", 2, self.ids(joining))
                await asyncio.sleep(0.03)
            await asyncio.gather(*running)

    async def profile(self) -> None:
        self.mark("profile")
        await self.post("/start_profile")
        for length in (1024, 1000, 2048, 128):
            await self.request("profile", 3, self.ids(length))
        for count, length in ((8, 1024), (32, 256), (4, 4096)):
            await self.burst("profile", count, length, 4)
        await self.post("/stop_profile")

    async def rate(self, per_s: float, seconds: float) -> None:
        self.mark("rate", per_s=per_s, seconds=seconds)
        begin_s, at_s, tasks = time.perf_counter(), 0.0, []
        for _ in range(max(2, int(per_s * seconds))):
            at_s += self._random.expovariate(per_s)
            await asyncio.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(self.request("rate", 128, self.ids(1024))))
        await asyncio.gather(*tasks)


PHASES = ("warm", "idle", "prefill", "past", "several", "decode", "skew", "mixed", "profile")


def phase_of(text: str) -> Callable[[Drive], Awaitable[None]]:
    """What a phase does, by its name on the command line."""
    if text in PHASES:
        return lambda drive: getattr(drive, text)()
    name, *numbers = text.split(":")
    if name == "rate" and len(numbers) == 2:
        try:
            per_s, seconds = map(float, numbers)
        except ValueError:
            per_s = seconds = 0.0
        if per_s > 0 and seconds > 0:
            return lambda drive: drive.rate(per_s, seconds)
    raise argparse.ArgumentTypeError(f"{text!r} is no phase: {', '.join(PHASES)} or rate:REQUESTS_PER_S:SECONDS")


async def run(options: argparse.Namespace) -> None:
    end_s = time.monotonic() + options.limit
    options.recording.mkdir(parents=True, exist_ok=True)
    timeout = aiohttp.ClientTimeout(total=600)
    with (options.recording / "client.jsonl").open("a", encoding="utf-8") as out:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            drive = Drive(session, options.url.rstrip("/"), options.model, out)
            for phase in options.phases:
                if time.monotonic() > end_s:
                    drive.mark("out of time")
                    break
                await phase(drive)
            drive.mark("end")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("recording", type=Path)
    parser.add_argument("phases", nargs="+", type=phase_of, metavar="PHASE")
    parser.add_argument("--model", default="model", help="the server's --served-model-name")
    parser.add_argument("--limit", type=float, default=400.0, metavar="SECONDS", help="begin no phase after this long")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
