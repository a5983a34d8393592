"""A 70B model on one virtual GPU at 2 requests/s: how much faster than its own virtual time the run is.

    python benchmarks/large_model.py [--engine PATH] [--gpu b200-sxm-180gb] -- --max-model-len 65536

(The model's own 131,072 tokens need 40 GiB of KV cache; vLLM finds 27.6 GiB on a B200 at its defaults and refuses to start.)
On an H200 it fits with little room (about eight requests at a time, so it is saturated):

    python benchmarks/large_model.py --gpu h200-sxm-141gb --requests 100 -- \
        --gpu-memory-utilization 0.98 --max-model-len 4096 --max-num-batched-tokens 2048

Bound: 12 times faster, HTTP and the stock client included, after start-up, on two cores that nothing else uses.
"""

from __future__ import annotations

import argparse

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, run_bench
from hyperlapse.cli.progress import TerminalProgress

BOUND = 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--model", default="llama-3.1-70b")
    parser.add_argument("--gpu", default="b200-sxm-180gb")
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("flags", nargs="*", help="flags of the engine, after --")
    given = parser.parse_args()
    options = BenchOptions(
        model=given.model,
        gpu=given.gpu,
        engine=given.engine,
        rate=given.rate,
        requests=given.requests,
        engine_flags=tuple(given.flags),
    )
    with TerminalProgress() as progress:
        run = run_bench(options, progress)
    result = run.result
    fast = result.speedup >= BOUND
    print(
        f"{given.model} on one {given.gpu}, {given.requests} requests at {given.rate:g}/s: {result.virtual_s:.1f} s "
        f"virtual in {result.real_s:.1f} s real, {result.speedup:.1f} times faster ({BOUND:g} wanted): {verdict(fast)}"
    )
    clock, jumps = run.clock, max(run.clock["jumps"], 1)
    print(
        f"  mean TPOT {result.metrics.tpot_ms.mean:.2f} ms; {run.engine.steps} steps, "
        f"{result.real_s / max(run.engine.steps, 1) * 1e3:.2f} ms real a step; {jumps} jumps, "
        f"{clock['proof_ns_total'] / jumps / 1e3:.0f} µs of proofs for each"
    )
    finish(fast)


if __name__ == "__main__":
    main()
