"""Multi-head latent attention (MLA): its kernels' tables out of the measured whole modules.

Measured: all of DeepSeek-V3's attention module (projections, norms, rotation, cache write, attention) for 1 to 128 heads, in
uniform batches. Wanted: attention alone, because other models of the kind have other projections around the same heads and
the same latent vector (512 + 64). So

* decoding: the module over a context less the module over the shortest one, plus the shortest attention kernel for each
  wave of thread blocks. All but attention cancels, because it does not depend on the context. Beside SGLang's
  measurements of the same kernel alone (FlashAttention 3 on an H100, 16 heads) the median difference is 3 % (nine in ten
  below 15 %) from 30 us on, and these are 16 % lower below that;
* prefill: the module less its matrix products (priced as everywhere else) and the bytes of its small kernels. What remains
  of short prompts is noise and has the shortest attention kernel as its floor.

Everything that comes out of here is called extrapolated. Another latent width than the measured one is refused: the
kernels are made for it.
"""

from __future__ import annotations

import math

import numpy as np

from hyperlapse.predictor.database import AttentionTable, Floats, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.models import LatentShape, ModelConfig
from hyperlapse.predictor.prediction import Coverage, DatabaseError, UnsupportedModelError

MEASURED = LatentShape(q_rank=1536, kv_rank=512, nope=128, rope=64, value=128)
"""DeepSeek-V3's shape, the measured one."""
_MEASURED_HIDDEN = 7168
_ELEMENT_BYTES = 2
_HEADS_OF_A_TILE = 64  # queries of one token that a thread block of FlashAttention 3 takes: all share their keys


def latent_tables(
    database: KernelDatabase, model: ModelConfig, device: DeviceSpec
) -> tuple[AttentionTable, AttentionTable]:
    """(decode, prefill) of the attention kernels alone. Raises UnsupportedModelError for what nobody measured."""
    assert model.latent is not None
    shape = model.latent
    if (shape.kv_rank, shape.nope, shape.rope, shape.value) != (
        MEASURED.kv_rank,
        MEASURED.nope,
        MEASURED.rope,
        MEASURED.value,
    ):
        raise UnsupportedModelError(
            f"{model.name}: latent attention of widths {shape.kv_rank}, {shape.nope}, {shape.rope} and {shape.value} was not"
            f" measured ({MEASURED.kv_rank}, {MEASURED.nope}, {MEASURED.rope} and {MEASURED.value} was)"
        )
    try:
        heads = _nearest(database.latent_heads(), model.heads)
        whole_decode, whole_prefill = database.latent_decode(heads), database.latent_prefill(heads)
    except DatabaseError as error:
        raise UnsupportedModelError(f"{model.name}: {error}") from error
    scale = model.heads / heads
    floor_ns = shortest_attention_ns(database)
    waves = whole_decode.batch * -(-heads // _HEADS_OF_A_TILE) / device.multiprocessors
    least_ns = floor_ns * np.maximum(waves, 1.0)[:, None]
    decode_ns = whole_decode.latency_ns - whole_decode.latency_ns[:, :1] + least_ns
    decode = AttentionTable(
        whole_decode.batch, whole_decode.length, np.maximum(decode_ns, floor_ns), Coverage.EXTRAPOLATED
    )
    core_ns = whole_prefill.latency_ns - _around_ns(whole_prefill, heads, database, device)
    prefill_ns = scale * (core_ns - core_ns[0, 0]) + floor_ns
    prefill = AttentionTable(
        whole_prefill.batch, whole_prefill.length, np.maximum(prefill_ns, floor_ns), Coverage.EXTRAPOLATED
    )
    return decode, prefill


def shortest_attention_ns(database: KernelDatabase) -> float:
    """The shortest decode attention of any head layout of this product: a kernel and the joining of its splits."""
    configs = [config for config in database.decode_configs() if config.kv_dtype == "bfloat16"]
    return min(float(np.nanmin(database.decode(config).latency_ns)) for config in configs)


def _nearest(measured: tuple[int, ...], heads: int) -> int:
    return min(measured, key=lambda each: (abs(math.log(each / heads)), -each))


def _around_ns(table: AttentionTable, heads: int, database: KernelDatabase, device: DeviceSpec) -> Floats:
    """What the measured module does beside attention over all tokens of a prefill, by (batch, length)."""
    gemm = GemmModel(database.gemm("bfloat16"), device)
    shape = MEASURED
    products = (
        (shape.q_rank + shape.cached, _MEASURED_HIDDEN),
        (heads * (shape.nope + shape.rope), shape.q_rank),
        (heads * (shape.nope + shape.value), shape.kv_rank),
        (_MEASURED_HIDDEN, heads * shape.value),
    )
    # Both norms, rotation of each head and of the shared key, cache write, and keys put together from their two parts.
    elements = 2 * (shape.q_rank + shape.kv_rank) + 2 * (heads + 1) * shape.rope + 2 * shape.cached
    elements += 2 * heads * (shape.nope + shape.rope)
    kernels = len(products) + 5
    around = np.zeros(table.latency_ns.shape)
    for row, batch in enumerate(table.batch.tolist()):
        for column, length in enumerate(table.length.tolist()):
            tokens = batch * length
            products_ns = sum(gemm.predict(tokens, n, k).duration_ns for n, k in products)
            small_ns = 5 * device.kernel_floor_ns + device.stream_ns(tokens * elements * _ELEMENT_BYTES)
            around[row, column] = products_ns + small_ns + kernels * device.graph_gap_ns
    return around
