"""Measured tables of one GPU product carried over to another that nobody measured, by what both can do.

A latency is a fixed part (the table's shortest kernel) and work. How the work scales depends on what bounds it:

* near the rates that the measured product reaches (its table's best arithmetic rate; its bandwidth over operands far
  larger than the L2 cache), by the ratio of the two products' times for the same bytes and operations at those rates.
  The target is taken to reach the same shares of its peaks, unless a rate is published: a card that its power limit slows
  down reaches less of its peak than one with half the tensor rate;
* far below them (less than half), and for a KV cache that the L2 holds, it is a chain of instructions and not bandwidth:
  by the ratio of multiprocessors and clocks. In between both ratios are mixed.

The fixed part stays, because launching costs the same on all. How far that is off is scored between measured products
(`hyperlapse predict --score --carried-over-from`). Whatever comes out of it is called extrapolated, and never lies below
the target's own speed-of-light time.

It must never be used for a product that has tables of its own. Rejected: roofline alone. It knows nothing of the shapes
at which libraries change kernels, and those are alike between products of one architecture.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hyperlapse.predictor.database import (
    AttentionTable,
    ExpertConfig,
    ExpertTable,
    Floats,
    GemmTable,
    HeadConfig,
    KernelDatabase,
)
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage
from hyperlapse.predictor.quantization import weight_bytes_of

_ELEMENT_BYTES = 2
_KV_BYTES = {"bfloat16": 2, "fp8": 1}
# Stated choices, made while looking at the pairs of products in docs/durations.md: their errors are in-sample for these two.
_BUSY = 0.5  # share of the reached rates from which a kernel counts as bound by them
_BEYOND_L2 = 4  # times the L2 size from which operands are streamed from memory


class TransferredDatabase(KernelDatabase):
    """The tables of `source` as they would look on `target`."""

    def __init__(self, tables: KernelDatabase, source: DeviceSpec, target: DeviceSpec) -> None:
        super().__init__(tables.system, tables.engine_version, {})
        self.notes = (*tables.notes, f"kernels measured on {source.name}, carried over to {target.name}")
        self._tables, self._source, self._target = tables, source, target
        flops, bandwidth = reached_rates(tables.gemm("bfloat16"), source)
        share = min(flops / source.bf16_flops_per_s, 1.0)
        rate = target.reached_bf16_flops_per_s or round(target.bf16_flops_per_s * share)
        bandwidth_share = min(bandwidth / source.memory_bandwidth_bytes_per_s, 1.0)
        self._from = dataclasses.replace(
            source, bf16_flops_per_s=round(flops), memory_bandwidth_bytes_per_s=round(bandwidth)
        )
        self._to = dataclasses.replace(
            target,
            bf16_flops_per_s=rate,
            memory_bandwidth_bytes_per_s=round(target.memory_bandwidth_bytes_per_s * bandwidth_share),
        )
        self._clock_ratio = (source.multiprocessors * source.multiprocessor_l2_bytes_per_s) / (
            target.multiprocessors * target.multiprocessor_l2_bytes_per_s
        )

    def gemm_dtypes(self) -> tuple[str, ...]:
        return self._tables.gemm_dtypes()

    def gemm(self, dtype: str = "bfloat16") -> GemmTable:
        if dtype not in self._gemm:
            table = self._tables.gemm(dtype)
            m, n, k = (axis.astype(float) for axis in np.meshgrid(table.m, table.n, table.k, indexing="ij"))
            element_bytes = weight_bytes_of(dtype) or _ELEMENT_BYTES
            size_bytes = element_bytes * (n * k + m * k) + _ELEMENT_BYTES * m * n
            operations = element_bytes * m * n * k  # elements of one byte are multiplied at twice the rate
            latency_ns = self._carry(table.latency_ns, size_bytes, operations)
            self._gemm[dtype] = GemmTable(table.m, table.n, table.k, latency_ns, Coverage.EXTRAPOLATED)
        return self._gemm[dtype]

    def prefill_configs(self) -> tuple[HeadConfig, ...]:
        return self._tables.prefill_configs()

    def decode_configs(self) -> tuple[HeadConfig, ...]:
        return self._tables.decode_configs()

    def prefill(self, config: HeadConfig) -> AttentionTable:
        return self._attend("prefill", config, self._tables.prefill(config))

    def decode(self, config: HeadConfig) -> AttentionTable:
        return self._attend("decode", config, self._tables.decode(config))

    def expert_configs(self, ranks: int = 1) -> tuple[ExpertConfig, ...]:
        return self._tables.expert_configs(ranks)

    def experts(self, config: ExpertConfig) -> ExpertTable:
        if config not in self._experts:
            table = self._tables.experts(config)
            size_bytes, operations = expert_work(config, table.tokens.astype(float))
            # The bytes are those of all experts that could be reached: a ratio, but no bound.
            latency_ns = self._carry(table.latency_ns, size_bytes, operations, bounds=False)
            self._experts[config] = ExpertTable(table.tokens, latency_ns, Coverage.EXTRAPOLATED)
        return self._experts[config]

    def _attend(self, phase: str, config: HeadConfig, table: AttentionTable) -> AttentionTable:
        if (phase, config) not in self._attention:
            batch, length = table.batch[:, None].astype(float), table.length[None, :].astype(float)
            kv_bytes = 2 * config.kv_heads * config.head_dim * _KV_BYTES[config.kv_dtype] * batch * length
            width = config.heads * config.head_dim
            if phase == "decode":
                size_bytes, operations = kv_bytes, 4.0 * width * batch * length
            else:
                size_bytes = kv_bytes + 2 * _ELEMENT_BYTES * width * batch * length
                operations = 4.0 * width * batch * length * (length + 1) / 2
            latency_ns = self._carry(table.latency_ns, size_bytes, operations, cached=True)
            carried = AttentionTable(table.batch, table.length, latency_ns, Coverage.EXTRAPOLATED)
            self._attention[phase, config] = carried
        return self._attention[phase, config]

    def _carry(
        self, latency_ns: Floats, size_bytes: Any, operations: Any, *, cached: bool = False, bounds: bool = True
    ) -> Floats:
        """cached: operands that the L2 holds are read from there; bounds: size_bytes must be moved, whatever happens."""
        fixed_ns = float(np.nanmin(latency_ns))
        here = np.where(cached & (size_bytes <= self._source.l2_cache_bytes), 0.0, size_bytes)
        there = np.where(cached & (size_bytes <= self._target.l2_cache_bytes), 0.0, size_bytes)
        from_ns, to_ns = light_ns(self._from, here, operations), light_ns(self._to, there, operations)
        busy = np.clip(from_ns / latency_ns / _BUSY, 0.0, 1.0)
        ratio = busy * to_ns / np.maximum(from_ns, 1e-9) + (1.0 - busy) * self._clock_ratio
        least_ns = light_ns(self._target, there if bounds else 0.0, operations)
        carried: Floats = np.maximum(fixed_ns + (latency_ns - fixed_ns) * ratio, np.maximum(least_ns, to_ns * bounds))
        return carried


def reached_rates(table: GemmTable, device: DeviceSpec) -> tuple[float, float]:
    """The highest arithmetic rate of a table's products, and the highest bandwidth of those far larger than the L2."""
    m, n, k = (axis.astype(float) for axis in np.meshgrid(table.m, table.n, table.k, indexing="ij"))
    flops = np.nanmax(2.0 * m * n * k / table.latency_ns) * 1e9
    size_bytes = _ELEMENT_BYTES * (n * k + m * (n + k))
    far = np.isfinite(table.latency_ns) & (size_bytes > _BEYOND_L2 * device.l2_cache_bytes)
    if not far.any():
        return float(flops), device.memory_bandwidth_bytes_per_s * device.memory_bandwidth_share
    return float(flops), float(np.max(size_bytes[far] / table.latency_ns[far])) * 1e9


def light_ns(device: DeviceSpec, size_bytes: Any, operations: Any) -> Any:
    """`DeviceSpec.light_ns` for arrays."""
    return np.maximum(
        size_bytes * 1e9 / device.memory_bandwidth_bytes_per_s, operations * 1e9 / device.bf16_flops_per_s
    )


def expert_work(config: ExpertConfig, tokens: Any) -> tuple[Any, Any]:
    """Bytes and operations of a layer of experts: the weights of the experts that tokens can reach, read once. Elements
    of one byte are multiplied at twice the rate: their operations count half.
    """
    reached = np.minimum(tokens * config.active, config.experts)
    element_bytes = weight_bytes_of(config.dtype) or _ELEMENT_BYTES
    weights_bytes = 3.0 * element_bytes * reached * config.intermediate * config.hidden
    size_bytes = weights_bytes + 2.0 * _ELEMENT_BYTES * tokens * config.hidden
    rate = _ELEMENT_BYTES / element_bytes
    return size_bytes, 6.0 * tokens * config.active * config.intermediate * config.hidden / rate
