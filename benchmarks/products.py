"""Every GPU product with the engine, in both details: does it start, serve and finish, and do the details agree?

    python benchmarks/products.py [--engine PATH] [--gpu NAME ...] [--detail step kernel] [--table FILE] [-- ENGINE FLAGS]

Prints a row a run as it ends and writes all rows as a Markdown table. Bound: every run finishes, both details of a product
find the same KV-cache blocks, no device time is unknown, and their mean TPOT is within 5 % of each other. A first start
of a product compiles the model for it: minutes. Where the model's longest context does not fit a card, vLLM says so, as on
the card: give -- --max-model-len.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchError, BenchOptions, run_bench
from hyperlapse.cli.progress import TerminalProgress
from hyperlapse.shim.devices import names as device_names

MODEL = "qwen3-8b"
AGREEMENT = 0.05
HEAD = ("product", "detail", "attention", "KV blocks", "unknown", "TTFT, ms", "TPOT, ms", "start-up, s")


@dataclass(frozen=True, slots=True)
class Row:
    """A run. kv_blocks: None when it failed, with `failure` saying why; times are means in milliseconds, start-up in real
    seconds; unknown: share of the device time.
    """

    gpu: str
    detail: str
    attention: str = ""
    kv_blocks: int | None = None
    unknown: float | None = None
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    startup_s: float = 0.0
    failure: str = ""

    def cells(self) -> tuple[str, ...]:
        if self.kv_blocks is None:
            return (self.gpu, self.detail, f"failed: {self.failure}", *([""] * (len(HEAD) - 3)))
        unknown = "?" if self.unknown is None else f"{self.unknown:.2%}"
        return (
            *(self.gpu, self.detail, self.attention, f"{self.kv_blocks:,}", unknown),
            *(f"{self.ttft_ms:.2f}", f"{self.tpot_ms:.2f}", f"{self.startup_s:.0f}"),
        )


def run(options: BenchOptions) -> Row:
    try:
        with TerminalProgress() as progress:
            made = run_bench(options, progress)
    except BenchError as error:
        return Row(options.gpu, options.detail, failure=" ".join(str(error).split())[:300])
    metrics = made.result.metrics
    return Row(
        gpu=options.gpu,
        detail=options.detail,
        attention=", ".join(made.engine.attention),
        kv_blocks=made.result.kv_blocks,
        unknown=made.result.coverage["unknown"],
        ttft_ms=metrics.ttft_ms.mean,
        tpot_ms=metrics.tpot_ms.mean,
        startup_s=made.result.startup_s,
    )


def agree(rows: list[Row]) -> bool:
    """The runs of one product: all finished, nothing unknown, the same blocks, nearly the same TPOT."""
    if any(row.kv_blocks is None or row.unknown != 0 for row in rows):
        return False
    slowest, fastest = max(row.tpot_ms for row in rows), min(row.tpot_ms for row in rows)
    return len({row.kv_blocks for row in rows}) == 1 and slowest <= fastest * (1 + AGREEMENT)


def markdown(rows: list[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--gpu", nargs="+", default=list(device_names()))
    parser.add_argument("--detail", nargs="+", default=["step", "kernel"])
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=16)
    parser.add_argument("--table", type=Path, help="file to write the table to")
    parser.add_argument("flags", nargs="*", help="flags of the engine, after --")
    given = parser.parse_args()
    rows: list[Row] = []
    good = True
    for gpu in given.gpu:
        of_product: list[Row] = []
        for detail in given.detail:
            options = BenchOptions(
                model=given.model,
                gpu=gpu,
                detail=detail,
                engine=given.engine,
                rate=given.rate,
                requests=given.requests,
                input_len=given.input_len,
                output_len=given.output_len,
                engine_flags=tuple(given.flags),
            )
            of_product.append(run(options))
            print(" ".join(of_product[-1].cells()), flush=True)
        rows += of_product
        product_good = agree(of_product)
        good = good and product_good
        print(f"{gpu}: {verdict(product_good)}", flush=True)
        if given.table:
            given.table.write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows), end="")
    finish(good)


if __name__ == "__main__":
    main()
