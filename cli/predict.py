"""`hyperlapse predict`: one engine step, operator by operator, with where each duration comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hyperlapse.predictor.composition import BatchComposition
    from hyperlapse.predictor.devices import DeviceSpec
    from hyperlapse.predictor.prediction import StepPrediction


@click.command("predict")
@click.option("--model", help="A bundled model by name, a folder or config.json, or a name on the Hugging Face hub.")
@click.option(
    "--gpu", default="h100-sxm-80gb", show_default=True, help="GPU product, or a profile file (./my-gpu.yaml)."
)
@click.option("--engine", default="", metavar="NAME[-VERSION]", help="Engine whose kernels and steps are meant.  [default:"
              " the one that is known, in its newest version]")  # fmt: skip
@click.option(
    "--batch",
    help="Sequences of the step as <new tokens>:<context>[x<count>],... (four decodes at 1,088 tokens: 1:1088x4),"
    " or a whole batch composition (docs/batch-composition.md).",
)
@click.option("--graph", type=click.Choice(["full", "piecewise", "none"]), help="CUDA-graph mode.  [default: full for"
              " decodes alone, else none]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens of the dense layers when a graph pads the batch.")
@click.option("--rows", type=click.IntRange(min=0), help="Sampled rows.  [default: one for each sequence]")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that share each layer"
              " (tensor parallelism).")  # fmt: skip
@click.option("--dtype", default="auto", show_default=True, help="Type of weights and activations.")
@click.option("--kv-cache-dtype", default="auto", show_default=True, help="Type of the KV cache.")
@click.option("--score", "scored", is_flag=True, help="Instead of a step: how well measurements of this GPU that are left"
              " out are predicted.")  # fmt: skip
@click.option("--carried-over-from", metavar="GPU", help="With --score: how well this other GPU's measurements, carried"
              " over, predict those of --gpu.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    model: str | None,
    gpu: str,
    engine: str,
    batch: str | None,
    graph: str | None,
    tokens: int | None,
    rows: int | None,
    tp: int,
    dtype: str,
    kv_cache_dtype: str,
    scored: bool,
    carried_over_from: str | None,
    as_json: bool,
) -> None:
    """Predict how long one engine step takes on a GPU."""
    from hyperlapse.cli.priced_device import engine_predictor, priced_device
    from hyperlapse.predictor.models import ModelConfig
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.shim.devices import DeviceProfileError, UnknownDeviceError
    from hyperlapse.shim.models import ModelError, resolve_model

    try:
        if scored:
            _score(priced_device(gpu), priced_device(carried_over_from) if carried_over_from else None, engine, as_json)
            return
        if carried_over_from is not None:
            raise click.UsageError("--carried-over-from belongs to --score")
        if model is None or batch is None:
            raise click.UsageError(f"Missing option '{'--model' if model is None else '--batch'}'.")
        composition = _composition(batch, graph, tokens, rows)
        config = ModelConfig.from_json(resolve_model(model).config_path, tp=tp, dtype=dtype, kv=kv_cache_dtype)
        predictor = engine_predictor(gpu, engine=engine)
        step = predictor.step_predictor(config).predict(composition)
    except (PredictorError, ModelError, DeviceProfileError, UnknownDeviceError, ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        found = _as_dict(model, predictor.device.name, composition, step)
        click.echo(json.dumps({**found, "notes": list(predictor.notes)}, indent=2))
    else:
        _print_table(model, predictor.device.name, composition, step)
        for note in predictor.notes:
            click.echo(f"Note: {note}.")


def _score(device: DeviceSpec, source: DeviceSpec | None, engine: str, as_json: bool) -> None:
    from hyperlapse.integrations import step_recipes
    from hyperlapse.predictor import score
    from hyperlapse.predictor.engines import Engines

    data, version = Engines.load(step_recipes()).find(engine)
    scores = score.run(device, data.database, version or None, source=source, show=not as_json)
    if as_json:
        click.echo(score.as_json(scores))


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
        "error90_ratio": round(step.error90_ratio, 4),
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
    console.print(
        f"Expected error ±{step.error_ratio:.1%}; nine in ten within ±{step.error90_ratio:.1%} (docs/durations.md)."
    )
    shares = ((kind.name.lower(), step.coverage_ns[kind] / step.duration_ns) for kind in Coverage)
    console.print("Where it comes from: " + ", ".join(f"{name} {share:.1%}" for name, share in shares if share))
