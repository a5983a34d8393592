"""`hyperlapse bench`: serve a model on virtual GPUs, load it, and print what the real ones would have shown."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

DEFAULT_RATE = 2.0
RANDOM_OPTIONS = ("rate", "concurrency", "requests", "input_len", "output_len")

EPILOG = """
Flags after -- go to `vllm serve`: hyperlapse bench --rate 4 -- --max-num-seqs 64

A trace has one JSON object a line: arrival_s, prompt_tokens, output_tokens, and optionally prompt_token_ids, or
prefix_id with prefix_tokens.
"""


class _Positive(click.ParamType[float]):
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 0 < number < float("inf"):
            self.fail(f"{value} is not above 0", param, ctx)
        return number


COUNT = click.IntRange(min=1)


@click.command("bench", epilog=EPILOG)
@click.option("--model", default="qwen3-14b", show_default=True, help="Bundled model, or a folder with a config.json.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="Device profile of the virtual GPUs.")
@click.option("--gpus", type=COUNT, default=1, show_default=True, help="Virtual GPUs (tensor parallel).")
@click.option(
    "--detail", type=click.Choice(["kernel", "step"]), default="step", show_default=True,
    help="kernel: the real forward pass, every launch priced; step: one launch a step, priced from the batch.",
)  # fmt: skip
@click.option("--clock", type=click.Choice(["frozen", "flow"]), default="frozen", show_default=True)
@click.option("--engine", metavar="PATH", help="The engine's environment or its Python.")
@click.option("--rate", type=_Positive(), help=f"Requests a second, Poisson.  [default: {DEFAULT_RATE:g}]")
@click.option("--concurrency", type=COUNT, help="At most this many requests in flight; alone: as fast as they end.")
@click.option("--requests", type=COUNT, default=100, show_default=True)
@click.option("--input-len", type=COUNT, default=1024, show_default=True, help="Prompt tokens.")
@click.option("--output-len", type=COUNT, default=128, show_default=True, help="Output tokens, met exactly.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--trace", type=click.Path(path_type=Path), help="Replay this JSONL file instead of random requests.")
@click.option("--max-in-flight", type=COUNT, help="With --trace: at most this many requests in flight.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=click.Path(path_type=Path), help="New folder for logs, requests.jsonl and result.json.")
@click.option("--step-fixed", metavar="STEP,TOKEN", hidden=True, help="Causality mode: 10ms,40us.")
@click.option("--host-time-ns", type=click.IntRange(min=0), hidden=True, help="Instead of the calibrated constant.")
@click.argument("engine_flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Run the stock vLLM server and client on virtual GPUs and print TTFT, TPOT, ITL, E2E and throughput."""
    from hyperlapse.cli.benchmark import BenchError, BenchOptions, run_bench
    from hyperlapse.cli.events import print_events
    from hyperlapse.cli.progress import TerminalProgress
    from hyperlapse.cli.result import print_result

    chosen = {name for name in given if _is_chosen(context, name)}
    if given["trace"] is not None:
        wrong = [name for name in RANDOM_OPTIONS if name in chosen]
        if wrong:
            raise click.UsageError(f"--{wrong[0].replace('_', '-')} has no meaning with --trace, which gives them all")
    elif given["max_in_flight"] is not None:
        raise click.UsageError("--max-in-flight belongs to --trace; for random requests use --concurrency")
    elif given["rate"] is None and given["concurrency"] is None:
        given["rate"] = DEFAULT_RATE
    if given["step_fixed"] is not None:
        from hyperlapse.cli.fixed_step import parse_fixed_step

        try:
            parse_fixed_step(given["step_fixed"])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--step-fixed") from None
    as_json = given.pop("as_json")
    given["fixed_step"] = given.pop("step_fixed")
    options = BenchOptions(**given)

    # An ended terminal or a stopped job must end the run's processes too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with TerminalProgress() as progress:
            run = run_bench(options, progress)
    except BenchError as error:
        print(f"hyperlapse: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("hyperlapse: interrupted; everything that was started has been ended", file=sys.stderr)
        sys.exit(130)
    # A fixed step is a rule and no knowledge: that its steps are unknown is not news.
    print_events([event for event in run.events if options.fixed_step is None or event.kind != "unknown-launch"])
    if as_json:
        print(json.dumps(run.result.as_json()))
        return
    from rich.console import Console

    print_result(Console(), run.result)


def _is_chosen(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
