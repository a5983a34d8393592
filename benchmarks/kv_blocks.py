"""KV-cache blocks that vLLM computes for itself at its defaults, with both details.

    python benchmarks/kv_blocks.py [--engine PATH]

Bound: equal to each other, and with vLLM 0.23.0 to the 18,038 that two real H100s gave (Qwen3-14B, utilisation 0.92). Other
versions were not recorded.
"""

from __future__ import annotations

import argparse

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, run_bench
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.validation.residency import GPU, MODEL, RECORDED_KV_BLOCKS

RECORDED_VERSION = "0.23.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    options = parser.parse_args()
    blocks: dict[str, int] = {}
    recorded = None
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
        recorded = RECORDED_KV_BLOCKS if run.result.engine_version == RECORDED_VERSION else None
        beside = f"{recorded:,} recorded" if recorded else f"none recorded with {run.result.engine_version}"
        print(f"{detail} detail: {blocks[detail]:,} blocks, {beside} "
              f"(profile {run.engine.profile}, start-up {run.result.startup_s:.1f} s)")  # fmt: skip
    equal = blocks["kernel"] == blocks["step"]
    as_recorded = recorded is None or set(blocks.values()) == {recorded}
    print(f"equal: {verdict(equal)}" + (f"; as recorded: {verdict(as_recorded)}" if recorded else ""))
    finish(equal and as_recorded)


if __name__ == "__main__":
    main()
