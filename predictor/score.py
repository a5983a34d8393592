"""How well measured kernels that were left out are predicted: `python -m hyperlapse.predictor.score`.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hyperlapse.predictor.attention import AttentionModel
from hyperlapse.predictor.composition import BatchComposition, SequenceGroup
from hyperlapse.predictor.database import AttentionTable, Floats, GemmTable, HeadConfig, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import DatabaseError, PredictorError


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
    parser.add_argument(
        "--xgboost", action="store_true", help="score gradient-boosted trees on the same held-out cells"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args(arguments)
    try:
        device = dataclasses.replace(DeviceSpec.named(options.gpu), graph_gap_ns=0)  # compare latencies as measured
        database = KernelDatabase.load(device.database_system)
    except PredictorError as error:
        print(f"score: {error}", file=sys.stderr)
        return 2
    scores: list[Score] = []
    for score in all_scores(device, database, xgboost=options.xgboost):
        scores.append(score)
        if not options.json:
            published = f"   published {score.published}" if score.published else ""
            figures = f"{score.median:6.2f} /{score.p90:6.2f} %  ({score.cells} cells)"
            print(f"{score.name:58} {figures}{published}", flush=True)
    if options.json:
        print(json.dumps([dataclasses.asdict(score) for score in scores], indent=2))
    return 0


def all_scores(device: DeviceSpec, database: KernelDatabase, *, xgboost: bool = False) -> Iterator[Score]:
    """Every figure, one after the other (a minute together)."""
    gemm = database.gemm("bfloat16")
    yield score("GEMM, one m held out", gemm_rows_held_out(gemm, device), "4.87 / 15.6")
    yield score("GEMM, one (n, k) site held out", gemm_sites_held_out(gemm, device), "3.63 / 14.7")
    yield from replicate(gemm, database.system)
    if xgboost:
        yield score("GEMM, one site in five held out, interpolation", gemm_folds(gemm, device))
        yield score("GEMM, one site in five held out, xgboost", gemm_folds_xgboost(gemm, device))
    yield score(
        "decode attention, one length held out", attention_held_out(database, device, "decode", "length"), "1.1"
    )
    yield score("decode attention, one batch size held out", attention_held_out(database, device, "decode", "batch"))
    yield score(
        "prefill attention, one length held out", attention_held_out(database, device, "prefill", "length"), "2.0 / 9.7"
    )
    yield score("prefill attention, one batch size held out", attention_held_out(database, device, "prefill", "batch"))
    yield score("prefill attention, second half over the first half", chunks(database, device))


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


def replicate(table: GemmTable, system: str) -> Iterator[Score]:
    """The table against another engine's collection on the same product: the scatter of measuring itself."""
    try:
        other = KernelDatabase.load(system, engine="trtllm").gemm("bfloat16")
    except DatabaseError:
        return
    m, n, k = (np.intersect1d(*axes) for axes in ((table.m, other.m), (table.n, other.n), (table.k, other.k)))
    picked = [
        each.latency_ns[np.ix_(np.searchsorted(each.m, m), np.searchsorted(each.n, n), np.searchsorted(each.k, k))]
        for each in (table, other)
    ]
    yield score("GEMM, measured by vLLM's and TensorRT-LLM's collector", (picked[0] / picked[1] - 1).ravel())


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
    for config in database.decode_configs() if decode else database.prefill_configs():
        if config.head_dim != 128 or config.kv_dtype != "bfloat16" or config not in database.decode_configs():
            continue
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


def chunks(database: KernelDatabase, device: DeviceSpec) -> Floats:
    """The second half of a prompt as a chunk over the first half, against the measured whole less the measured half.

    The rows of the second half do exactly that work; only the launch (the shortest measured prefill) is paid twice.
    Left out are chunks that fill less than two waves of thread blocks: inside a whole prompt those run beside others.
    """
    errors = []
    for config in database.prefill_configs():
        if config.head_dim != 128 or config.kv_dtype != "bfloat16" or config not in database.decode_configs():
            continue
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
