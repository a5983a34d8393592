"""Multi-head latent attention: what is taken out of the measured modules, and how a step of such a model is made."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hyperlapse.predictor.attention import AttentionModel, BatchTotals
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import KernelDatabase, package_root
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.latent import latent_tables
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import Operators
from hyperlapse.predictor.prediction import Coverage, UnsupportedModelError
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.shim.models import bundled_models

from .conftest import recipe

SHORT = 512


@pytest.fixture(scope="module")
def lite() -> ModelConfig:
    return ModelConfig.from_json(bundled_models()["deepseek-v2-lite"])


@pytest.fixture(scope="module")
def attention(database: KernelDatabase, device: DeviceSpec, lite: ModelConfig) -> AttentionModel:
    return AttentionModel(database, lite, device, short_prompt=SHORT)


def totals(sequences: str) -> BatchTotals:
    return BatchTotals.of(composition(sequences))


def composition(sequences: str) -> BatchComposition:
    """The batch of these sequences, outside of graphs."""
    return BatchComposition.parse(f"v1 graph=none tokens={1 << 20} rows=1 seqs={sequences}")


def test_decode_attention_beside_a_measurement_of_the_kernel_alone(
    database: KernelDatabase, device: DeviceSpec, lite: ModelConfig
) -> None:
    """Another engine's collection of FlashAttention 3 over latent vectors, which prices nothing."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = package_root() / "systems/data/h100_sxm/mla/sglang/0.5.14/generation_mla_perf.parquet"
    rows = parquet.read_table(path).to_pandas()
    rows = rows[(rows.num_heads == lite.heads) & (rows.kv_cache_dtype == "bfloat16")]
    alone = rows.groupby(["batch_size", "step"]).latency.median() * 1e6
    table, _ = latent_tables(database, lite, device)
    errors = []
    for row, batch in enumerate(table.batch.tolist()):
        for column, length in enumerate(table.length.tolist()):
            measured = alone.get((batch, length - 1))  # theirs counts the context without the new token
            if measured is not None and measured > 30_000 and np.isfinite(table.latency_ns[row, column]):
                errors.append(abs(table.latency_ns[row, column] / measured - 1))
    assert len(errors) > 60
    assert np.median(errors) < 0.04
    assert np.percentile(errors, 90) < 0.17


def test_no_attention_outruns_light(attention: AttentionModel, device: DeviceSpec, lite: ModelConfig) -> None:
    assert lite.latent is not None
    for count, context in ((1, 4096), (64, 2048), (256, 8192)):
        found = attention.predict_of(totals(f"1:{context}x{count}"))
        assert found.duration_ns >= device.light_ns(2.0 * lite.latent.cached * count * context, 0.0)
        assert found.coverage is Coverage.EXTRAPOLATED
    widths = lite.latent.nope + lite.latent.rope + lite.latent.value
    for new in (1024, 8192, 32768):
        operations = 2.0 * lite.heads * widths * new * (new + 1) / 2
        assert attention.predict_of(totals(f"{new}:0")).duration_ns >= device.light_ns(0.0, operations)


def test_short_prompts_share_the_kernel_of_decodes(attention: AttentionModel) -> None:
    assert attention.kernels(totals("1:500x4")) == 1
    assert attention.kernels(totals("1:500x4,512:0")) == 1
    assert attention.kernels(totals("1:500x4,513:0")) == 2
    assert attention.kernels(totals("300:0,4000:0")) == 2
    both = attention.predict_of(totals("1:500x4,4000:0")).duration_ns
    each = [attention.predict_of(totals(part)).duration_ns for part in ("1:500x4", "4000:0")]
    assert both == sum(each)


def test_other_latent_widths_are_refused(database: KernelDatabase, device: DeviceSpec, lite: ModelConfig) -> None:
    assert lite.latent is not None
    other = dataclasses.replace(lite, latent=dataclasses.replace(lite.latent, kv_rank=256))
    with pytest.raises(UnsupportedModelError, match="widths 256, 128, 64 and 128 was not measured"):
        AttentionModel(database, other, device)


@pytest.mark.parametrize(
    ("sequences", "absorbed", "made"),
    [("1:300x8", 8, 0), ("1:300x8,256:0", 264, 0), ("1:300x8,1024:0", 8, 1024), ("1024:2048", 0, 3072)],
)
def test_products_around_attention(
    database: KernelDatabase, device: DeviceSpec, lite: ModelConfig, sequences: str, absorbed: int, made: int
) -> None:
    predictor = StepPredictor(lite, device, database, dataclasses.replace(recipe(), latent_short_prompt=SHORT))
    step = predictor.predict(composition(sequences))
    operators = {operator.name: operator for operator in step.operators}
    assert ("q_absorb" in operators) == ("v_expand" in operators) == bool(absorbed)
    assert ("kv_b_proj" in operators) == ("key_concat" in operators) == bool(made)
    if absorbed:
        assert operators["q_absorb"].shape == f"16 x {absorbed} x 128 -> 512"
    if made:
        assert operators["kv_b_proj"].shape == f"{made} x 512 -> 4096"
    assert operators["experts"].count == operators["router"].count == lite.layers - 1
    assert operators["shared_down_proj"].count == lite.layers - 1
    assert operators["dense_down_proj"].count == 1
    assert operators["silu_mul"].count == lite.layers
    assert operators["attention"].count == operators["o_proj"].count == lite.layers


@pytest.mark.parametrize("rows", [1, 100, 8192])
def test_products_of_each_head_are_measured_ones(
    database: KernelDatabase, device: DeviceSpec, lite: ModelConfig, rows: int
) -> None:
    """Not those of one product as wide as all heads, which misses that each head's is small: 19 to 29 % in the median."""
    operators = Operators(lite, device, database)
    for name, (n, k) in operators.by_head.items():
        found = operators.matrix_by_head(name, rows)
        assert found.coverage is (Coverage.INTERPOLATED if rows == 100 else Coverage.MEASURED)
        assert found.duration_ns > operators.gemm.predict(rows, n, k, lite.heads).duration_ns
        assert operators.head_product(rows, n, k, lite.heads) == found
        assert operators.head_product(rows, n, k, lite.heads + 1) is None


def test_the_size_of_the_cache(lite: ModelConfig) -> None:
    """512 + 64 elements a token and layer, whatever the heads."""
    assert lite.kv_bytes_per_token == 27 * 576 * 2
