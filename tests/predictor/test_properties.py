"""What must hold for every bundled model on every product: more work takes longer, nothing outruns light, sums add up."""

from __future__ import annotations

import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlapse.predictor.composition import BatchComposition, SequenceGroup
from hyperlapse.predictor.devices import DeviceSpec, device_names
from hyperlapse.predictor.engine import EnginePredictor
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import Coverage, UnsupportedModelError
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.shim.models import bundled_models

from .conftest import STEPS, UNPRICED

pytestmark = pytest.mark.usefixtures("database")

products = st.sampled_from(device_names())
priced = st.sampled_from(
    sorted(
        (product, model) for product in device_names() for model in bundled_models() if (model, product) not in UNPRICED
    )
)
groups = st.lists(
    st.builds(SequenceGroup, st.one_of(st.just(1), st.integers(1, 4096)), st.integers(0, 20_000), st.integers(1, 32)),
    min_size=1,
    max_size=4,
)


@functools.cache
def predictor(product: str) -> EnginePredictor:
    return EnginePredictor(product, step_recipes=[STEPS])


@functools.cache
def steps(product: str, model: str) -> StepPredictor:
    return predictor(product).step_predictor(ModelConfig.from_json(bundled_models()[model]))


@pytest.mark.parametrize("product", device_names())
@pytest.mark.parametrize("model", sorted(bundled_models()))
def test_every_bundled_model_is_priced_on_every_product(product: str, model: str) -> None:
    if (model, product) in UNPRICED:
        with pytest.raises(UnsupportedModelError, match=r"measured|has no"):
            steps(product, model)
        return
    step = steps(product, model).predict(BatchComposition.parse("v1 graph=full tokens=4 rows=4 seqs=1:1088x4"))
    assert step.coverage_ns[Coverage.UNKNOWN] == 0
    rests = sum(step.coverage_ns[:3]) / step.duration_ns
    assert rests > 0.7  # on measurements, this product's or another's
    if DeviceSpec.named(product).transfer_from:
        assert step.coverage_ns[Coverage.MEASURED] == step.coverage_ns[Coverage.INTERPOLATED] == 0
        assert any("carried over" in note for note in predictor(product).notes)


@settings(deadline=None, max_examples=60)
@given(where=priced, made=groups)
def test_no_step_outruns_light(where: tuple[str, str], made: list[SequenceGroup]) -> None:
    """A step reads its dense weights once and computes with them for each token."""
    found = steps(*where)
    batch = BatchComposition.of(made)
    step = found.predict(batch)
    device = found.device
    model, each = found.model, found.model.product_bytes  # elements of one byte: half the bytes, twice the rate
    counts = {"lm_head": 1, "router": model.layers - model.dense_layers, "kv_b_proj": 0}
    least_ns = 0.0
    for name, (n, k) in found.operators.gemms.items():
        size = 2 if name in ("lm_head", "router") else each
        rows = batch.rows if name == "lm_head" else batch.tokens
        kind = name.partition("_")[0]
        count = {"dense": model.dense_layers, "shared": model.layers - model.dense_layers}.get(kind, model.layers)
        least_ns += counts.get(name, count) * device.light_ns(float(size * n * k), float(size) * rows * n * k)
    assert step.duration_ns >= 0.999 * least_ns
    assert all(operator.prediction.duration_ns >= 0 for operator in step.operators)
    assert math.isfinite(step.error_ratio)
    assert 0 < step.error_ratio <= step.error90_ratio < 1
    assert sum(operator.total_ns for operator in step.operators) == sum(step.coverage_ns) == step.duration_ns


@settings(deadline=None, max_examples=60)
@given(where=priced, context=st.integers(1, 30_000), count=st.integers(1, 128))
def test_longer_contexts_and_more_sequences_take_longer(where: tuple[str, str], context: int, count: int) -> None:
    """Up to the scatter of the tables, which hold faster kernels for larger shapes in places."""
    found = steps(*where)

    def duration_ns(count: int, context: int) -> int:
        return found.predict(BatchComposition.of([SequenceGroup(1, context, count)], graph="full")).duration_ns

    here = duration_ns(count, context)
    assert duration_ns(count, 2 * context) > 0.93 * here
    assert duration_ns(2 * count, context) > 0.85 * here


@settings(deadline=None, max_examples=60)
@given(where=priced, new=st.integers(2, 8192), context=st.integers(0, 8192))
def test_longer_prompts_take_longer(where: tuple[str, str], new: int, context: int) -> None:
    found = steps(*where)
    here = found.predict(BatchComposition.of([SequenceGroup(new, context)])).duration_ns
    assert found.predict(BatchComposition.of([SequenceGroup(2 * new, context)])).duration_ns > 0.9 * here
    assert found.predict(BatchComposition.of([SequenceGroup(new, context + 4096)])).duration_ns > 0.95 * here


@settings(deadline=None, max_examples=60)
@given(product=products, size_bytes=st.floats(0, 1e9), more=st.floats(0, 1e9), rows=st.integers(0, 512))
def test_bytes_take_time(product: str, size_bytes: float, more: float, rows: int) -> None:
    operators = steps(product, "qwen3-8b").operators
    here = operators.streaming(size_bytes, size_bytes / 100, rows).duration_ns
    assert operators.streaming(size_bytes + more, size_bytes / 100, rows).duration_ns >= here
    assert here >= int(operators.device.light_ns(size_bytes, 0))
