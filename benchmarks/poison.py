"""That nothing an engine decides depends on what kernels would have written.

    python benchmarks/poison.py [--engine PATH] [--model NAME] [--poisons 0x00 0xa5] -- ENGINE FLAGS

Kernels do not run, so device memory that only they write holds whatever was there: zeros, or the byte that HYPERLAPSE_POISON
names. The same run (kernel detail, frozen clock, two dozen requests) is made with each of them. Bound: the same
KV blocks, preemptions and unknown kernels, and every token of every request at the same virtual nanosecond.
"""

from __future__ import annotations

import argparse
import os

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, BenchRun, run_bench
from hyperlapse.cli.progress import TerminalProgress

VARIABLE = "HYPERLAPSE_POISON"


def outcome(run: BenchRun) -> dict[str, object]:
    """What the engine decided, by name."""
    result = run.result
    return {
        "KV blocks": result.kv_blocks,
        "preemptions": result.preemptions,
        "steps": run.engine.steps,
        "prefix hits": run.engine.prefix_hit_tokens,
        "device time": dict(run.device_time_ns),
        "token instants": [(record.index, record.output_tokens, record.token_ns) for record in run.records],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--model", default="qwen3-14b")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--poisons", nargs="+", default=["0x00", "0xa5", "0xff"])
    parser.add_argument("flags", nargs="*", help="flags of the engine, after --")
    given = parser.parse_args()
    flags = tuple(given.flags) or ("--num-gpu-blocks-override", "400", "--max-model-len", "2048")
    outcomes: dict[str, dict[str, object]] = {}
    for poison in given.poisons:
        os.environ[VARIABLE] = poison
        options = BenchOptions(
            model=given.model,
            engine=given.engine,
            detail="kernel",
            rate=20.0,
            requests=given.requests,
            input_len=300,
            output_len=60,
            engine_flags=flags,
        )
        with TerminalProgress() as progress:
            found = outcomes[poison] = outcome(run_bench(options, progress))
        print(f"{poison}: {found['KV blocks']} blocks, {found['preemptions']} preemptions, {found['steps']} steps")
    first, *others = given.poisons
    good = True
    for other in others:
        differs = [name for name, value in outcomes[first].items() if outcomes[other][name] != value]
        good = good and not differs
        print(f"{other} beside {first}: {', '.join(differs) or 'nothing'} differs: {verdict(not differs)}")
    finish(good)


if __name__ == "__main__":
    main()
