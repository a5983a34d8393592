"""How well measured kernels that were left out are predicted: `hyperlapse predict --score --gpu NAME`.

Each figure comes from the very classes that price launches, given a table with rows, sites or lengths removed. The
published figures beside them are those of the kernel database's own documentation (aiconfigurator, performance
interpolation design: leave-one-out over H100 and GB200). Two collections of one product differ among themselves;
that scatter bounds from below what any predictor of one of them can reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.attention import AttentionModel
from hyperlapse.predictor.composition import BatchComposition, SequenceGroup
from hyperlapse.predictor.database import (
    AttentionTable,
    ExpertConfig,
    ExpertTable,
    Floats,
    GemmTable,
    HeadConfig,
    KernelDatabase,
    engines,
)
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.experts import ExpertModel, gated_shapes, nearest_shape, reshaped
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import Coverage, DatabaseError, PredictorError
from hyperlapse.predictor.quantization import FP8, FP8_BLOCK
from hyperlapse.predictor.transfer import TransferredDatabase

# What a score says about predictions: family and coverage. Several of one kind: the one with the largest p90 counts.
_ROLES = {
    "GEMM, one m held out": (accuracies.GEMM, "interpolated"),
    "GEMM, one (n, k) site held out": (accuracies.GEMM, "interpolated"),
    "GEMM, the last n or k held out": (accuracies.GEMM, "extrapolated"),
    "FP8 GEMM, measured by this and by another collector": (accuracies.QUANTISED_GEMM, "measured"),
    "FP8 GEMM, one m held out": (accuracies.QUANTISED_GEMM, "interpolated"),
    "FP8 GEMM, one (n, k) site held out": (accuracies.QUANTISED_GEMM, "interpolated"),
    "FP8 GEMM, the last n or k held out": (accuracies.QUANTISED_GEMM, "extrapolated"),
    "FP8 GEMM in blocks, by what replaces host-limited cells": (accuracies.QUANTISED_GEMM, "extrapolated"),
    "decode attention, one length held out": (accuracies.DECODE, "interpolated"),
    "decode attention, one batch size held out": (accuracies.DECODE, "interpolated"),
    "decode attention, the longest held out": (accuracies.DECODE, "extrapolated"),
    "prefill attention, one length held out": (accuracies.PREFILL, "interpolated"),
    "prefill attention, one batch size held out": (accuracies.PREFILL, "interpolated"),
    "prefill attention, second half over the first half": (accuracies.PREFILL, "extrapolated"),
    "experts, balanced instead of a power law": (accuracies.EXPERTS, "measured"),
    "experts, one token count held out": (accuracies.EXPERTS, "interpolated"),
    "experts, the most tokens held out": (accuracies.EXPERTS, "extrapolated"),
    "experts, one shape held out": (accuracies.EXPERTS, "extrapolated"),
    "experts on 2, 4, 8 GPUs, balanced instead of a power law": (accuracies.SHARED_EXPERTS, "measured"),
    "experts on 2, 4, 8 GPUs, one token count held out": (accuracies.SHARED_EXPERTS, "interpolated"),
    "experts on 2, 4, 8 GPUs, the most tokens held out": (accuracies.SHARED_EXPERTS, "extrapolated"),
    "experts on 2, 4, 8 GPUs, one shape held out": (accuracies.SHARED_EXPERTS, "extrapolated"),
}

_SHARING = (2, 4, 8)  # GPUs, as engines' all-reduces were measured


@dataclass(frozen=True, slots=True)
class Score:
    """Relative errors of held-out cells: median and 90th percentile in per cent; published: the same, or nothing."""

    name: str
    median: float
    p90: float
    cells: int
    published: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hyperlapse.predictor.score", description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    parser.add_argument("--engine", help="the kernel database's name of the engine")
    parser.add_argument("--carried-over-from", help="score tables carried over from this product instead")
    parser.add_argument("--write", type=Path, help="put the figures into this accuracy.json")
    parser.add_argument("--table", type=Path, help="print what an accuracy.json says as a table, and do nothing else")
    parser.add_argument(
        "--xgboost", action="store_true", help="score gradient-boosted trees on the same held-out cells"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            print(table(options.table))
            return 0
        if not options.engine:
            parser.error("--engine is missing: the kernel database's name of the engine")
        device = DeviceSpec.named(options.gpu)
        source = DeviceSpec.named(options.carried_over_from) if options.carried_over_from else None
        scores = run(device, options.engine, source=source, xgboost=options.xgboost, show=not options.json)
    except PredictorError as error:
        print(f"score: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(as_json(scores))
    if options.write:
        write(options.write, device.database_system, scores)
    return 0


def run(
    device: DeviceSpec,
    engine: str,
    version: str | None = None,
    *,
    source: DeviceSpec | None = None,
    xgboost: bool = False,
    show: bool = False,
) -> list[Score]:
    """Every figure of a product's own tables, or with `source` of that product's tables carried over to this one.

    engine: the database's name. Raises DatabaseError for a product without tables.
    """
    if device.transfer_from:
        raise DatabaseError(
            f"nobody measured {device.name}: score the tables that it uses, those of {device.transfer_from}"
        )
    device = dataclasses.replace(device, graph_gap_ns=0)  # compare latencies as measured
    database = KernelDatabase.load(device.database_system, engine, version)
    if source is None:
        found = all_scores(device, database, engine, xgboost=xgboost)
    else:
        tables = KernelDatabase.load(source.database_system, engine, version)
        found = carried_over(database, tables, source, device)
    scores = []
    for each in found:
        scores.append(each)
        if show:
            published = f"   published {each.published}" if each.published else ""
            figures = f"{each.median:6.2f} /{each.p90:6.2f} %  ({each.cells} cells)"
            print(f"{each.name:58} {figures}{published}", flush=True)
    return scores


def as_json(scores: list[Score]) -> str:
    """The figures as one JSON list."""
    return json.dumps([dataclasses.asdict(score) for score in scores], indent=2)


def write(path: Path, system: str, scores: list[Score]) -> None:
    """Puts a system's figures into an accuracy.json (accuracy.read), keeping those of other systems."""
    document: dict[str, Any] = {"systems": {}}
    if path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
    document["note"] = "absolute relative errors of held-out measurements; made by hyperlapse.predictor.score --write"
    document["systems"][system] = accuracy_of(scores)
    document["systems"] = dict(sorted(document["systems"].items()))
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(path: Path) -> str:
    """An accuracy.json in Markdown: median / 90th percentile in per cent, a row for each family and coverage.

    Raises PredictorError for anything else.
    """
    systems = accuracies.read(path)
    lines = [f"| per cent | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
    for family in accuracies.FAMILIES:
        for coverage in (Coverage.MEASURED, Coverage.INTERPOLATED, Coverage.EXTRAPOLATED):
            cells = []
            for found in systems.values():
                error = found.families.get(family, {}).get(coverage)
                cells.append(f"{error.median * 100:.1f} / {error.p90 * 100:.0f}" if error else "-")
            lines.append(f"| {family.replace('_', ' ')}, {coverage.name.lower()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_of(scores: list[Score]) -> dict[str, dict[str, dict[str, float]]]:
    """Family -> coverage -> error. What was measured itself errs as two collections of one product differ."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    scatter = [score for score in scores if score.name.startswith(_REPLICATE)]
    if scatter:
        best = min(scatter, key=lambda score: score.p90)
        for family in (accuracies.GEMM, accuracies.DECODE, accuracies.PREFILL):
            found.setdefault(family, {})["measured"] = {"median": best.median / 100, "p90": best.p90 / 100}
    for score in scores:
        family, coverage = _ROLES.get(score.name, ("", ""))
        if family:
            worst = found.setdefault(family, {}).get(coverage, {"median": 0.0, "p90": 0.0})
            if score.p90 / 100 >= worst["p90"]:
                found[family][coverage] = {"median": round(score.median / 100, 4), "p90": round(score.p90 / 100, 4)}
    for coverages in found.values():  # nothing errs less for being further from a measurement
        least = {"median": 0.0, "p90": 0.0}
        for coverage in ("measured", "interpolated", "extrapolated"):
            here = coverages.get(coverage)
            if here:
                least = coverages[coverage] = {key: round(max(here[key], least[key]), 4) for key in least}
    return found


def all_scores(device: DeviceSpec, database: KernelDatabase, engine: str, *, xgboost: bool = False) -> Iterator[Score]:
    """Every figure, one after the other (a minute together)."""
    gemm = database.gemm("bfloat16")
    yield score("GEMM, one m held out", gemm_rows_held_out(gemm, device), "4.87 / 15.6")
    yield score("GEMM, one (n, k) site held out", gemm_sites_held_out(gemm, device), "3.63 / 14.7")
    yield score("GEMM, the last n or k held out", gemm_edges_held_out(gemm, device))
    yield from replicates(gemm, database.system, engine)
    if xgboost:
        yield score("GEMM, one site in five held out, interpolation", gemm_folds(gemm, device))
        yield score("GEMM, one site in five held out, xgboost", gemm_folds_xgboost(gemm, device))
    yield from quantised_scores(database, device, engine)
    yield score(
        "decode attention, one length held out", attention_held_out(database, device, "decode", "length"), "1.1"
    )
    yield score("decode attention, one batch size held out", attention_held_out(database, device, "decode", "batch"))
    yield score("decode attention, the longest held out", longest_held_out(database, device))
    yield score(
        "prefill attention, one length held out", attention_held_out(database, device, "prefill", "length"), "2.0 / 9.7"
    )
    yield score("prefill attention, one batch size held out", attention_held_out(database, device, "prefill", "batch"))
    yield score("prefill attention, second half over the first half", chunks(database, device))
    yield from expert_scores(database, device, (1,))
    yield from expert_scores(database, device, _SHARING)


def quantised_scores(database: KernelDatabase, device: DeviceSpec, engine: str) -> Iterator[Score]:
    """Products in FP8; nothing where none was measured."""
    if FP8 not in database.gemm_dtypes():
        return
    table = database.gemm(FP8)
    others = [found for _, found in _collections(database.system, engine, FP8)]
    scatter = [score("FP8 GEMM, measured by this and by another collector", _common(table, other)) for other in others]
    if scatter:
        yield min(scatter, key=lambda each: each.p90)
    yield score("FP8 GEMM, one m held out", gemm_rows_held_out(table, device))
    yield score("FP8 GEMM, one (n, k) site held out", gemm_sites_held_out(table, device))
    yield score("FP8 GEMM, the last n or k held out", gemm_edges_held_out(table, device))
    substitute = database.graph_gemm(FP8_BLOCK)
    if substitute is None or FP8_BLOCK not in database.gemm_dtypes():
        return
    try:
        blocks = database.gemm(FP8_BLOCK)
    except DatabaseError:
        return
    if blocks.replaced is not None:
        own = np.where(blocks.replaced, np.nan, blocks.latency_ns)
        errors = _common(dataclasses.replace(blocks, latency_ns=own), substitute)
        yield score("FP8 GEMM in blocks, by what replaces host-limited cells", errors)


def carried_over(
    database: KernelDatabase, tables: KernelDatabase, source: DeviceSpec, device: DeviceSpec
) -> Iterator[Score]:
    """Another product's tables carried over to this one, against its own, cell by cell."""
    carried = TransferredDatabase(tables, source, device)
    place = f"{source.name} to {device.name}"
    yield score(f"GEMM, {place}", _common(database.gemm("bfloat16"), carried.gemm("bfloat16")))
    for phase in ("decode", "prefill"):
        errors = []
        for config in _common_configs(database, carried):
            own, other = (getattr(each, phase)(config) for each in (database, carried))
            errors.append(_common_attention(own, other))
        yield score(f"{phase} attention, {place}", np.concatenate(errors))
    errors = []
    for layer in sorted(set(database.expert_configs()) & set(carried.expert_configs())):
        here, there = database.experts(layer), carried.experts(layer)
        common = np.intersect1d(here.tokens, there.tokens)
        picked = [each.latency_ns[np.searchsorted(each.tokens, common)] for each in (there, here)]
        errors.append(picked[0] / picked[1] - 1)
    yield score(f"experts, {place}", np.concatenate(errors))


def _common(own: GemmTable, other: GemmTable) -> Floats:
    m, n, k = (np.intersect1d(*axes) for axes in ((own.m, other.m), (own.n, other.n), (own.k, other.k)))
    picked = [
        each.latency_ns[np.ix_(np.searchsorted(each.m, m), np.searchsorted(each.n, n), np.searchsorted(each.k, k))]
        for each in (other, own)
    ]
    errors: Floats = (picked[0] / picked[1] - 1).ravel()
    return errors


def _common_attention(own: AttentionTable, other: AttentionTable) -> Floats:
    batch, length = np.intersect1d(own.batch, other.batch), np.intersect1d(own.length, other.length)
    picked = [
        each.latency_ns[np.ix_(np.searchsorted(each.batch, batch), np.searchsorted(each.length, length))]
        for each in (other, own)
    ]
    errors: Floats = (picked[0] / picked[1] - 1).ravel()
    return errors


def _common_configs(one: KernelDatabase, other: KernelDatabase) -> list[HeadConfig]:
    both = set(_scored_configs(one)) & set(_scored_configs(other))
    return sorted(both)


def _scored_configs(database: KernelDatabase) -> list[HeadConfig]:
    """Head size 128 in bfloat16, measured for prefill and decode: what is scored."""
    both = set(database.decode_configs()) & set(database.prefill_configs())
    return sorted(config for config in both if config.head_dim == 128 and config.kv_dtype == "bfloat16")


def score(name: str, errors: Floats, published: str = "") -> Score:
    """Summarises signed relative errors."""
    sizes = np.abs(errors[np.isfinite(errors)]) * 100
    median, p90 = (round(float(np.percentile(sizes, percent)), 2) for percent in (50, 90))
    return Score(name, median, p90, len(sizes), published)


def gemm_rows_held_out(table: GemmTable, device: DeviceSpec) -> Floats:
    """Every (m, n, k) with m between two others, predicted without any row of that m."""
    errors = []
    for row in range(1, len(table.m) - 1):
        kept = np.delete(np.arange(len(table.m)), row)
        model = GemmModel(dataclasses.replace(table, m=table.m[kept], latency_ns=table.latency_ns[kept]), device)
        errors.append(_errors(table, model, rows=[row]))
    return np.concatenate(errors)


def gemm_sites_held_out(table: GemmTable, device: DeviceSpec) -> Floats:
    """Every interior (n, k), predicted over all m without that site."""
    errors = []
    for i in range(1, len(table.n) - 1):
        for j in range(1, len(table.k) - 1):
            latency = table.latency_ns.copy()
            latency[:, i, j] = np.nan
            model = GemmModel(dataclasses.replace(table, latency_ns=latency), device)
            errors.append(_errors(table, model, sites=[(i, j)]))
    return np.concatenate(errors)


def gemm_edges_held_out(table: GemmTable, device: DeviceSpec) -> Floats:
    """Products of the largest n, and of the largest k, predicted without any of them."""
    shorter_n = dataclasses.replace(table, n=table.n[:-1], latency_ns=table.latency_ns[:, :-1])
    shorter_k = dataclasses.replace(table, k=table.k[:-1], latency_ns=table.latency_ns[:, :, :-1])
    last_n = [(len(table.n) - 1, j) for j in range(len(table.k) - 1)]
    last_k = [(i, len(table.k) - 1) for i in range(len(table.n) - 1)]
    return np.concatenate(
        [
            _errors(table, GemmModel(shorter_n, device), sites=last_n),
            _errors(table, GemmModel(shorter_k, device), sites=last_k),
        ]
    )


_REPLICATE = "GEMM, measured by this and by another collector"


def replicates(table: GemmTable, system: str, engine: str) -> Iterator[Score]:
    """The table against other engines' collections on the same product: the scatter of measuring itself."""
    for number, collected in _collections(system, engine, "bfloat16"):
        yield score(f"{_REPLICATE} ({number})", _common(table, collected))


def _collections(system: str, engine: str, dtype: str) -> Iterator[tuple[int, GemmTable]]:
    """Other engines' tables of an element type, with the engine's number among them."""
    for number, other in enumerate((name for name in engines(system) if name != engine), start=1):
        try:
            yield number, KernelDatabase.load(system, other).gemm(dtype)
        except DatabaseError:
            continue


def gemm_folds(table: GemmTable, device: DeviceSpec) -> Floats:
    """As gemm_sites_held_out, a fifth of the sites at a time (what xgboost is compared on)."""
    errors = []
    for sites in _folds(table):
        latency = table.latency_ns.copy()
        for i, j in sites:
            latency[:, i, j] = np.nan
        errors.append(_errors(table, GemmModel(dataclasses.replace(table, latency_ns=latency), device), sites=sites))
    return np.concatenate(errors)


def gemm_folds_xgboost(table: GemmTable, device: DeviceSpec) -> Floats:
    """Gradient-boosted trees on the same folds: logarithm of latency over light time, from shapes and tile waves."""
    try:
        import xgboost  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("score: --xgboost needs the xgboost-cpu package", file=sys.stderr)
        return np.full(1, np.nan)
    m, n, k = (axis.astype(float) for axis in np.meshgrid(table.m, table.n, table.k, indexing="ij"))
    bytes_ns = 2 * (n * k + m * (n + k)) * 1e9 / device.memory_bandwidth_bytes_per_s
    light_ns = np.maximum(bytes_ns, 2 * m * n * k * 1e9 / device.bf16_flops_per_s)
    features = [np.log(m), np.log(n), np.log(k), np.log(light_ns), m % 2]
    for tile_m, tile_n in ((64, 128), (64, 256), (128, 128), (128, 256), (256, 128)):
        waves = np.ceil(m / tile_m) * np.ceil(n / tile_n) / device.multiprocessors
        features += [np.log(waves), waves / np.ceil(waves), np.ceil(m / tile_m) * tile_m / m]
    inputs = np.stack([feature.ravel() for feature in features], axis=1)
    target = np.log(table.latency_ns / light_ns).ravel()
    errors = []
    for sites in _folds(table):
        held = np.zeros(table.latency_ns.shape, dtype=bool)
        for i, j in sites:
            held[:, i, j] = True
        test = held.ravel() & np.isfinite(target)
        train = ~held.ravel() & np.isfinite(target)
        settings = {"max_depth": 8, "eta": 0.05, "subsample": 0.8, "nthread": 2, "seed": 0}
        trees = xgboost.train(settings, xgboost.DMatrix(inputs[train], label=target[train]), num_boost_round=800)
        errors.append(np.exp(trees.predict(xgboost.DMatrix(inputs[test])) - target[test]) - 1)
    return np.concatenate(errors)


def attention_held_out(database: KernelDatabase, device: DeviceSpec, phase: str, axis: str) -> Floats:
    """Cells between two others along an axis, predicted without the whole line that they stand on (head size 128)."""
    decode = phase == "decode"
    errors = []
    for config in _scored_configs(database):
        table = database.decode(config) if decode else database.prefill(config)
        lines = table.length if axis == "length" else table.batch
        for line in range(1, len(lines) - 1):
            kept = np.delete(np.arange(len(lines)), line)
            if axis == "length":
                reduced = AttentionTable(table.batch, table.length[kept], table.latency_ns[:, kept])
                cells = [(b, line) for b in range(len(table.batch)) if np.isfinite(table.latency_ns[b, line + 1])]
            else:
                reduced = AttentionTable(table.batch[kept], table.length, table.latency_ns[kept])
                cells = [(line, s) for s in range(len(table.length)) if np.isfinite(table.latency_ns[line + 1, s])]
            model = AttentionModel(_Reduced(database, decode, config, reduced), _model_of(config), device)
            predict = model.decode_ns if decode else model.prefill_ns
            errors.append(_attention_errors(table, predict, cells))
    return np.concatenate(errors)


def longest_held_out(database: KernelDatabase, device: DeviceSpec) -> Floats:
    """The longest context of each batch size, predicted without it."""
    errors = []
    for config in _scored_configs(database):
        table = database.decode(config)
        latency = table.latency_ns.copy()
        cells = []
        for row in range(len(table.batch)):
            columns = np.flatnonzero(np.isfinite(latency[row]))
            if len(columns) > 1:
                latency[row, columns[-1]] = np.nan
                cells.append((row, int(columns[-1])))
        reduced = dataclasses.replace(table, latency_ns=latency)
        model = AttentionModel(_Reduced(database, True, config, reduced), _model_of(config), device)
        errors.append(_attention_errors(table, model.decode_ns, cells))
    return np.concatenate(errors)


def expert_scores(database: KernelDatabase, device: DeviceSpec, sharing: Sequence[int]) -> Iterator[Score]:
    """Layers of experts on one of so many GPUs; nothing where none was measured."""
    try:
        every = [database.expert_configs(ranks) for ranks in sharing]
    except DatabaseError:
        return
    configs = [config for each in every for config in each]
    if not configs:
        return
    name = "experts" if sharing == (1,) else f"experts on {', '.join(map(str, sharing))} GPUs"
    inside: list[float] = []
    last: list[float] = []
    spread: list[Floats] = []
    for config in configs:
        table = database.experts(config)
        for row in range(1, len(table.tokens)):
            kept = np.delete(np.arange(len(table.tokens)), row)
            model = ExpertModel(ExpertTable(table.tokens[kept], table.latency_ns[kept]), config, device)
            found_ns, _ = model.latency_ns(int(table.tokens[row]))
            (last if row == len(table.tokens) - 1 else inside).append(float(found_ns / table.latency_ns[row] - 1))
        spread.append(_spread(database, config, table))
    differences = np.concatenate(spread)
    if differences.size:
        yield score(f"{name}, balanced instead of a power law", differences)
    yield score(f"{name}, one token count held out", np.array(inside))
    yield score(f"{name}, the most tokens held out", np.array(last))
    yield score(
        f"{name}, one shape held out", np.concatenate([shapes_held_out(database, device, each) for each in every])
    )


def shapes_held_out(database: KernelDatabase, device: DeviceSpec, configs: tuple[ExpertConfig, ...]) -> Floats:
    """Each layer predicted from the nearest one of other widths, the same element type and as many GPUs."""
    errors = [np.zeros(0)]
    gated = gated_shapes(database, configs, device)
    for config in gated:
        widths = config.hidden, config.intermediate
        others = [each for each in gated if each.dtype == config.dtype and (each.hidden, each.intermediate) != widths]
        if others:
            like, table = nearest_shape(config, others), database.experts(config)
            model = ExpertModel(reshaped(database.experts(like), like, config, device), config, device)
            found = np.array([model.latency_ns(tokens)[0] for tokens in table.tokens.tolist()])
            errors.append(found / table.latency_ns - 1)
    return np.concatenate(errors)


def _spread(database: KernelDatabase, config: ExpertConfig, table: ExpertTable) -> Floats:
    """The same layer with tokens spread evenly over experts, against how a prediction takes them to be spread."""
    even = database.balanced_experts(config)
    if even is None:
        return np.zeros(0)
    common = np.intersect1d(table.tokens, even.tokens)
    picked = [each.latency_ns[np.searchsorted(each.tokens, common)] for each in (table, even)]
    errors: Floats = picked[0] / picked[1] - 1
    return errors


def chunks(database: KernelDatabase, device: DeviceSpec) -> Floats:
    """The second half of a prompt as a chunk over the first half, against the measured whole less the measured half.

    The rows of the second half do exactly that work; only the launch (the shortest measured prefill) is paid twice.
    Left out are chunks that fill less than two waves of thread blocks: inside a whole prompt those run beside others.
    """
    errors = []
    for config in _scored_configs(database):
        table = database.prefill(config)
        model = AttentionModel(database, _model_of(config), device)
        lengths = table.length.tolist()
        for row, batch in enumerate(table.batch.tolist()):
            for column, length in enumerate(lengths):
                whole = table.latency_ns[row, column]
                waves = batch * config.heads * (length / 2 / 128) / device.multiprocessors
                if length < 1024 or length // 2 not in lengths or not np.isfinite(whole) or waves < 2:
                    continue
                half = table.latency_ns[row, lengths.index(length // 2)]
                measured = whole - half + table.latency_ns[0, 0]
                group = SequenceGroup(length // 2, length // 2, batch)
                errors.append(model.predict(BatchComposition.of([group])).duration_ns / measured - 1)
    return np.array(errors)


class _Reduced(KernelDatabase):
    """A database in which one attention table is another one."""

    def __init__(self, whole: KernelDatabase, decode: bool, config: HeadConfig, table: AttentionTable) -> None:
        super().__init__(whole.system, whole.engine_version, {})
        self._whole, self._replaces_decode, self._config, self._table = whole, decode, config, table

    def prefill_configs(self) -> tuple[HeadConfig, ...]:
        return self._whole.prefill_configs()

    def decode_configs(self) -> tuple[HeadConfig, ...]:
        return self._whole.decode_configs()

    def decode(self, config: HeadConfig) -> AttentionTable:
        return self._table if self._replaces_decode else self._whole.decode(config)

    def prefill(self, config: HeadConfig) -> AttentionTable:
        return self._whole.prefill(config) if self._replaces_decode else self._table


def _model_of(config: HeadConfig) -> ModelConfig:
    return ModelConfig(
        name="scored",
        layers=1,
        hidden=config.heads * config.head_dim,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate=1,
        vocab=1,
        qk_norm=False,
        kv_dtype=config.kv_dtype,
    )


def _attention_errors(
    table: AttentionTable, predict: Callable[[int, int], tuple[float, object]], cells: list[tuple[int, int]]
) -> Floats:
    return np.array(
        [
            predict(int(table.batch[b]), int(table.length[s]))[0] / table.latency_ns[b, s] - 1
            for b, s in cells
            if np.isfinite(table.latency_ns[b, s])
        ]
    )


def _errors(
    table: GemmTable, model: GemmModel, rows: list[int] | None = None, sites: list[tuple[int, int]] | None = None
) -> Floats:
    errors = []
    for i, j in sites or [(i, j) for i in range(len(table.n)) for j in range(len(table.k))]:
        for row in rows if rows is not None else range(len(table.m)):
            measured = table.latency_ns[row, i, j]
            if np.isfinite(measured):
                found = model.predict(int(table.m[row]), int(table.n[i]), int(table.k[j]))
                errors.append(found.duration_ns / measured - 1)
    return np.array(errors)


def _folds(table: GemmTable) -> list[list[tuple[int, int]]]:
    """Interior sites in five parts, no two neighbours in one part (i + 2 j modulo 5 colours the grid so)."""
    inside = [(i, j) for i in range(1, len(table.n) - 1) for j in range(1, len(table.k) - 1)]
    return [[(i, j) for i, j in inside if (i + 2 * j) % 5 == part] for part in range(5)]


if __name__ == "__main__":
    sys.exit(main())
