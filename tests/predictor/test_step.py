"""Whole steps: shares add up, more work costs more, answers come fast enough for the hot path."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlapse.predictor.composition import BatchComposition, SequenceGroup
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import COVERAGES, Coverage, add_shares, shares_of, summarise
from hyperlapse.predictor.step import StepPredictor

from .conftest import QWEN3_14B, MadeUpDatabase, recipe

sequences = st.lists(
    st.builds(SequenceGroup, st.one_of(st.just(1), st.integers(1, 4096)), st.integers(0, 20_000), st.integers(1, 32)),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def plain(made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec) -> StepPredictor:
    return StepPredictor(model, device, made_up, recipe())


@settings(deadline=None)
@given(made=sequences, graph=st.sampled_from(["full", "piecewise", "none"]), padding=st.integers(0, 64))
def test_shares_add_up(plain: StepPredictor, made: list[SequenceGroup], graph: str, padding: int) -> None:
    tokens = sum(group.new * group.count for group in made) + padding
    step = plain.predict(BatchComposition.of(made, graph=graph, tokens=tokens))
    assert sum(step.coverage_ns) == step.duration_ns
    assert sum(operator.total_ns for operator in step.operators) == step.duration_ns
    assert sum(part_ns for _, part_ns in step.families_ns) == step.duration_ns
    whole = summarise(step.operators)  # without the sums that are kept from step to step
    assert (whole.duration_ns, whole.coverage_ns) == (step.duration_ns, step.coverage_ns)
    assert whole.error90_ratio == pytest.approx(step.error90_ratio)
    assert step.coverage_ns[Coverage.UNKNOWN] == 0
    assert 0 < step.error_ratio < 1


@settings(deadline=None)
@given(made=sequences)
def test_padding_and_more_sequences_never_make_a_step_shorter(plain: StepPredictor, made: list[SequenceGroup]) -> None:
    here = plain.predict(BatchComposition.of(made)).duration_ns
    tokens = sum(group.new * group.count for group in made)
    assert plain.predict(BatchComposition.of(made, tokens=tokens + 64, rows=len(made))).duration_ns >= 0.99 * (
        plain.predict(BatchComposition.of(made, rows=len(made))).duration_ns
    )
    more = [*made, SequenceGroup(made[-1].new, made[-1].context, 1)]
    assert plain.predict(BatchComposition.of(more)).duration_ns >= 0.97 * here


def test_operators_stand_in_the_engines_order(plain: StepPredictor) -> None:
    step = plain.predict(BatchComposition.of([SequenceGroup(1, 100, 3)], graph="full"))
    names = [operator.name for operator in step.operators]
    assert names.index("qkv_proj") < names.index("qk_norm_rope") < names.index("kv_cache_write")
    assert names.index("kv_cache_write") + 1 == names.index("attention") == names.index("o_proj") - 1
    assert names.index("down_proj") < names.index("final_norm") < names.index("lm_head") < names.index("softmax")


def test_a_model_without_head_norms_ropes_in_one_kernel(made_up: MadeUpDatabase, device: DeviceSpec) -> None:
    llama = ModelConfig.from_dict({**QWEN3_14B, "architectures": ["LlamaForCausalLM"]}, name="llama")
    step = StepPredictor(llama, device, made_up, recipe()).predict(BatchComposition.of([SequenceGroup(1, 100)]))
    assert {"rope"} <= {operator.name for operator in step.operators}


def test_gaps_count_every_kernel_once(plain: StepPredictor, device: DeviceSpec) -> None:
    """As many gaps as kernels, less the one after the last, whatever the graph mode."""
    gap_names = {"graph_gaps", "launch_gaps"}
    for graph in ("full", "piecewise", "none"):
        step = plain.predict(BatchComposition.of([SequenceGroup(1, 100, 3)], graph=graph))
        no_kernels = {*gap_names, "graph_launch"}
        kernels = sum(operator.count for operator in step.operators if operator.name not in no_kernels)
        kernels += 40 * (recipe().attention - 1)
        gaps = sum(operator.count for operator in step.operators if operator.name in gap_names)
        assert gaps == kernels - 1, graph


def test_separate_attention_kernels_have_a_gap_each(
    made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec
) -> None:
    """A mixed step on such a product launches each layer's attention twice; a decode step does not."""
    one, two = (
        StepPredictor(model, dataclasses.replace(device, separate_attention=separate), made_up, recipe())
        for separate in (0, 1)
    )
    mixed = BatchComposition.of([SequenceGroup(1, 100, 3), SequenceGroup(200, 0, 1)])

    def gaps(steps: StepPredictor, batch: BatchComposition) -> int:
        return next(operator.count for operator in steps.predict(batch).operators if operator.name == "launch_gaps")

    assert gaps(two, mixed) - gaps(one, mixed) == 40 * recipe().attention
    decodes = BatchComposition.of([SequenceGroup(1, 100, 3)])
    assert two.predict(decodes) == one.predict(decodes)


def test_graphs_save_gaps(plain: StepPredictor) -> None:
    full, none = (
        plain.predict(BatchComposition.of([SequenceGroup(1, 100, 3)], graph=graph)).duration_ns
        for graph in ("full", "none")
    )
    assert full < none


def test_unfinished_prefill_without_rows_skips_the_sampler(plain: StepPredictor) -> None:
    step = plain.predict(BatchComposition.of([SequenceGroup(512, 0)], rows=0))
    assert not {"lm_head", "softmax"} & {operator.name for operator in step.operators}


def test_the_same_batch_has_the_same_price(plain: StepPredictor) -> None:
    batch = BatchComposition.parse("v1 graph=full tokens=8 rows=5 seqs=1:1030,1:1100x2,1:1200,1:90")
    assert plain.predict(batch) == plain.predict(BatchComposition.parse(batch.format()))


def test_a_decode_step_of_the_bundled_model_is_bound_by_its_weights(steps: StepPredictor, device: DeviceSpec) -> None:
    """27.97 GB of weights: 8.35 ms at the peak bandwidth. Whatever else a step does comes on top."""
    step = steps.predict(BatchComposition.of([SequenceGroup(1, 1088)], graph="full"))
    weights = 2 * (40 * sum(n * k for n, k in steps.operators.gemms.values() if n != 151936) + 151936 * 5120)
    light_ns = device.light_ns(weights, 0)
    assert light_ns < step.duration_ns < 1.6 * light_ns


def test_most_of_a_step_rests_on_measurements(steps: StepPredictor) -> None:
    for batch in ("v1 graph=full tokens=8 rows=8 seqs=1:1088x8", "v1 graph=none tokens=1000 rows=1 seqs=1000:0"):
        step = steps.predict(BatchComposition.parse(batch))
        rests = step.coverage_ns[Coverage.MEASURED] + step.coverage_ns[Coverage.INTERPOLATED]
        assert rests > 0.8 * step.duration_ns


def test_adding_shares() -> None:
    assert add_shares([shares_of(3, Coverage.MEASURED), shares_of(4, Coverage.UNKNOWN)]) == (3, 0, 0, 0, 4)
    assert len(shares_of(1, Coverage.MEASURED)) == COVERAGES
