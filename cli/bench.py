"""`hyperlapse bench`: serve a model on virtual GPUs, load it, and print what the real ones would have shown."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from hyperlapse.shim.environment import (
    COMPILE_CACHE_VARIABLE,
    COMPILE_CACHES,
    UNSUPPORTED_POLICIES,
    UNSUPPORTED_VARIABLE,
)

if TYPE_CHECKING:
    from hyperlapse.cli.benchmark import BenchRun

# An ended terminal or a stopped job must end the run's processes too.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
REQUESTS = click.IntRange(min=1, max=1_000_000)
# Of the stock client's random numbers.
SEED = click.IntRange(min=0, max=2**32 - 1)
LONGEST_LOAD_S = 365 * 86_400


@click.command("bench", epilog=EPILOG)
@click.option("--model", default="qwen3-14b", show_default=True, help="Bundled model, or a folder with a config.json.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="Device profile of the virtual GPUs.")
@click.option(
    "--gpus",
    type=COUNT,
    default=1,
    show_default=True,
    help="Virtual GPUs, which share each layer (tensor parallelism).",
)
@click.option(
    "--detail", type=click.Choice(["kernel", "step"]), default="step", show_default=True,
    help="kernel: the real forward pass, every launch priced; step: one launch a step, priced from the batch.",
)  # fmt: skip
@click.option("--clock", type=click.Choice(["frozen", "flow"]), default="frozen", show_default=True)
@click.option(
    "--engine", metavar="NAME==VERSION|PATH",
    help="A release, e.g. vllm==0.32.0 (made once, see `hyperlapse engines`), or an environment's folder or Python.",
)  # fmt: skip
@click.option("--rate", type=_Positive(), help=f"Requests a second, Poisson.  [default: {DEFAULT_RATE:g}]")
@click.option("--concurrency", type=COUNT, help="At most this many requests in flight; alone: as fast as they end.")
@click.option("--requests", type=REQUESTS, default=100, show_default=True)
@click.option("--input-len", type=COUNT, default=1024, show_default=True, help="Prompt tokens.")
@click.option("--output-len", type=COUNT, default=128, show_default=True, help="Output tokens, met exactly.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--trace", type=click.Path(path_type=Path), help="Replay this JSONL file instead of random requests.")
@click.option("--max-in-flight", type=COUNT, help="With --trace: at most this many requests in flight.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=click.Path(path_type=Path), help="New folder for logs, requests.jsonl and result.json.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder for report.html and report.json: every request and step, with error estimates.",
)  # fmt: skip
@click.option(
    "--unsupported", type=click.Choice(UNSUPPORTED_POLICIES), default=UNSUPPORTED_POLICIES[0], show_default=True,
    envvar=UNSUPPORTED_VARIABLE, show_envvar=True,
    help="What a CUDA call without a virtual answer does: end the engine, warn once and return an error, or return an error.",
)  # fmt: skip
@click.option(
    "--compile-cache", type=click.Choice(COMPILE_CACHES), default=COMPILE_CACHES[0], show_default=True,
    envvar=COMPILE_CACHE_VARIABLE, show_envvar=True,
    help="cold: KV cache as at the engine's very first start, when compiling takes memory; warm: as at any later one.",
)  # fmt: skip
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
    if given["rate"] is not None and given["requests"] / given["rate"] > LONGEST_LOAD_S:
        raise click.UsageError(
            f"--rate {given['rate']:g}: {given['requests']} requests would take more than a year to arrive"
        )
    if given["engine_flags"] and not given["engine_flags"][0].startswith("-"):
        raise click.UsageError(
            f"unexpected argument {given['engine_flags'][0]!r}; the engine's own flags stand after --"
        )
    if given["step_fixed"] is not None:
        from hyperlapse.cli.fixed_step import parse_fixed_step

        try:
            parse_fixed_step(given["step_fixed"])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--step-fixed") from None
    as_json = given.pop("as_json")
    given["fixed_step"] = given.pop("step_fixed")
    report = given.pop("report")
    options = BenchOptions(**given, record_steps=report is not None)
    if report is not None:
        from hyperlapse.cli.report import check_folder
        from hyperlapse.cli.report_data import ReportError

        if options.output is not None and report.absolute() in (
            options.output.absolute(),
            *options.output.absolute().parents,
        ):
            raise click.UsageError("--report and --output name the same place; a report needs a folder of its own")
        try:
            check_folder(report)  # before minutes of work
        except ReportError as error:
            print(f"hyperlapse: {error}", file=sys.stderr)
            sys.exit(2)

    for number in STOP_SIGNALS:
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
    else:
        from rich.console import Console

        print_result(Console(), run.result)
    if report is not None:
        _write_report(run, report)


def _write_report(run: BenchRun, folder: Path) -> None:
    from hyperlapse.cli.progress import TerminalProgress
    from hyperlapse.cli.report import write_report
    from hyperlapse.cli.report_data import ReportError

    try:
        with TerminalProgress() as progress:
            page = write_report(run, folder, progress)[0]
    except ReportError as error:
        print(f"hyperlapse: {error}\nThe result above stands; it is in {run.folder} too.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"hyperlapse: interrupted: no report was written. The result is in {run.folder}", file=sys.stderr)
        sys.exit(130)
    print(f"hyperlapse: report: {page.absolute()}", file=sys.stderr)


def _is_chosen(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in STOP_SIGNALS:  # what has to be ended now is ended within seconds: a second Ctrl-C must not stop that
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
