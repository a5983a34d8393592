"""Layers of experts: measured token counts come back, between them the line holds, others are refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import ExpertConfig, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.experts import EXPERT_LAUNCHES, ExpertModel, gated_shapes, nearest_shape, reshaped
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import Coverage, PredictorError, UnsupportedModelError
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.predictor.transfer import expert_work
from hyperlapse.shim.models import bundled_models

from .conftest import MadeUpDatabase, recipe

LAYER = ExpertConfig(2048, 768, 8, 128)


@pytest.fixture(scope="module")
def experts(made_up: MadeUpDatabase, device: DeviceSpec) -> ExpertModel:
    return ExpertModel.of(made_up, LAYER, device, "made up")


@pytest.fixture(scope="module")
def qwen() -> ModelConfig:
    return dataclasses.replace(ModelConfig.from_json(bundled_models()["qwen3-30b-a3b"]), heads=40, kv_heads=8)


@settings(deadline=None)
@given(tokens=st.integers(1, 4096))
def test_the_line_between_measured_token_counts(experts: ExpertModel, tokens: int) -> None:
    latency_ns, coverage = experts.latency_ns(tokens)
    assert latency_ns == pytest.approx(50_000 + 100 * tokens)
    assert coverage is (Coverage.MEASURED if tokens in (1, 8, 64, 512, 4096) else Coverage.INTERPOLATED)


@settings(deadline=None)
@given(tokens=st.integers(1, 100_000))
def test_more_tokens_never_take_less_and_light_is_not_outrun(
    experts: ExpertModel, device: DeviceSpec, tokens: int
) -> None:
    here = experts.predict(tokens).duration_ns
    assert experts.predict(tokens + 1).duration_ns >= here
    _, operations = expert_work(LAYER, float(tokens))
    assert here >= int(device.light_ns(0, operations))


def test_beyond_the_measured(experts: ExpertModel) -> None:
    latency_ns, coverage = experts.latency_ns(8192)
    assert (latency_ns, coverage) == (2 * (50_000 + 409_600), Coverage.EXTRAPOLATED)


def test_an_unmeasured_element_type_is_refused_with_the_measured_ones(
    made_up: MadeUpDatabase, device: DeviceSpec
) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"odd: experts in fp8_block were not measured .*measured: bfloat16"
    ):
        ExpertModel.of(made_up, dataclasses.replace(LAYER, dtype="fp8_block"), device, "odd")


@pytest.mark.parametrize(("ranks", "most"), [(1, (0.06, 0.15)), (2, (0.07, 0.19)), (4, (0.09, 0.26))])
def test_another_shape_has_the_efficiency_of_the_nearest(
    ranks: int, most: tuple[float, float], database: KernelDatabase, device: DeviceSpec
) -> None:
    """Each measured layer in bfloat16 from the nearest one of other widths, on as many GPUs."""
    every = [each for each in database.expert_configs(ranks) if each.dtype == "bfloat16"]
    measured = gated_shapes(database, every, device)
    # Nemotron's, whose experts have two products each
    assert set(every) - set(measured) == {
        ExpertConfig(2048, 5120 // ranks, 22, 512, ranks=ranks), ExpertConfig(2688, 1856 // ranks, 6, 128, ranks=ranks),
    }  # fmt: skip
    errors = []
    for config in measured:
        widths = (config.hidden, config.intermediate)
        like = nearest_shape(config, [each for each in measured if (each.hidden, each.intermediate) != widths])
        table = database.experts(config)
        model = ExpertModel(reshaped(database.experts(like), like, config, device), config, device)
        assert model.predict(48).coverage is Coverage.EXTRAPOLATED
        errors += [
            abs(model.latency_ns(tokens)[0] / latency_ns - 1)
            for tokens, latency_ns in zip(table.tokens.tolist(), table.latency_ns.tolist(), strict=True)
        ]
    median, p90 = np.percentile(errors, (50, 90))
    assert median < most[0]
    assert p90 < most[1]


def test_a_shape_that_nobody_measured_is_priced(database: KernelDatabase, device: DeviceSpec) -> None:
    """DeepSeek-V2-Lite's: more than its weights' bytes take, less than twice that, when every expert is reached."""
    config = ExpertConfig(2048, 1408, 6, 64)
    found = ExpertModel.of(database, config, device, "lite").predict(128)
    least_ns = device.light_ns(2.0 * 3 * 64 * 2048 * 1408, 0.0)
    assert least_ns < found.duration_ns < 2 * least_ns


def test_a_shard_is_measured_as_such(database: KernelDatabase, device: DeviceSpec) -> None:
    """Mixtral's on two GPUs: between half of the whole layer and the whole, and never faster than its weights."""
    whole, shard = ExpertConfig(4096, 14336, 2, 8), ExpertConfig(4096, 7168, 2, 8, ranks=2)
    assert shard in database.expert_configs(2)
    assert shard not in database.expert_configs()
    both = [ExpertModel.of(database, config, device, "mixtral").predict(64) for config in (whole, shard)]
    assert {each.coverage for each in both} == {Coverage.MEASURED}
    assert device.light_ns(2.0 * 3 * 8 * 4096 * 7168, 0.0) < both[1].duration_ns < 0.6 * both[0].duration_ns


