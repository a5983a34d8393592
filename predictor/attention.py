"""Attention from measured uniform batches, and the rules that carry those over to the batches an engine really makes.

Measured: `batch` sequences of one length, all prefill without context or all decode. Wanted: any mixture. The rules,
each checked by `score` where the tables allow it:

* decode between measured batch sizes: both neighbours with as many KV tokens in all (longer contexts for fewer
  sequences), because those decide; with unequal contexts: the uniform batch of the same count and the mean context;
* prefill between measured lengths: the ratio to fixed cost, bytes and operations is interpolated, not the latency; with
  unequal lengths: each sequence's share of the uniform batch of its length;
* prefill over past context: the measured prefill of the new tokens plus the rectangle `new x context`, at the rate of
  the rectangle in measured prefills (a whole prompt less its two halves), over the waves of thread blocks it fills;
  never less than decoding over that context;
* prefill and decode in one step: a kernel each where the product has it so. Else one kernel runs over both; its duration
  is taken as the sum of the two parts less one kernel's floor. Overlap of decode's streaming with prefill's arithmetic
  would make it shorter. Where that kernel does not split keys (FlashAttention 2), a thread block walks over the whole
  context of its sequence with a tile of queries that is mostly empty: decodes, and chunks over past context, then cost
  those tiles at the rate of the rectangle.

It must never return less than the KV bytes at the peak bandwidth or the operations at the peak rate. In the tables a KV
cache below the L2 size is read again and again and partly comes from there; in a real step it would not.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy, ErrorRatio
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import AttentionTable, HeadConfig, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.latent import latent_tables
from hyperlapse.predictor.models import LatentShape, ModelConfig
from hyperlapse.predictor.prediction import Coverage, Prediction, UnsupportedModelError

DECODES, PREFILLS = "decodes", "prefills"
"""The parts of a batch that kernels of their own may work on."""

_QUERY_TILE = 128  # rows of queries that a thread block of FlashAttention 3 takes (head_dim 128, Hopper)

# Share of the peak that long prefills reach in the tables. Only a normalisation: it cancels at measured shapes.
_PREFILL_EFFICIENCY = 0.6

_LONG = 4096  # tokens from which a prompt's rectangle is long enough to be told from noise

_BEYOND_L2 = 4  # times the L2 size from which a KV cache is streamed from memory

_CACHE_LIMIT = 65536


@dataclass(frozen=True, slots=True)
class _Grid:
    """A complete (batch, length) grid; `measured` marks cells that a GPU filled."""

    batch: list[int]
    length: list[int]
    latency_ns: list[list[float]]
    measured: list[list[bool]]


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """A batch as attention sees it: decodes with the sum of their contexts, prefills as (new, context, count).

    uniform: every decode has the same context.
    """

    decodes: int
    contexts: int
    uniform: bool
    prefills: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, batch: BatchComposition) -> BatchTotals:
        """Adds a batch up, once a step."""
        decodes, contexts, uniform, first = 0, 0, True, -1
        prefills = []
        for group in batch.groups:
            if group.new == 1:
                count, context = group.count, group.context
                if first < 0:
                    first = context
                elif context != first:
                    uniform = False
                decodes += count
                contexts += context * count
            else:
                prefills.append((group.new, group.context, group.count))
        return cls(decodes, contexts, uniform, tuple(prefills))

    @property
    def empty(self) -> bool:
        return not self.decodes and not self.prefills

    @property
    def shape(self) -> str:
        """What attention works on, in a few words."""
        words = []
        if self.prefills:
            sequences = sum(count for _, _, count in self.prefills)
            new_tokens = sum(new * count for new, _, count in self.prefills)
            words.append(f"prefill {sequences} seqs, {new_tokens} tokens")
        if self.decodes:
            words.append(f"decode {self.decodes} seqs, mean context {self.contexts // self.decodes}")
        return "; ".join(words) or "no sequence"


class AttentionModel:
    """Attention of one layer of one model on one device."""

    def __init__(
        self,
        database: KernelDatabase,
        model: ModelConfig,
        device: DeviceSpec,
        *,
        launches: int = 2,
        short_prompt: int = 0,
        accuracy: Accuracy = accuracies.DEFAULT,
    ) -> None:
        """launches: kernels of one layer's attention; the gaps between them are inside each measured figure;
        short_prompt: longest prompt that latent attention computes in one kernel with decodes.
        """
        self._short = short_prompt if model.latent is not None else 0
        self._launches = launches
        self._accuracy = accuracy
        self._device = device
        self._model = model
        self.separate = bool(device.separate_attention) or model.latent is not None
        if model.latent is not None:
            self._of_latent(database, model, model.latent)
        else:
            self._of_heads(database, model)
        self._floor_ns = min(self._prefill.latency_ns[0][0], self._decode.latency_ns[0][0])
        self._rectangle_rate = self._measured_rectangle_rate()
        self._cache: dict[tuple[float, ...], tuple[float, Coverage]] = {}

    def _of_heads(self, database: KernelDatabase, model: ModelConfig) -> None:
        """Every head has keys and values of its own, or shares them with some others."""
        device = self._device
        wanted = HeadConfig(model.heads, model.kv_heads, model.head_dim, model.kv_dtype)
        self._kv_bytes = 2 * model.kv_width * model.kv_dtype_bytes  # keys and values of one token
        self._prompt_bytes = 2 * model.q_width * model.dtype_bytes + self._kv_bytes
        self._pair_operations = 4.0 * model.q_width  # one query against one key: two products of head_dim
        config, decode_scale = _nearest(database.decode_configs(), wanted, decode=True)
        self._exact = config == wanted
        decode_table = database.decode(config)
        self._decode = _decode_grid(decode_table, self._kv_bytes / decode_scale, decode_scale, device)
        config, prefill_scale = _nearest(database.prefill_configs(), wanted, decode=False)
        self._exact = self._exact and config == wanted
        prefill_table = database.prefill(config)
        self._prefill = _prefill_grid(prefill_table, prefill_scale)
        self._least_coverage = max(decode_table.coverage, prefill_table.coverage)
        if not self._exact:
            self._least_coverage = max(self._least_coverage, Coverage.EXTRAPOLATED)

    def _of_latent(self, database: KernelDatabase, model: ModelConfig, shape: LatentShape) -> None:
        """Decodes attend to the latent vectors, which all heads share; prompts to keys and values made of them."""
        decode_table, prefill_table = latent_tables(database, model, self._device)
        self._kv_bytes = shape.cached * model.kv_dtype_bytes
        widths = model.heads * (2 * shape.nope + 2 * shape.rope + 2 * shape.value)  # queries, keys, values, outputs
        self._prompt_bytes = widths * model.dtype_bytes
        self._pair_operations = 2.0 * model.heads * (shape.nope + shape.rope + shape.value)
        self._decode = _decode_grid(decode_table, self._kv_bytes, 1.0, self._device)
        self._prefill = _prefill_grid(prefill_table, 1.0)
        self._least_coverage = Coverage.EXTRAPOLATED

    def predict(self, batch: BatchComposition) -> Prediction:
        """The attention of one layer for a whole step."""
        return self.predict_of(BatchTotals.of(batch))

    def kernels(self, totals: BatchTotals) -> int:
        """How many attention kernels compute such a batch: two where decodes and prefills have one each."""
        decodes, prefills = self.part(totals, DECODES), self.part(totals, PREFILLS)
        return 2 if self.separate and not decodes.empty and not prefills.empty else 1

    def part(self, totals: BatchTotals, name: str) -> BatchTotals:
        """What a kernel for decodes or one for prefills computes (DECODES, PREFILLS)."""
        long = self.long_prompts(totals)
        if name == PREFILLS:
            return BatchTotals(0, 0, True, long)
        short = tuple(each for each in totals.prefills if each not in long)
        return BatchTotals(totals.decodes, totals.contexts, totals.uniform, short)

    def long_prompts(self, totals: BatchTotals) -> tuple[tuple[int, int, int], ...]:
        """Prefills that are not computed in one kernel with decodes."""
        return tuple(each for each in totals.prefills if each[0] > self._short)

    def predict_of(self, totals: BatchTotals) -> Prediction:
        """As predict, of a batch that was added up already."""
        if self.kernels(totals) == 2:
            return _sum_of(self.predict_of(self.part(totals, DECODES)), self.predict_of(self.part(totals, PREFILLS)))
        decodes, contexts, uniform, prefills = totals.decodes, totals.contexts, totals.uniform, totals.prefills
        pairs = sum((new * context + new * (new + 1) // 2) * count for new, context, count in prefills)
        latency_ns, coverage = self._floor_ns, self._least_coverage
        error = self._accuracy.of(accuracies.DECODE, coverage)
        if decodes:
            latency_ns, decode_coverage = self.decode_ns(decodes, contexts / decodes)
            coverage = max(coverage, decode_coverage, Coverage.MEASURED if uniform else Coverage.INTERPOLATED)
            error = self._accuracy.of(accuracies.DECODE, coverage)
        if prefills:
            prefill_ns, prefill_coverage = self._prefill_ns(prefills)
            coverage = max(coverage, prefill_coverage, Coverage.INTERPOLATED if decodes else Coverage.MEASURED)
            prefill_error = self._accuracy.of(accuracies.PREFILL, coverage)
            if decodes:
                latency_ns = max(latency_ns, self._floor_ns + self._unsplit_ns(1, contexts, decodes))
                error = _weighted(error, latency_ns, prefill_error, prefill_ns)
                latency_ns += prefill_ns - self._floor_ns
            else:
                latency_ns, error = prefill_ns, prefill_error
        light_ns = self._device.light_ns(self._kv_bytes * contexts, self._pair_operations * pairs)
        # The gaps after its launches are inside each measured figure; the step adds gaps itself.
        latency_ns -= self._launches * self._device.graph_gap_ns
        return Prediction(round(max(latency_ns, light_ns)), coverage, error.median, error.p90)

    def decode_ns(self, count: int, context: float) -> tuple[float, Coverage]:
        """A uniform decode batch: latency as measured (one gap inside) and its coverage."""
        key = (count, context)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            found = self._cache[key] = self._decode_at(count, context)
        return found

    def prefill_ns(self, count: int, new: int) -> tuple[float, Coverage]:
        """A uniform prefill batch without context: latency as measured (one gap inside) and its coverage."""
        grid = self._prefill
        first, second, share = _position(grid.batch, count)
        low, high, weight = _position(grid.length, new, logarithmic=True)
        coverage = Coverage.INTERPOLATED if share or weight else Coverage.MEASURED
        if count > grid.batch[-1] or new > grid.length[-1]:
            coverage = Coverage.EXTRAPOLATED
        latency_ns = 0.0
        for row, part in ((first, 1.0 - share), (second, share)):
            if not part:
                continue
            ratio, bounds = 0.0, []
            for column, other in ((low, 1.0 - weight), (high, weight)):
                if other:
                    plain_ns = self._plain_prefill_ns(grid.batch[row], grid.length[column])
                    ratio += math.log(grid.latency_ns[row][column] / plain_ns) * other
                    bounds.append(grid.latency_ns[row][column])
                    if not grid.measured[row][column]:
                        coverage = Coverage.EXTRAPOLATED
            row_ns = math.exp(ratio) * self._plain_prefill_ns(grid.batch[row], new)
            if new <= grid.length[-1]:  # more tokens never take less time than fewer
                row_ns = min(max(row_ns, min(bounds)), max(bounds))
            latency_ns += row_ns * part
        return latency_ns * max(count / grid.batch[-1], 1.0), coverage

    def _plain_prefill_ns(self, count: int, new: int) -> float:
        """Fixed cost, bytes of queries, outputs, keys and values, and operations: what a latency is compared with."""
        size_bytes = count * new * self._prompt_bytes
        operations = self._pair_operations * count * new * (new + 1) / 2
        return (
            self._prefill.latency_ns[0][0]
            + self._device.stream_ns(size_bytes)
            + operations * 1e9 / (self._device.bf16_flops_per_s * _PREFILL_EFFICIENCY)
        )

    def _decode_at(self, count: int, context: float) -> tuple[float, Coverage]:
        grid = self._decode
        first, second, share = _position(grid.batch, count)
        if not share:
            latency_ns, coverage = self._decode_row(first, context)
            if count > grid.batch[-1]:
                latency_ns, coverage = latency_ns * count / grid.batch[-1], Coverage.EXTRAPOLATED
            return latency_ns, coverage
        latency_ns, coverage = 0.0, Coverage.INTERPOLATED
        for row, part in ((first, 1.0 - share), (second, share)):
            row_ns, row_coverage = self._decode_row(row, context * count / grid.batch[row])
            latency_ns += row_ns * part
            coverage = max(coverage, row_coverage)
        return latency_ns, coverage

    def _decode_row(self, row: int, context: float) -> tuple[float, Coverage]:
        """A measured batch size over any context."""
        grid = self._decode
        low, high, weight = _position(grid.length, context)
        latency = grid.latency_ns[row]
        if context > grid.length[-1]:
            more_bytes = (context - grid.length[-1]) * grid.batch[row] * self._kv_bytes
            return latency[-1] + self._device.stream_ns(more_bytes), Coverage.EXTRAPOLATED
        if not (grid.measured[row][low] and grid.measured[row][high]):
            coverage = Coverage.EXTRAPOLATED
        elif weight or context < grid.length[0]:  # below the shortest: a floor, not a trend
            coverage = Coverage.INTERPOLATED
        else:
            coverage = Coverage.MEASURED
        return latency[low] * (1.0 - weight) + latency[high] * weight, coverage

    def _prefill_ns(self, prefills: tuple[tuple[int, int, int], ...]) -> tuple[float, Coverage]:
        sequences = sum(count for _, _, count in prefills)
        coverage = Coverage.MEASURED if len(prefills) == 1 else Coverage.INTERPOLATED
        latency_ns, pairs, blocks, cached, unsplit_ns = 0.0, 0, 0, 0, 0.0
        for new, context, count in prefills:
            share_ns, share_coverage = self.prefill_ns(sequences, new)
            latency_ns += share_ns * count / sequences
            coverage = max(coverage, share_coverage)
            if context:
                pairs += new * context * count
                blocks += -(-new // _QUERY_TILE) * self._model.heads * count
                cached += context * count
                unsplit_ns += self._unsplit_ns(new, context * count, count)
        if pairs:
            rectangle_ns = self._pair_operations * pairs * 1e9 / self._rectangle_rate
            latency_ns += max(rectangle_ns / _occupancy(blocks, self._device.multiprocessors), unsplit_ns)
            # However few the new tokens, the context has to be read as a decode would read it.
            decode_ns, _ = self.decode_ns(sequences, cached / sequences)
            latency_ns = max(latency_ns, decode_ns)
            coverage = Coverage.EXTRAPOLATED
        return latency_ns, coverage

    def _unsplit_ns(self, new: int, contexts: int, count: int) -> float:
        """Walking over the contexts (their sum) of `count` sequences with whole tiles of queries; 0 where keys are split."""
        rows = self._device.unsplit_tile_rows
        if not rows:
            return 0.0
        tiles = -(-new // rows)
        blocks = tiles * self._model.heads * count
        operations = self._pair_operations * tiles * rows * contexts
        return operations * 1e9 / self._rectangle_rate / min(blocks / self._device.multiprocessors, 1.0)

    def _measured_rectangle_rate(self) -> float:
        """Operations per second of the rectangle `half x half` that a long prompt is more than its two halves."""
        grid = self._prefill
        rates = []
        for row, batch in enumerate(grid.batch):
            for column, length in enumerate(grid.length):
                half = bisect_left(grid.length, length // 2)
                if length < _LONG or grid.length[half] * 2 != length or not grid.measured[row][column]:
                    continue
                latency = grid.latency_ns[row]
                rectangle_ns = latency[column] - 2 * latency[half] + grid.latency_ns[0][0]
                rates.append(self._pair_operations * batch * (length // 2) ** 2 * 1e9 / rectangle_ns)
        if not rates:
            raise ValueError(f"a prefill attention table without lengths of {_LONG} and more")
        return float(np.median(rates))


def _sum_of(one: Prediction, other: Prediction) -> Prediction:
    """Two kernels, one after the other."""
    error = _weighted(
        ErrorRatio(one.error_ratio, one.error90_ratio),
        max(one.duration_ns, 1),
        ErrorRatio(other.error_ratio, other.error90_ratio),
        max(other.duration_ns, 1),
    )
    coverage = max(one.coverage, other.coverage)
    return Prediction(one.duration_ns + other.duration_ns, coverage, error.median, error.p90)


def _weighted(one: ErrorRatio, one_ns: float, other: ErrorRatio, other_ns: float) -> ErrorRatio:
    share = one_ns / (one_ns + other_ns)
    return ErrorRatio(
        one.median * share + other.median * (1 - share),
        one.p90 * share + other.p90 * (1 - share),
    )


def _occupancy(blocks: int, multiprocessors: int) -> float:
    """Share of the multiprocessors that equal thread blocks keep busy over whole waves. Fewer blocks than
    multiprocessors are split along the keys by FlashAttention 3.
    """
    if blocks < multiprocessors:
        return blocks * (multiprocessors // blocks) / multiprocessors
    waves = blocks / multiprocessors
    return waves / math.ceil(waves)


def _position(axis: list[int], value: float, *, logarithmic: bool = False) -> tuple[int, int, float]:
    """Neighbours on an axis and the weight of the upper one; outside, the edge itself."""
    if value <= axis[0]:
        return 0, 0, 0.0
    if value >= axis[-1]:
        return len(axis) - 1, len(axis) - 1, 0.0
    high = bisect_right(axis, value)
    low = high - 1
    if axis[low] == value:
        return low, low, 0.0
    if logarithmic:
        return low, high, math.log(value / axis[low]) / math.log(axis[high] / axis[low])
    return low, high, (value - axis[low]) / (axis[high] - axis[low])


def _decode_grid(table: AttentionTable, kv_bytes: float, scale: float, device: DeviceSpec) -> _Grid:
    """Cells beyond the measured ones go on at the bandwidth that the table reaches with KV caches far beyond the L2."""
    latency = table.latency_ns
    size_bytes = table.batch[:, None] * table.length[None, :] * kv_bytes
    far = np.isfinite(latency) & (size_bytes > _BEYOND_L2 * device.l2_cache_bytes)
    if far.any():
        reached = float(np.max(size_bytes[far] / latency[far]))  # bytes per ns
    else:
        reached = device.memory_bandwidth_bytes_per_s * device.memory_bandwidth_share / 1e9
    rows, marks = [], []
    for row, batch in enumerate(table.batch.tolist()):
        values = latency[row].copy()
        measured = ~np.isnan(values)
        last = None
        for column, length in enumerate(table.length.tolist()):
            if measured[column]:
                last = column
            elif last is not None:
                more = batch * (length - int(table.length[last])) * kv_bytes
                values[column] = values[last] + more / reached
        if last is None or np.isnan(values).any():
            raise ValueError("a decode attention table with a hole at short contexts")
        rows.append((values * scale).tolist())
        marks.append(measured.tolist())
    return _Grid(table.batch.tolist(), table.length.tolist(), rows, marks)


def _prefill_grid(table: AttentionTable, scale: float) -> _Grid:
    """Cells beyond the measured ones: twice the sequences take twice the time of the largest measured batch."""
    latency = table.latency_ns.copy()
    measured = ~np.isnan(latency)
    for column in range(latency.shape[1]):
        rows = np.flatnonzero(measured[:, column])
        if not len(rows) or rows[0] != 0:
            raise ValueError("a prefill attention table with a hole at small batches")
        for row in range(latency.shape[0]):
            if not measured[row, column]:
                last = rows[bisect_left(rows.tolist(), row) - 1]
                latency[row, column] = latency[last, column] * table.batch[row] / table.batch[last]
    return _Grid(table.batch.tolist(), table.length.tolist(), (latency * scale).tolist(), measured.tolist())


def _nearest(configs: tuple[HeadConfig, ...], wanted: HeadConfig, *, decode: bool) -> tuple[HeadConfig, float]:
    """The measured head layout to use and what its latency is multiplied with (1.0 for the wanted one itself).

    Another layout of the same head size scales with what dominates: KV bytes for decode, query heads for prefill.
    """
    if wanted in configs:
        return wanted, 1.0
    same = [config for config in configs if (config.head_dim, config.kv_dtype) == (wanted.head_dim, wanted.kv_dtype)]
    if not same:
        measured = sorted({config.head_dim for config in configs})
        raise UnsupportedModelError(
            f"attention with head_dim {wanted.head_dim} and a {wanted.kv_dtype} KV cache was not measured"
            f" (head sizes with tables: {', '.join(map(str, measured))})"
        )
    nearest = min(
        same,
        key=lambda config: (
            abs(math.log(config.heads / wanted.heads)) + abs(math.log(config.kv_heads / wanted.kv_heads)),
            config,
        ),
    )
    return nearest, (wanted.kv_heads / nearest.kv_heads if decode else wanted.heads / nearest.heads)
