"""`hyperlapse predict`: one engine step, operator by operator, with where each duration comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hyperlapse.predictor.composition import BatchComposition
    from hyperlapse.predictor.prediction import StepPrediction


@click.command("predict")
@click.option("--model", required=True, help="A bundled model by name, or the path of a model's config.json or folder.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="GPU product.")
@click.option(
    "--batch",
    required=True,
    help="Sequences of the step as <new tokens>:<context>[x<count>],... (four decodes at 1,088 tokens: 1:1088x4),"
    " or a whole batch composition (docs/batch-composition.md).",
)
@click.option("--graph", type=click.Choice(["full", "piecewise", "none"]), help="CUDA-graph mode.  [default: full for"
              " decodes alone, else none]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens of the dense layers when a graph pads the batch.")
@click.option("--rows", type=click.IntRange(min=0), help="Sampled rows.  [default: one for each sequence]")
@click.option("--dtype", default="auto", show_default=True, help="Type of weights and activations.")
@click.option("--kv-cache-dtype", default="auto", show_default=True, help="Type of the KV cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(
    model: str,
    gpu: str,
    batch: str,
    graph: str | None,
    tokens: int | None,
    rows: int | None,
    dtype: str,
    kv_cache_dtype: str,
    as_json: bool,
) -> None:
    """Predict how long one engine step takes on a GPU."""
    from hyperlapse.cli.priced_device import priced_device
    from hyperlapse.predictor.models import ModelConfig
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.predictor.step import StepPredictor
    from hyperlapse.shim.models import ModelError, resolve_model

    try:
        config = ModelConfig.from_json(resolve_model(model).config_path, dtype=dtype, kv=kv_cache_dtype)
        device = priced_device(gpu)
        composition = _composition(batch, graph, tokens, rows)
        step = StepPredictor(config, device).predict(composition)
    except (PredictorError, ModelError, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps(_as_dict(model, device.name, composition, step), indent=2))
    else:
        _print_table(model, device.name, composition, step)


def _composition(text: str, graph: str | None, tokens: int | None, rows: int | None) -> BatchComposition:
    from hyperlapse.predictor.composition import BatchComposition, CompositionError, parse_groups

    if text.startswith("v1 "):
        if graph or tokens or rows is not None:
            raise CompositionError("--graph, --tokens and --rows stand in the batch composition already")
        return BatchComposition.parse(text)
    groups = parse_groups(text)
    if not groups:
        raise CompositionError("--batch names no sequence")
    if graph is None:
        graph = "full" if all(group.decodes for group in groups) else "none"
    return BatchComposition.of(groups, graph=graph, tokens=tokens, rows=rows)


def _as_dict(model: str, gpu: str, batch: BatchComposition, step: StepPrediction) -> dict[str, Any]:
    from hyperlapse.predictor.prediction import Coverage

    return {
        "model": model,
        "gpu": gpu,
        "batch": batch.format(),
        "duration_ns": step.duration_ns,
        "error_ratio": round(step.error_ratio, 4),
        "coverage_ns": {kind.name.lower(): step.coverage_ns[kind] for kind in Coverage},
        "operators": [
            {
                "name": operator.name,
                "count": operator.count,
                "shape": operator.shape,
                "duration_ns": operator.prediction.duration_ns,
                "total_ns": operator.total_ns,
                "coverage": operator.prediction.coverage.name.lower(),
                "error_ratio": operator.prediction.error_ratio,
            }
            for operator in step.operators
        ],
    }


def _print_table(model: str, gpu: str, batch: BatchComposition, step: StepPrediction) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hyperlapse.predictor.prediction import Coverage

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a pipe or a file has no width of its own
    table = Table(title=f"{model} on {gpu}", caption=batch.format(), caption_justify="left", box=box.SIMPLE_HEAD)
    for name in ("operator", "count", "shape", "each us", "all ms", "share", "coverage", "error"):
        right = name not in ("operator", "shape", "coverage")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "shape", overflow="fold")
    for operator in step.operators:
        table.add_row(
            operator.name,
            str(operator.count),
            operator.shape,
            f"{operator.prediction.duration_ns / 1e3:.1f}",
            f"{operator.total_ns / 1e6:.3f}",
            f"{operator.total_ns / step.duration_ns:.1%}",
            operator.prediction.coverage.name.lower(),
            f"±{operator.prediction.error_ratio:.0%}",
        )
    table.add_section()
    table.add_row("step", "", "", "", f"{step.duration_ns / 1e6:.3f}", "100.0%", "", f"±{step.error_ratio:.0%}")
    console.print(table)
    shares = ((kind.name.lower(), step.coverage_ns[kind] / step.duration_ns) for kind in Coverage)
    console.print("Where it comes from: " + ", ".join(f"{name} {share:.1%}" for name, share in shares if share))