def test_a_shard_of_a_shape_that_nobody_measured(database: KernelDatabase, device: DeviceSpec) -> None:
    found = ExpertModel.of(database, ExpertConfig(2048, 704, 6, 64, ranks=2), device, "lite").predict(128)
    assert found.coverage is Coverage.EXTRAPOLATED
    least_ns = device.light_ns(2.0 * 3 * 64 * 2048 * 704, 0.0)
    assert least_ns < found.duration_ns < 2 * least_ns
    with pytest.raises(UnsupportedModelError, match=r"bfloat16 shared by 3 GPUs were not measured .*none"):
        ExpertModel.of(database, ExpertConfig(2048, 256, 8, 128, ranks=3), device, "odd")


def test_the_nearest_shape() -> None:
    narrow, wide = dataclasses.replace(LAYER, intermediate=512), dataclasses.replace(LAYER, intermediate=4096)
    assert nearest_shape(dataclasses.replace(LAYER, intermediate=600), [narrow, wide]) == narrow
    assert nearest_shape(dataclasses.replace(LAYER, intermediate=3000), [narrow, wide]) == wide


def test_a_step_of_a_model_with_experts(made_up: MadeUpDatabase, device: DeviceSpec, qwen: ModelConfig) -> None:
    step = StepPredictor(qwen, device, made_up, recipe()).predict(
        BatchComposition.parse("v1 graph=full tokens=8 rows=8 seqs=1:100x8")
    )
    names = {operator.name: operator for operator in step.operators}
    assert names["experts"].count == names["router"].count == names["expert_routing"].count == qwen.layers
    assert "gate_up_proj" not in names
    assert names["experts"].prediction.duration_ns == 50_800 - EXPERT_LAUNCHES * device.graph_gap_ns
    kernels = sum(
        operator.count * (recipe().attention if operator.name == "attention" else 1)
        for operator in step.operators
        if "gap" not in operator.name and operator.name != "graph_launch"
    ) + qwen.layers * (EXPERT_LAUNCHES - 1)
    gaps = sum(operator.count for operator in step.operators if "gap" in operator.name)
    assert gaps == kernels - 1


def test_an_error_of_shards_is_that_of_shards(made_up: MadeUpDatabase, device: DeviceSpec, qwen: ModelConfig) -> None:
    of_shards = {accuracies.SHARED_EXPERTS: {Coverage.MEASURED: accuracies.ErrorRatio(0.123, 0.456)}}
    for model, error in ((qwen, 0.1), (dataclasses.replace(qwen, tp=2, intermediate=384), 0.123)):
        step = StepPredictor(model, device, made_up, accuracy=accuracies.Accuracy(of_shards))
        assert step.operators.experts(8).error_ratio == error


def test_a_dense_model_has_no_experts(made_up: MadeUpDatabase, device: DeviceSpec, model: ModelConfig) -> None:
    with pytest.raises(PredictorError, match="no experts"):
        StepPredictor(model, device, made_up).operators.experts(8)
