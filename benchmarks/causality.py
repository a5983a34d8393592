"""The standing causality test: the stock server and client against a discrete-event model (tests/des/model.py).

    python benchmarks/causality.py [--engine PATH]

Every step takes 10 ms and 40 µs more for each prompt token; 100 requests of 1,024 + 128 tokens at 2/s and at 8/s.
Bound: every TTFT and ITL within 0.1 ms. A causality violation shows as a token that is a whole step late.
"""

from __future__ import annotations

import argparse

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, BenchRun, run_bench
from hyperlapse.cli.engine_environment import find_engine
from hyperlapse.cli.progress import TerminalProgress
from tests.des.model import Arrival, Difference, Engine, compare, simulate_after_warm_up, tokenizer_wait_ns

TOLERANCE_NS = 100_000
# Seeds whose 100 random prompts share no prefix block: the model knows no prefix cache.
CASES = ((2.0, 0), (8.0, 1))


def difference(run: BenchRun, tokenizer_wait_ns: int) -> Difference:
    """Of a run with fixed steps and the model, driven by the client's own sends."""
    engine = Engine(
        token_budget=run.engine.token_budget or 0,
        max_running=run.engine.max_running or 0,
        tokenizer_wait_ns=tokenizer_wait_ns,
    )
    arrivals = [Arrival(record.send_ns, record.prompt_tokens, record.output_tokens) for record in run.records]
    measured = [record.token_ns for record in run.records]
    modelled = simulate_after_warm_up(arrivals, engine, measured)
    return compare([record.send_ns for record in run.records], measured, modelled, TOLERANCE_NS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    good = True
    for rate, seed in CASES:
        with TerminalProgress() as progress:
            run = run_bench(
                BenchOptions(
                    engine=options.engine, rate=rate, seed=seed, requests=options.requests, fixed_step="10ms,40us"
                ),
                progress,
            )
        found = difference(run, tokenizer_wait_ns(find_engine(options.engine).folder))
        exact = found.late_first_tokens == 0 and found.late_gaps == 0
        good = good and exact
        print(
            f"{rate:g} requests/s, seed {seed}: TTFT beyond 0.1 ms: {found.late_first_tokens} of {found.requests} "
            f"(largest {found.max_first_token_ns / 1e6:.6f} ms); ITL beyond 0.1 ms: {found.late_gaps} of {found.gaps} "
            f"(largest {found.max_gap_ns / 1e6:.6f} ms): {verdict(exact)}"
        )
        if run.engine.prefix_hit_tokens:
            print(f"  {run.engine.prefix_hit_tokens} prompt tokens came from the prefix cache: choose another seed")
        print(f"  {run.result.virtual_s:.1f} s virtual in {run.result.real_s:.1f} s real; logs: {run.folder}")
    finish(good)


if __name__ == "__main__":
    main()
