"""A small completions server for tests: the stream format of vLLM, over real sockets, with no engine behind it.

    python completions_server.py serve MODEL --port N [--token-s 0.01] [--die-after N] [--refuse N] [--ping] [--never-ready]

It sends `max_tokens` chunks, a usage record and [DONE]; request number `--refuse` is refused with status 400, and after
`--die-after` requests it prints a line and ends with status 3. Options that it does not know are ignored, as are those
that a real server would take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

COUNTS = {"requests": 0, "now": 0, "most": 0}


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes] | None:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    return lines[0].split(" ")[1], await reader.readexactly(length)


def chunk(data: str) -> bytes:
    encoded = data.encode()
    return f"{len(encoded):x}\r\n".encode() + encoded + b"\r\n"


def event(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def complete(writer: asyncio.StreamWriter, body: bytes, options: argparse.Namespace) -> None:
    COUNTS["requests"] += 1
    request = json.loads(body)
    if COUNTS["requests"] == options.refuse:
        answer = b'{"error": {"message": "refused for the test"}}'
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        return
    COUNTS["now"] += 1
    COUNTS["most"] = max(COUNTS["most"], COUNTS["now"])
    prompt = request["prompt"]
    prompt_tokens = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    if options.ping:
        writer.write(chunk(": ping\n\n"))
    for number in range(request["max_tokens"]):
        await asyncio.sleep(options.token_s)
        text = event({"choices": [{"text": f"t{number} \n\n é", "finish_reason": None}], "usage": None})
        # A message split over two reads, as TCP may deliver it.
        writer.write(chunk(text[:9]))
        await writer.drain()
        writer.write(chunk(text[9:]))
        await writer.drain()
        if options.die_after and COUNTS["requests"] >= options.die_after and number == 1:
            print("fatal: out of something", file=sys.stderr, flush=True)
            os._exit(3)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": request["max_tokens"]}
    writer.write(chunk(event({"choices": [], "usage": usage})) + chunk("data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()
    COUNTS["now"] -= 1
    if options.run_dir:
        record = {"kind": "step", "engine_index": 0, "finished": 1, "preemptions": 0}
        with Path(options.run_dir, "engine-1.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


async def serve(options: argparse.Namespace) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                if request is None:
                    return
                path, body = request
                if path == "/v1/completions":
                    await complete(writer, body, options)
                else:
                    text = json.dumps(COUNTS).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    if options.run_dir:
        record = {"kind": "engine", "engine_index": 0, "kv_blocks": 123, "block_size": 16}
        record |= {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
        Path(options.run_dir, "engine-1.jsonl").write_text(json.dumps(record) + "\n")
    server = await asyncio.start_server(connection, "127.0.0.1", options.port)
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token-s", type=float, default=0.01)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--refuse", type=int, default=0)
    parser.add_argument("--run-dir", default=os.environ.get("TEST_RUN_DIR"))
    parser.add_argument("--ping", action="store_true")
    parser.add_argument("--fail-at-start", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    options, _ = parser.parse_known_args()
    if options.never_ready:
        time.sleep(3600)
    if options.fail_at_start:
        print("\n".join(f"line {number}" for number in range(40)), flush=True)
        sys.exit(7)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
