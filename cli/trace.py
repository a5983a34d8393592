"""`hyperlapse trace`: a report as a timeline that ui.perfetto.dev and chrome://tracing open.

One track for each device with its steps, one slice for each request from its sending to its last token with the wait for
the first one inside, and counters of the engine's state: all in virtual time, from the start of the measurement. The format is
the Trace Event Format's JSON, whose times are microseconds; fractions keep the nanoseconds.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

_DEVICES, _REQUESTS, _ENGINE = 1, 2, 3  # process numbers of the tracks


@click.command("trace")
@click.argument("report", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def command(report: Path, file: Path) -> None:
    """Write the run of REPORT (a folder that `bench --report` made) as a timeline into FILE (.json or .json.gz).

    Open it in ui.perfetto.dev. An existing FILE is not replaced.
    """
    from hyperlapse.cli.report import read_report
    from hyperlapse.cli.report_data import ReportError

    if not file.name.endswith((".json", ".json.gz")):
        raise click.UsageError(f"{file}: name it .json or .json.gz")
    try:
        found = read_report(report)
        if not found.get("steps"):
            raise ReportError(f"{report} has no steps: make it with `hyperlapse bench --report`")
        data = json.dumps({"displayTimeUnit": "ms", "traceEvents": list(events(found))}, separators=(",", ":")).encode()
        with file.open("xb") as out:
            out.write(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    except FileExistsError:
        print(f"hyperlapse: {file} exists; name a new file", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        file.unlink(missing_ok=True)
        print(f"hyperlapse: {file}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except ReportError as error:
        print(f"hyperlapse: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"hyperlapse: timeline: {file.absolute()} (open it in ui.perfetto.dev)", file=sys.stderr)


def events(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a report that has requests and steps."""
    steps, requests = report["steps"], report["requests"]
    yield from _names(sorted(set(steps["device"])), report["result"]["gpu"])
    for row in range(len(steps["start_ns"])):
        yield from _step({name: column[row] for name, column in steps.items()})
    for row in range(len(requests["index"]) if requests else 0):
        yield from _request({name: column[row] for name, column in requests.items()})


def _names(devices: list[int], gpu: str) -> Iterator[dict[str, Any]]:
    for number, name in ((_DEVICES, f"{gpu} (virtual)"), (_REQUESTS, "requests"), (_ENGINE, "engine")):
        yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": number}}
    for device in devices:
        yield {"ph": "M", "name": "thread_name", "pid": _DEVICES, "tid": device, "args": {"name": f"device {device}"}}


def _us(instant_ns: int) -> float:
    return instant_ns / 1000


def _step(step: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    prefill, decode = step["prefill_tokens"], step["decode_tokens"]
    name = "prefill + decode" if prefill and decode else "prefill" if prefill else "decode"
    shown = ("prefill_tokens", "decode_tokens", "requests", "launch_ns", "price_ns", "preemptions")
    yield {
        "ph": "X", "cat": "step", "name": name, "pid": _DEVICES, "tid": step["device"], "ts": _us(step["start_ns"]),
        "dur": _us(step["duration_ns"]), "args": {each: step[each] for each in shown},
    }  # fmt: skip
    end = _us(step["start_ns"] + step["duration_ns"])
    for counter, values in (("requests", ("running", "waiting")), ("KV cache in use", ("kv_usage",))):
        found = {each: step[each] for each in values if step[each] is not None}
        if found and not step["device"]:
            yield {"ph": "C", "name": counter, "pid": _ENGINE, "ts": end, "args": found}


def _request(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Asynchronous slices: requests overlap."""
    tokens = request["token_ns"]
    if request["status"] != "ok" or not tokens:
        return
    same = {"cat": "request", "id": request["index"], "pid": _REQUESTS, "tid": 0}
    args = {each: request[each] for each in ("prompt_tokens", "output_tokens")}
    name, begin, first, last = f"request {request['index']}", _us(request["send_ns"]), _us(tokens[0]), _us(tokens[-1])
    yield {**same, "ph": "b", "name": name, "ts": begin, "args": args}
    yield {**same, "ph": "b", "name": "to the first token", "ts": begin}
    yield {**same, "ph": "e", "name": "to the first token", "ts": first}
    yield {**same, "ph": "b", "name": "tokens", "ts": first}
    yield {**same, "ph": "e", "name": "tokens", "ts": last}
    yield {**same, "ph": "e", "name": name, "ts": last}
