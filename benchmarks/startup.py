"""Start-up of the server to its first token, beside the engine's own imports: CPU time of its processes, and phases.

    python benchmarks/startup.py [--engine PATH] [--details step kernel] [--once] [--empty]

The second start counts (`--once`: there was one before); `--empty` measures a first start with empty caches instead, profile
and compilers' alike. The client and the pricing service are not counted; the latter's CPU time is printed.

Bounds, in the CPU time that the engine's own imports take in the same run: `step` 1.3 times, `kernel` 1.8 times; with `--empty`
and `kernel`: imports, Dynamo as the engine's log has it, and 15 s. CPU time is bounded and not real time, which depends on
what else the machine does; both are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from common import finish, verdict
from hyperlapse.cli.engine_environment import find_engine
from hyperlapse.cli.engine_log import PATTERN
from hyperlapse.cli.log_follower import LogFollower
from hyperlapse.cli.pricing_process import PricingProcess
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.serving import HOST, free_port, loopback_environment, start_server
from hyperlapse.integrations.vllm import serve_args
from hyperlapse.shim.launcher import Mode, Run
from hyperlapse.shim.models import resolve_model
from hyperlapse.validation.residency import GPU

TIMES = {"step": 1.3, "kernel": 1.8}
EMPTY_BESIDE_S = 15.0
CACHES = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton",
          "HYPERLAPSE_CACHE": "hyperlapse"}  # fmt: skip
DYNAMO = re.compile(r"Dynamo bytecode transform time: ([0-9.]+) s")


def first_token_s(port: int, model: str) -> float:
    """Real seconds from a request to its first streamed token."""
    began_s = time.monotonic()
    body = json.dumps({"model": model, "prompt": [1, 2, 3], "max_tokens": 1, "stream": True, "ignore_eos": True})
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200 or b"choices" not in response.readline():
        raise SystemExit(f"the request failed with status {response.status}")
    seconds = time.monotonic() - began_s
    response.read()
    connection.close()
    return seconds


def tree_cpu_s(root: psutil.Process) -> dict[str, float]:
    """CPU seconds of a process and what it started, by process; children that were waited for are their parent's."""
    found = {}
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            name = (process.cmdline() or [process.name()])[0].rpartition("/")[2]
            found[f"{name} {process.pid}"] = sum(times[:4])
    return found


def start(
    engine_path: str | None, detail: str, model_name: str, folder: Path, caches: dict[str, str]
) -> dict[str, Any]:
    """One start: its phases in real and CPU seconds, and the records that the processes wrote."""
    engine, model = find_engine(engine_path), resolve_model(model_name)
    with Run(GPU, 1) as run:
        began_s = time.monotonic()
        services = {process.pid for process in psutil.Process().children()}
        PricingProcess.start(run, None, folder / "pricing.log", models=[model.config_path], wait=False)
        pricing = [process for process in psutil.Process().children() if process.pid not in services]
        run.set_mode(Mode.REAL)
        port = free_port()
        serve = serve_args(
            model.directory, detail, executable=engine.command, served_model_name=model.name, host=HOST, port=port
        )
        spawned_ns = run.now_ns()
        environment = {**serve.environment, **loopback_environment(), **caches}
        server = start_server(run, serve.argv, environment, port=port, log=folder / "server.log", progress=Silent())
        token_s = first_token_s(port, model.name)
        total_s = time.monotonic() - began_s
        cpu_s = tree_cpu_s(psutil.Process(server.process.pid))
        pricing_s = sum(seconds for process in pricing for seconds in tree_cpu_s(process).values())
        records = [
            json.loads(line) for path in sorted(run.directory.glob(PATTERN)) for line in LogFollower(path).new_lines()
        ]
    log = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
    return {
        "total_s": total_s,
        "server_s": server.startup_s,
        "first_token_s": token_s,
        "spawned_ns": spawned_ns,
        "records": records,
        "cpu_s": cpu_s,
        "pricing_s": pricing_s,
        "dynamo_s": sum(float(text) for text in DYNAMO.findall(log)),
    }


def shown(detail: str, found: dict[str, Any], empty: bool) -> bool:
    """Prints one start; whether it meets its bound."""
    import_s = 0.0
    for record in found["records"]:
        if record["kind"] == "imports":
            import_s += record["cpu_ns"] / 1e9
            name = record.get("process") or "process"
            print(f"  imports of {name} {record['pid']}: {record['cpu_ns'] / 1e9:.2f} s CPU")
        elif "t_ns" in record and record["kind"] != "step":
            print(f"  {record['kind']}: {(record['t_ns'] - found['spawned_ns']) / 1e9:.2f} s after the start")
    for name, seconds in found["cpu_s"].items():
        print(f"  {name}: {seconds:.2f} s CPU in all")
    cpu_s = sum(found["cpu_s"].values())
    bound_s = import_s + found["dynamo_s"] + EMPTY_BESIDE_S if empty else TIMES[detail] * import_s
    good = 0 < cpu_s <= bound_s
    which = f"first start, empty caches (Dynamo {found['dynamo_s']:.1f} s)" if empty else "second start"
    print(
        f"{detail} detail, {which}: {cpu_s:.2f} s of CPU to the first token, {found['total_s']:.2f} s real (server ready "
        f"after {found['server_s']:.2f} s, first token {found['first_token_s']:.2f} s later; pricing service "
        f"{found['pricing_s']:.2f} s CPU); imports {import_s:.2f} s: {cpu_s / import_s if import_s else 0:.2f} times, "
        f"{bound_s:.2f} s wanted: {verdict(good)}"
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--details", nargs="+", default=["step", "kernel"], choices=["step", "kernel"])
    parser.add_argument("--once", action="store_true", help="no first start: the profile is there")
    parser.add_argument("--empty", action="store_true", help="a first start, with empty caches")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="hyperlapse-startup-") as scratch:
        for detail in options.details:
            caches = {name: f"{scratch}/{detail}/{below}" for name, below in CACHES.items()} if options.empty else {}
            for path in caches.values():
                Path(path).mkdir(parents=True)
            if not (options.once or options.empty):
                first = start(options.engine, detail, options.model, Path(scratch), caches)
                print(f"{detail} detail, first start: {first['total_s']:.2f} s")
            found = start(options.engine, detail, options.model, Path(scratch), caches)
            good = shown(detail, found, options.empty) and good
    finish(good)


if __name__ == "__main__":
    main()
