"""KV-cache blocks that vLLM computes for itself, beside what real cards gave.

    python benchmarks/kv_blocks.py [--engine PATH]          # Qwen3-14B at vLLM's defaults, both details
    python benchmarks/kv_blocks.py --recorded [--only TEXT]  # every recorded count that is known (minutes each, once)

Bound of the first: equal to each other, and with vLLM 0.23.0 to the 18,038 that two real H100s gave (utilisation 0.92).
Other versions were not recorded. Bound of the second: within 1 % (validation/block_counts.py); and within 0.5 % with the
driver's memory of a card derived from another card's alone (validation/driver_memory.py).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, BenchRun, run_bench
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.shim import devices
from hyperlapse.validation import driver_memory
from hyperlapse.validation.block_counts import RECORDED, RecordedBlocks
from hyperlapse.validation.residency import GPU, MODEL, RECORDED_KV_BLOCKS

RECORDED_VERSION = "0.23.0"
BOUND, ACROSS_BOUND = 0.01, 0.005
STREAMS, KERNELS = 128, 45
"""Of torch's pool, and launched before vLLM counts (both seen on the H100)."""


def run(options: BenchOptions) -> BenchRun:
    with TerminalProgress() as progress:
        return run_bench(options, progress)


def at_defaults(engine: str | None) -> bool:
    blocks: dict[str, int] = {}
    recorded = None
    for detail in ("kernel", "step"):
        found = run(
            BenchOptions(
                model=MODEL, gpu=GPU, engine=engine, detail=detail, requests=1, input_len=64, output_len=2, rate=1.0
            )
        )
        blocks[detail] = found.result.kv_blocks or 0
        recorded = RECORDED_KV_BLOCKS if found.result.engine_version == RECORDED_VERSION else None
        beside = f"{recorded:,} recorded" if recorded else f"none recorded with {found.result.engine_version}"
        print(f"{detail} detail: {blocks[detail]:,} blocks, {beside} "
              f"(profile {found.engine.profile}, start-up {found.result.startup_s:.1f} s)")  # fmt: skip
    equal = blocks["kernel"] == blocks["step"]
    as_recorded = recorded is None or set(blocks.values()) == {recorded}
    print(f"equal: {verdict(equal)}" + (f"; as recorded: {verdict(as_recorded)}" if recorded else ""))
    return equal and as_recorded


def driver_bytes(facts: devices.DeviceFacts, *, first: int | None = None, stream: int | None = None) -> int:
    """What the driver has taken when vLLM counts. first, stream: other figures than the profile's, in bytes."""
    first = facts.first_kernel_bytes if first is None else first
    stream = facts.stream_bytes if stream is None else stream
    return STREAMS * stream + first + facts.cublas_bytes + KERNELS * facts.kernel_code_bytes


def beside_recorded(only: str) -> bool:
    good = True
    found: list[tuple[RecordedBlocks, int, int]] = []
    with tempfile.TemporaryDirectory(prefix="hyperlapse-blocks-") as scratch:
        for each in RECORDED:
            name = f"{each.gpu}, vLLM {each.version}, {each.model}, {each.compile_cache} cache"
            if only not in name:
                continue
            if each.missing:
                print(f"{name}: {each.blocks:,} recorded, not tried: {each.missing}")
                continue
            result = run(
                BenchOptions(
                    model=each.model_argument(Path(scratch)),
                    gpu=each.gpu,
                    engine=f"vllm=={each.version}",
                    requests=1,
                    input_len=64,
                    output_len=2,
                    rate=1.0,
                    compile_cache=each.compile_cache,
                    engine_flags=each.flags,
                )
            )
            blocks, available = result.result.kv_blocks or 0, result.engine.available_bytes or 0
            error = blocks / each.blocks - 1
            good = good and abs(error) <= BOUND
            state = "" if each.told else " (state of the cache not recorded)"
            print(f"{name}{state}: {each.blocks:,} recorded, {blocks:,} here, {error:+.2%}: "
                  f"{verdict(abs(error) <= BOUND)} [{each.source}]")  # fmt: skip
            found.append((each, blocks, available))
    return across_cards(found) and good


def across_cards(found: list[tuple[RecordedBlocks, int, int]]) -> bool:
    """Each card's counts with the driver's memory derived from another card alone. A card other than the measured one has
    a formula from the measured one; the measured one's comes from what a recorded count leaves on the other.
    """
    base = devices.load(driver_memory.MEASURED).facts
    good = True
    for each, blocks, available in found:
        facts = devices.load(each.gpu).facts
        block_bytes = available // blocks
        if each.gpu == driver_memory.MEASURED or facts == base:
            continue
        print(f"across cards, {each.gpu} from {driver_memory.MEASURED}:")
        here = driver_bytes(facts)
        for text, first, stream in (
            ("nothing goes with the threads", base.first_kernel_bytes, base.stream_bytes),
            ("the first kernel does", facts.first_kernel_bytes, base.stream_bytes),
            ("the first kernel and streams do", facts.first_kernel_bytes, facts.stream_bytes),
        ):
            taken = driver_bytes(facts, first=first, stream=stream)
            error = (available - taken + here) // block_bytes / each.blocks - 1
            print(f"  {text}: {taken / 2**20:.0f} MiB, {error:+.2%}")
        good = good and abs(error) <= ACROSS_BOUND
        print(f"  within {ACROSS_BOUND:.1%}: {verdict(abs(error) <= ACROSS_BOUND)}")
        left = here + available - each.blocks * block_bytes - facts.cublas_bytes - KERNELS * facts.kernel_code_bytes
        scaled = left * driver_memory.resident_threads(base) / driver_memory.resident_threads(facts)
        back = scaled + base.cublas_bytes + KERNELS * base.kernel_code_bytes
        print(f"across cards, {driver_memory.MEASURED} from {each.gpu}: {back / 2**20:.0f} MiB, "
              f"{driver_bytes(base) / 2**20:.0f} measured:")  # fmt: skip
        for other, other_blocks, other_available in found:
            if other.gpu == driver_memory.MEASURED:
                other_bytes = other_available // other_blocks
                error = (other_available + driver_bytes(base) - back) // other_bytes / other.blocks - 1
                good = good and abs(error) <= ACROSS_BOUND
                print(f"  vLLM {other.version}, {other.model}: {error:+.2%}: {verdict(abs(error) <= ACROSS_BOUND)}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--only", default="", help="with --recorded: only rows whose name holds this text")
    options = parser.parse_args()
    finish(beside_recorded(options.only) if options.recorded else at_defaults(options.engine))


if __name__ == "__main__":
    main()
