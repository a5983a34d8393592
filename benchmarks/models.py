"""Kinds of models with the engine, in both details: mixtures of experts, quantised weights, latent attention.

    make models MODELS="--only mixtral-8x7b"
    python benchmarks/models.py [--engine PATH] [--only MODEL ...] [--gpu GPU ...] [--detail step kernel]

Each case is a bundled model on a GPU that holds it, with the engine's default flags where nothing else is said. Bound as in
products.py: every run finishes, both details find the same KV-cache blocks, no device time is unknown, and their mean TPOT is
within 5 % of each other. Writes the table of docs/compatibility.md, section "Models", and keeps the rows of cases that were
not asked for. A first start of a model compiles it: minutes.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from products import Row, agree, run

from common import ROOT, finish, verdict
from hyperlapse.cli.benchmark import BenchOptions

PAGE = ROOT / "docs" / "compatibility.md"
TITLE = "## Models"
HEAD = (
    "model",
    "GPU",
    "flags",
    "detail",
    "attention",
    "KV blocks",
    "unknown",
    "TTFT, ms",
    "TPOT, ms",
    "date",
    "result",
)
TEXT = f"""{TITLE}

Made by `make models` (`benchmarks/models.py`), with vLLM 0.32.0: the stock server with the flags in the row, twenty requests
of 256 + 32 tokens at 4 a second. All of them run on model runner V2, as that release chooses by itself. *result*: whether both
details finish with the same blocks, nothing unknown and a mean TPOT within 5 % of each other.

"""


@dataclass(frozen=True, slots=True)
class Case:
    """A bundled model on a GPU, or several of it that share each layer, and flags of the engine."""

    model: str
    gpu: str = "h100-sxm-80gb"
    flags: tuple[str, ...] = ()
    gpus: int = 1

    @property
    def place(self) -> str:
        return self.gpu if self.gpus == 1 else f"{self.gpus} x {self.gpu}"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.model, self.place, " ".join(self.flags))


CASES = (
    Case("qwen3-30b-a3b"),
    Case("qwen3-30b-a3b-fp8"),
    Case("mixtral-8x7b", "h200-sxm-141gb"),
    Case("mixtral-8x7b", gpus=2),
    Case("qwen3-8b-fp8"),
    Case("llama-3.1-8b-fp8"),
    Case("deepseek-v2-lite"),
    Case("qwen3-30b-a3b", "b200-sxm-180gb", ("--moe-backend", "triton")),
    Case("qwen3-30b-a3b", "rtx-pro-6000", ("--moe-backend", "triton")),
)


def lines_of(case: Case, rows: Sequence[Row], good: bool) -> list[str]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = "works" if good else "FAILED"
    lines = []
    for row in rows:
        _, detail, *cells = row.cells()[:7]
        cells = [cell.replace("|", "/") for cell in cells]
        lines.append(
            "| " + " | ".join((case.model, case.place, " ".join(case.flags), detail, *cells, today, result)) + " |"
        )
    return lines


def write_page(made: dict[tuple[str, ...], list[str]]) -> None:
    """The section with these rows, and those that it has of other cases."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, section = page.partition(TITLE)
    kept: dict[tuple[str, ...], list[str]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(HEAD) and cells[0] not in (HEAD[0], "---"):
            kept.setdefault((cells[0], cells[1], cells[2]), []).append(line)
    rows = {**kept, **made}
    order = [*(case.key for case in CASES if case.key in rows), *(key for key in rows if key not in _KEYS)]
    table = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *(line for key in order for line in rows[key])]
    PAGE.write_text(before.rstrip() + "\n\n" + TEXT + "\n".join(table) + "\n", encoding="utf-8")


_KEYS = frozenset(case.key for case in CASES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine")
    parser.add_argument("--only", nargs="+", help="models, all of their cases")
    parser.add_argument("--gpu", nargs="+", help="and GPUs")
    parser.add_argument("--detail", nargs="+", default=["step", "kernel"])
    given = parser.parse_args()
    made: dict[tuple[str, ...], list[str]] = {}
    good = True
    for case in CASES:
        if (given.only and case.model not in given.only) or (given.gpu and case.gpu not in given.gpu):
            continue
        rows = []
        for detail in given.detail:
            options = BenchOptions(
                model=case.model,
                gpu=case.gpu,
                gpus=case.gpus,
                detail=detail,
                engine=given.engine,
                rate=4.0,
                requests=20,
                input_len=256,
                output_len=32,
                engine_flags=case.flags,
            )
            rows.append(run(options))
            print(case.model, " ".join(rows[-1].cells()), flush=True)
        case_good = agree(rows)
        good = good and case_good
        print(f"{case.model} on {case.place}: {verdict(case_good)}", flush=True)
        made[case.key] = lines_of(case, rows, case_good)
        if set(given.detail) == {"step", "kernel"}:
            write_page(made)
    finish(good)


if __name__ == "__main__":
    main()
