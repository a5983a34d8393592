"""KV-cache blocks that vLLM computes for itself at its defaults, with both details.

    python benchmarks/kv_blocks.py [--engine PATH]

Bound: equal to each other, and within 1 % of the 18,038 that a real H100 gave (Qwen3-14B, utilisation 0.92).
"""

from __future__ import annotations

import argparse

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, run_bench
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.validation.residency import GPU, MODEL, RECORDED_KV_BLOCKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    options = parser.parse_args()
    blocks: dict[str, int] = {}
    for detail in ("kernel", "step"):
        with TerminalProgress() as progress:
            run = run_bench(
                BenchOptions(
                    model=MODEL,
                    gpu=GPU,
                    engine=options.engine,
                    detail=detail,
                    requests=1,
                    input_len=64,
                    output_len=2,
                    rate=1.0,
                ),
                progress,
            )
        blocks[detail] = run.result.kv_blocks or 0
        error = blocks[detail] / RECORDED_KV_BLOCKS - 1
        print(f"{detail} detail: {blocks[detail]:,} blocks, {error:+.2%} of the {RECORDED_KV_BLOCKS:,} recorded "
              f"(profile {run.engine.profile}, start-up {run.result.startup_s:.1f} s)")  # fmt: skip
    equal = blocks["kernel"] == blocks["step"]
    near = all(abs(count / RECORDED_KV_BLOCKS - 1) <= 0.01 for count in blocks.values())
    print(f"equal: {verdict(equal)}; within 1 %: {verdict(near)}")
    finish(equal and near)


if __name__ == "__main__":
    main()
