"""Start-up of the server to its first token, second start, `step` detail: phases, beside the engine's own imports.

    python benchmarks/startup.py [--engine PATH]

Bound: at most twice the CPU time that the engine's own imports take in the same run. The first start (which may profile
the model) is not counted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from pathlib import Path

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
from hyperlapse.validation.residency import GPU, MODEL


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


def start(engine_path: str | None, folder: Path) -> dict[str, object]:
    """One start: its phases in real seconds, and the records that the processes wrote."""
    engine, model = find_engine(engine_path), resolve_model(MODEL)
    with Run(GPU, 1) as run:
        began_s = time.monotonic()
        PricingProcess.start(run, None, folder / "pricing.log", models=[model.config_path], wait=False)
        run.set_mode(Mode.REAL)
        port = free_port()
        serve = serve_args(
            model.directory, "step", executable=engine.command, served_model_name=model.name, host=HOST, port=port
        )
        spawned_ns = run.now_ns()
        server = start_server(
            run,
            serve.argv,
            {**serve.environment, **loopback_environment()},
            port=port,
            log=folder / "server.log",
            progress=Silent(),
        )
        token_s = first_token_s(port, model.name)
        total_s = time.monotonic() - began_s
        records = [
            json.loads(line) for path in sorted(run.directory.glob(PATTERN)) for line in LogFollower(path).new_lines()
        ]
    return {
        "total_s": total_s,
        "server_s": server.startup_s,
        "first_token_s": token_s,
        "spawned_ns": spawned_ns,
        "records": records,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--once", action="store_true", help="no first start: the profile is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hyperlapse-startup-") as scratch:
        if not options.once:
            first = start(options.engine, Path(scratch))
            print(f"first start: {first['total_s']:.2f} s")
        second = start(options.engine, Path(scratch))
    import_s = 0.0
    for record in second["records"]:
        if record["kind"] == "imports":
            import_s += record["cpu_ns"] / 1e9
            name = record.get("process") or "process"
            print(f"  imports of {name} {record['pid']}: {record['cpu_ns'] / 1e9:.2f} s CPU")
        elif "t_ns" in record and record["kind"] != "step":
            print(f"  {record['kind']}: {(record['t_ns'] - second['spawned_ns']) / 1e9:.2f} s after the start")
    total_s = float(second["total_s"])
    good = import_s > 0 and total_s <= 2 * import_s
    print(
        f"second start: {total_s:.2f} s to the first token (server ready after {second['server_s']:.2f} s, first token "
        f"{second['first_token_s']:.2f} s later); imports {import_s:.2f} s of CPU: "
        f"{total_s / import_s if import_s else 0:.2f} times: {verdict(good)}"
    )
    finish(good)


if __name__ == "__main__":
    main()
