"""Collectives: measured sizes come back, the line holds between them, and a step on several GPUs contains them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.predictor.collectives import CollectiveModel, at_size
from hyperlapse.predictor.composition import BatchComposition, parse_groups
from hyperlapse.predictor.database import CollectiveTable, DatabaseError, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.engines import StepRecipe
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import gemms_of
from hyperlapse.predictor.prediction import Coverage, PredictorError, UnsupportedModelError
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.shim.models import bundled_models

TABLE = CollectiveTable((1000, 2000, 4000), (5_000.0, 6_000.0, 10_000.0))
MIB = 1 << 20


@pytest.fixture(scope="module")
def h100() -> DeviceSpec:
    return DeviceSpec.named("h100-sxm-80gb")


@pytest.fixture(scope="module")
def database(h100: DeviceSpec) -> KernelDatabase:
    return KernelDatabase.load(h100.database_system, "vllm", "0.24.0")


@pytest.mark.parametrize(
    ("size_bytes", "latency_ns", "coverage"),
    [
        (0, 5_000, Coverage.INTERPOLATED),
        (1000, 5_000, Coverage.MEASURED),
        (1500, 5_500, Coverage.INTERPOLATED),
        (4000, 10_000, Coverage.MEASURED),
        (6000, 14_000, Coverage.EXTRAPOLATED),
    ],
)
def test_between_and_beyond_measured_sizes(size_bytes: int, latency_ns: float, coverage: Coverage) -> None:
    assert at_size(TABLE, size_bytes) == (latency_ns, coverage)


@given(size_bytes=st.integers(0, 10**9), more=st.integers(0, 10**9))
def test_more_bytes_never_take_less(size_bytes: int, more: int) -> None:
    assert at_size(TABLE, size_bytes)[0] <= at_size(TABLE, size_bytes + more)[0]


def test_messages_are_counted_in_bytes(database: KernelDatabase) -> None:
    """An H100 sends at most 450 GB/s to its peers: all-reduce moves the tensor out once and in once between two."""
    table = database.nccl("all_reduce", 2)
    rate = table.size_bytes[-1] / table.latency_ns[-1]
    assert 250 < rate < 450  # bytes a nanosecond; twice that if elements were taken for bytes, or half


def test_the_engines_kernel_below_its_limit_and_nccl_above(database: KernelDatabase, h100: DeviceSpec) -> None:
    model = CollectiveModel(database, h100)
    own = model.all_reduce(4 * MIB, 2, captured=True, own_below_bytes=8 * MIB)
    eager = model.all_reduce(4 * MIB, 2, captured=False, own_below_bytes=8 * MIB)
    other = model.all_reduce(16 * MIB, 2, captured=True, own_below_bytes=8 * MIB)
    assert own.coverage is Coverage.MEASURED
    copy_ns = h100.kernel_floor_ns + h100.stream_ns(8.0 * MIB)
    assert eager.duration_ns - own.duration_ns == pytest.approx(copy_ns, abs=2)
    assert other == model.nccl("all_reduce", 16 * MIB, 2)


def test_what_nobody_measured_is_refused_with_what_was(database: KernelDatabase, h100: DeviceSpec) -> None:
    with pytest.raises(DatabaseError, match=r"measured: 2, 4, 8 GPUs"):
        database.all_reduce(3)
    with pytest.raises(PredictorError, match=r"all-reduce of 3 ranks cannot be priced on h100-sxm-80gb.*2, 4, 8"):
        CollectiveModel(database, h100).all_reduce(1, 3, captured=True, own_below_bytes=8)
    with pytest.raises(PredictorError, match="'broadcast'"):
        CollectiveModel(database, h100).nccl("broadcast", 1, 2)


def test_a_shard_of_a_model() -> None:
    path = bundled_models()["llama-3.1-70b"]
    whole, shard = ModelConfig.from_json(path), ModelConfig.from_json(path, tp=4)
    assert (shard.heads, shard.kv_heads, shard.intermediate) == (16, 2, whole.intermediate // 4)
    assert (shard.hidden, shard.vocab, shard.vocab_shard) == (whole.hidden, whole.vocab, whole.vocab // 4)
    assert ModelConfig.from_json(path, tp=16).kv_heads == 1  # each is kept by two GPUs
    for tp, message in ((0, "1 or more"), (3, "cannot share 64 attention heads")):
        with pytest.raises(UnsupportedModelError, match=message):
            ModelConfig.from_json(path, tp=tp)
    with pytest.raises(UnsupportedModelError, match="latent attention on 2 GPUs"):
        ModelConfig.from_json(bundled_models()["deepseek-v2-lite"], tp=2)


def test_a_shard_of_a_model_with_experts() -> None:
    path = bundled_models()["mixtral-8x7b"]
    whole, shard = ModelConfig.from_json(path), ModelConfig.from_json(path, tp=2)
    assert (shard.experts, shard.active_experts, shard.intermediate) == (8, 2, whole.intermediate // 2)
    assert gemms_of(shard)["router"] == gemms_of(whole)["router"]  # every GPU asks it for all tokens


@pytest.mark.parametrize(("name", "most"), [("qwen3-32b", 0.75), ("mixtral-8x7b", 0.62)])
def test_a_step_on_several_gpus(name: str, most: float, database: KernelDatabase, h100: DeviceSpec) -> None:
    recipe = StepRecipe(own_all_reduce_bytes=8 * MIB)
    path = bundled_models()[name]
    batch = BatchComposition.of(parse_groups("1:1024x8"), graph="full")
    one, two = (
        StepPredictor(ModelConfig.from_json(path, tp=tp), h100, database, recipe).predict(batch) for tp in (1, 2)
    )
    counts = {operator.name: operator.count for operator in two.operators if "all_" in operator.name}
    layers = ModelConfig.from_json(path).layers
    assert counts == {
        "embedding_all_reduce": 1,
        "attention_all_reduce": layers,
        "feed_forward_all_reduce": layers,
        "logits_all_gather": 1,
    }
    assert not any("all_" in operator.name for operator in one.operators)
    gaps = {
        step: next(operator.count for operator in step.operators if operator.name == "graph_gaps")
        for step in (one, two)
    }
    assert gaps[two] - gaps[one] == 1 + 2 * layers
    # half of the weights each, and some microseconds a layer to meet
    assert 0.5 * one.duration_ns < two.duration_ns < most * one.duration_ns
    assert dict(two.families_ns)["collectives"] > 0


def test_carried_over_tables_have_no_collectives() -> None:
    from hyperlapse.predictor.engine import load_tables

    tables = load_tables(DeviceSpec.named("rtx-4090"), "vllm", "0.24.0")
    with pytest.raises(DatabaseError):
        tables.all_reduce(2)
