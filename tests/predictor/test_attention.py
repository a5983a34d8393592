"""Attention: measured batches come back, the rules for others hold where their answer is known."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlapse.predictor.attention import AttentionModel
from hyperlapse.predictor.composition import BatchComposition, SequenceGroup
from hyperlapse.predictor.database import HeadConfig, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import Coverage, Prediction, UnsupportedModelError

from .conftest import MadeUpDatabase

FLOOR_NS = 9000


@pytest.fixture(scope="module")
def attention(made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec) -> AttentionModel:
    return AttentionModel(made_up, model, dataclasses.replace(device, graph_gap_ns=0))


def predict(attention: AttentionModel, *groups: tuple[int, int, int]) -> Prediction:
    return attention.predict(BatchComposition.of([SequenceGroup(*group) for group in groups]))


def test_measured_batches_come_back(attention: AttentionModel) -> None:
    decode = predict(attention, (1, 1024, 4))
    assert (decode.coverage, decode.duration_ns) == (Coverage.MEASURED, round(FLOOR_NS + 4 * 1024 * 4096 / 3000))
    prefill = predict(attention, (1024, 0, 2))
    assert prefill.coverage is Coverage.MEASURED
    assert prefill.duration_ns == pytest.approx(FLOOR_NS + 2 * 20480 * 1024 * 1025 / 2 / 600_000, rel=1e-4)


@settings(deadline=None)
@given(count=st.integers(1, 16), context=st.integers(1, 4000))
def test_decode_between_measured_batches(attention: AttentionModel, count: int, context: int) -> None:
    """In the made-up table latency is linear in the KV bytes; the rules must give the line back."""
    found = predict(attention, (1, context, count))
    assert found.duration_ns == pytest.approx(FLOOR_NS + count * context * 4096 / 3000, rel=0.02)


def test_unequal_contexts_cost_their_mean(attention: AttentionModel) -> None:
    unequal = predict(attention, (1, 512, 1), (1, 1536, 1))
    assert unequal.coverage is Coverage.INTERPOLATED
    assert unequal.duration_ns == predict(attention, (1, 1024, 2)).duration_ns


def test_order_and_folding_do_not_matter(attention: AttentionModel) -> None:
    assert predict(attention, (1, 5, 2), (1, 900, 1)) == predict(attention, (1, 900, 1), (1, 5, 1), (1, 5, 1))


@settings(deadline=None)
@given(new=st.integers(2, 8192))
def test_prefill_between_measured_lengths(attention: AttentionModel, new: int) -> None:
    found = predict(attention, (new, 0, 1))
    assert found.duration_ns == pytest.approx(FLOOR_NS + 20480 * new * (new + 1) / 2 / 600_000, rel=0.1)


@pytest.mark.parametrize("half", [512, 1024, 2048, 4096])
def test_two_chunks_cost_what_the_whole_does(attention: AttentionModel, half: int) -> None:
    """Less the launch that is paid twice, and what the waves of the smaller launch leave idle."""
    whole = predict(attention, (2 * half, 0, 1)).duration_ns
    first, second = predict(attention, (half, 0, 1)), predict(attention, (half, half, 1))
    assert second.coverage is Coverage.EXTRAPOLATED
    assert first.duration_ns + second.duration_ns - FLOOR_NS == pytest.approx(whole, rel=0.25)
    assert first.duration_ns + second.duration_ns - FLOOR_NS >= 0.99 * whole


def test_a_short_chunk_reads_its_context(attention: AttentionModel) -> None:
    assert predict(attention, (2, 8000, 1)).duration_ns >= predict(attention, (1, 8000, 1)).duration_ns


def test_mixed_steps_cost_the_sum_less_one_floor(attention: AttentionModel) -> None:
    mixed = predict(attention, (1, 1024, 4), (1024, 0, 1)).duration_ns
    parts = predict(attention, (1, 1024, 4)).duration_ns + predict(attention, (1024, 0, 1)).duration_ns
    assert mixed == pytest.approx(parts - FLOOR_NS, abs=2)


def test_beyond_the_table(attention: AttentionModel) -> None:
    for group in ((1, 100_000, 1), (1, 1024, 64), (20_000, 0, 1), (1024, 0, 64)):
        found = predict(attention, group)
        assert found.coverage is Coverage.EXTRAPOLATED
    assert predict(attention, (1, 1024, 64)).duration_ns > 3 * predict(attention, (1, 1024, 16)).duration_ns


def test_a_step_without_sequences_costs_the_floor(attention: AttentionModel) -> None:
    assert attention.predict(BatchComposition.of([], tokens=8, rows=0)).duration_ns == FLOOR_NS


def test_unmeasured_head_layouts(made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec) -> None:
    near = AttentionModel(made_up, dataclasses.replace(model, heads=36, kv_heads=6), device)
    found = near.predict(BatchComposition.of([SequenceGroup(1, 1024, 4)]))
    assert found.coverage is Coverage.EXTRAPOLATED
    with pytest.raises(UnsupportedModelError, match="head_dim 96"):
        AttentionModel(made_up, dataclasses.replace(model, head_dim=96), device)


groups = st.lists(
    st.builds(SequenceGroup, st.one_of(st.just(1), st.integers(1, 4096)), st.integers(0, 40_000), st.integers(1, 64)),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(made=groups)
def test_never_faster_than_light(
    database: KernelDatabase, model: ModelConfig, device: DeviceSpec, made: list[SequenceGroup]
) -> None:
    attention = _kept(database, model, device)
    duration_ns = attention.predict(BatchComposition.of(made)).duration_ns
    kv_bytes = sum(4096 * group.context * group.count for group in made if group.decodes)
    prefills = [group for group in made if not group.decodes]
    pairs = sum((each.new * each.context + each.new * (each.new + 1) // 2) * each.count for each in prefills)
    assert duration_ns >= int(device.light_ns(kv_bytes, 20480.0 * pairs)) > -1
    assert duration_ns > 5000


@settings(deadline=None)
@given(count=st.integers(1, 300), context=st.integers(1, 30_000))
def test_decode_grows_with_sequences_and_context(
    database: KernelDatabase, model: ModelConfig, device: DeviceSpec, count: int, context: int
) -> None:
    """Up to the scatter of the tables."""
    attention = _kept(database, model, device)
    here, _ = attention.decode_ns(count, context)
    assert attention.decode_ns(count, 2 * context)[0] > 0.9 * here
    assert attention.decode_ns(2 * count, context)[0] > 0.9 * here


_models: dict[int, AttentionModel] = {}


def _kept(database: KernelDatabase, model: ModelConfig, device: DeviceSpec) -> AttentionModel:
    if id(database) not in _models:
        _models[id(database)] = AttentionModel(database, model, device)
    return _models[id(database)]


def test_the_measured_table_of_the_bundled_model(
    database: KernelDatabase, model: ModelConfig, device: DeviceSpec
) -> None:
    config = HeadConfig(model.heads, model.kv_heads, model.head_dim, model.kv_dtype)
    table = database.decode(config)
    attention = _kept(database, model, device)
    for row, batch in enumerate(table.batch[:6].tolist()):
        for column, length in enumerate(table.length[8:12].tolist(), start=8):
            found, coverage = attention.decode_ns(batch, length)
            assert coverage is Coverage.MEASURED
            assert found == pytest.approx(table.latency_ns[row, column])


def test_separate_kernels_cost_each_its_own_part(
    made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec
) -> None:
    """Two kernels over one step: nothing is shared, so that their floors are both paid; parts alone cost what they did."""
    one, two = (
        AttentionModel(made_up, model, dataclasses.replace(device, graph_gap_ns=0, separate_attention=separate))
        for separate in (0, 1)
    )
    decodes, prefill = (1, 8000, 4), (512, 0, 1)
    for alone in (decodes, prefill):
        assert predict(two, alone) == predict(one, alone)
    both = predict(two, decodes, prefill).duration_ns
    assert both == predict(one, decodes).duration_ns + predict(one, prefill).duration_ns
    assert both == pytest.approx(predict(one, decodes, prefill).duration_ns + FLOOR_NS, abs=1)


def test_a_kernel_that_splits_no_keys_walks_decodes_with_empty_tiles(
    made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec
) -> None:
    """A decode beside a prefill then costs a tile of queries over its context; alone it costs what it did."""
    splits, unsplit = (
        AttentionModel(made_up, model, dataclasses.replace(device, graph_gap_ns=0, unsplit_tile_rows=rows))
        for rows in (0, 64)
    )
    decodes, prefill = (1, 8000, 4), (512, 0, 1)
    assert predict(unsplit, decodes) == predict(splits, decodes)
    assert predict(unsplit, prefill) == predict(splits, prefill)
    assert predict(unsplit, decodes, prefill).duration_ns > predict(splits, decodes, prefill).duration_ns
    tiles_ns = 4 * 40 * 128 * 64 * 4 * 8000 / 600_000  # the rate of rectangles in the made-up table
    alone = predict(splits, prefill).duration_ns
    assert predict(unsplit, decodes, prefill).duration_ns == pytest.approx(alone + tiles_ns, rel=0.02)
    chunk = (16, 16_000, 1)
    assert predict(unsplit, chunk).duration_ns >= predict(splits, chunk).duration_ns
