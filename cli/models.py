"""`hyperlapse models`: the bundled models, how large they are, and on which GPUs they fit and can be priced."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hyperlapse.predictor.engine import EnginePredictor
    from hyperlapse.predictor.models import ModelConfig

# What an engine leaves free by default and needs beside weights is its own business; this is only a hint in a list.
_USABLE_SHARE = 0.9


@click.command("models")
@click.argument("names", nargs=-1)
@click.option("--gpu", help="Say whether each model fits this GPU and can be priced on it.  [default: every GPU]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(names: tuple[str, ...], gpu: str | None, as_json: bool) -> None:
    """List the bundled models, or describe NAMES: a bundled model, a folder, a config.json, a name on the hub."""
    from hyperlapse.shim import devices
    from hyperlapse.shim.models import ModelError, bundled_models, resolve_model

    try:
        gpus = [gpu] if gpu else list(devices.names())
        if gpu:
            devices.load(gpu)
        paths = (
            {name: resolve_model(name).config_path for name in names}
            if names
            else {name: folder / "config.json" for name, folder in bundled_models().items()}
        )
    except (ModelError, devices.UnknownDeviceError, devices.DeviceProfileError, OSError) as error:
        raise click.UsageError(str(error)) from error
    priced = predictors(gpus)
    found = [describe(name, path, priced) for name, path in paths.items()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_table(found, all_gpus=gpu is None)


def describe(name: str, path: Any, gpus: Mapping[str, EnginePredictor | str]) -> dict[str, Any]:
    """A model's shape, and by GPU whether it fits and can be priced (`problem`: why not). gpus: predictors by GPU, or
    what is wrong with that GPU.
    """
    from hyperlapse.predictor.models import ModelConfig
    from hyperlapse.predictor.prediction import PredictorError

    line: dict[str, Any] = {"name": name, "config": str(path)}
    try:
        model = ModelConfig.from_json(path)
    except (PredictorError, ValueError, OSError) as error:
        return {**line, "problem": str(error)}
    return {
        **line,
        "parameters": model.parameters,
        "weight_bytes_bf16": model.parameters * 2,
        "layers": model.layers,
        "hidden": model.hidden,
        "attention": attention_kind(model),
        "experts": f"{model.active_experts} of {model.experts}" if model.experts else None,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "gpus": {gpu: _on(model, gpu, predictor) for gpu, predictor in gpus.items()},
    }


def predictors(gpus: Iterable[str]) -> dict[str, EnginePredictor | str]:
    """GPU -> its predictor, or why it has none."""
    from hyperlapse.cli.priced_device import engine_predictor
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.shim import devices

    found: dict[str, EnginePredictor | str] = {}
    for gpu in gpus:
        try:
            found[gpu] = engine_predictor(gpu)
        except (devices.DeviceProfileError, devices.UnknownDeviceError, PredictorError, ValueError, OSError) as error:
            found[gpu] = str(error)
    return found


def attention_kind(model: ModelConfig) -> str:
    """Grouped, multi-head or multi-query, with the heads."""
    if model.kv_heads == model.heads:
        return f"multi-head, {model.heads}"
    if model.kv_heads == 1:
        return f"multi-query, {model.heads}/1"
    return f"grouped, {model.heads}/{model.kv_heads}"


def _on(model: ModelConfig, gpu: str, predictor: EnginePredictor | str) -> dict[str, Any]:
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.shim import devices

    if isinstance(predictor, str):
        return {"fits": None, "priced": False, "problem": predictor}
    fits = model.weight_bytes < _USABLE_SHARE * devices.load(gpu).facts.total_memory_bytes
    try:
        predictor.step_predictor(model)
    except PredictorError as error:
        return {"fits": fits, "priced": False, "problem": str(error)}
    return {"fits": fits, "priced": True, "problem": None}


def _print_table(found: list[dict[str, Any]], *, all_gpus: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 150  # a pipe or a file has no width of its own
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "parameters", "bf16 weights", "layers", "attention (heads/KV)", "experts", "KV a token"):
        table.add_column(
            heading, justify="left" if heading in ("model", "attention (heads/KV)") else "right", no_wrap=True
        )
    table.add_column("fits and is priced on one" if all_gpus else "on this GPU", overflow="fold")
    for line in found:
        if "problem" in line:
            table.add_row(line["name"], "", "", "", "", "", "", line["problem"])
            continue
        table.add_row(
            line["name"],
            f"{line['parameters'] / 1e9:.2f} G",
            f"{line['weight_bytes_bf16'] / 2**30:.1f} GiB",
            str(line["layers"]),
            line["attention"],
            line["experts"] or "-",
            f"{line['kv_bytes_per_token'] / 1024:.0f} KiB",
            _verdict(line["gpus"], all_gpus),
        )
    console.print(table)
    console.print("Others: a folder with a config.json, a config.json, or a name on the Hugging Face hub (Owner/Name).")


def _verdict(gpus: dict[str, dict[str, Any]], all_gpus: bool) -> str:
    if not all_gpus:
        (only,) = gpus.values()
        if not only["priced"]:
            return str(only["problem"])
        return "fits, priced" if only["fits"] else "priced, but the weights do not fit in bf16"
    fitting = [name for name, found in gpus.items() if found["priced"] and found["fits"]]
    if fitting:
        return ", ".join(fitting)
    problems = [found["problem"] for found in gpus.values() if found["problem"]]
    return f"not priced: {problems[0]}" if len(problems) == len(gpus) else "none"
