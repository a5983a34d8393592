"""Memory-bound operators with measured figures: the H100's agree with single kernels of a recorded profile."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec, check_fields, device_names
from hyperlapse.predictor.engine import EnginePredictor
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import Operators
from hyperlapse.predictor.prediction import Coverage, PredictorError
from hyperlapse.shim.models import bundled_models

from .conftest import STEPS

H100, H200 = "h100-sxm-80gb", "h200-sxm-141gb"

# Microseconds of one kernel in a profile of vLLM 0.23.0 with Qwen3-14B on an NVIDIA H100 80GB HBM3 (driver 580.159.04,
# 2026-11-27), medians over the 40 layers: a decode of one sequence, a prompt of 1,024 tokens, a full step of 8,192.
RECORDED_US = {
    "input_norm": (3.52, 18.19, 147.48),
    "post_attention_norm": (2.62, 10.85, 85.51),
    "silu_mul": (1.31, 31.78, 276.84),
    "kv_cache_write": (2.14, 9.01, 83.91),
    "embedding": (4.03, 10.16, 96.75),
}
# Of the sampler, for 1, 8 and 32 rows.
RECORDED_ROWS_US = {
    "top_k_mask": (38.3, 48.35, 48.7),
    "softmax": (64.06, 83.33, 80.7),
    "top_p_sampling": (29.06, 50.27, 52.93),
    "temperature": (6.18, 9.66, 14.75),
    "logits_to_float": (3.97, 7.17, 16.19),
}


@functools.cache
def predictor(product: str) -> EnginePredictor:
    return EnginePredictor(product, step_recipes=[STEPS])


@functools.cache
def operators(product: str, model: str = "qwen3-14b") -> Operators:
    return predictor(product).step_predictor(ModelConfig.from_json(bundled_models()[model])).operators


@pytest.mark.parametrize("name", RECORDED_US)
@pytest.mark.parametrize(("column", "tokens"), list(enumerate((1, 1024, 8192))))
def test_the_h100s_kernels_take_what_they_took(name: str, column: int, tokens: int) -> None:
    found = operators(H100).memory(name, tokens, 0)
    recorded_ns = RECORDED_US[name][column] * 1e3
    assert found.coverage is Coverage.INTERPOLATED
    assert abs(found.duration_ns / recorded_ns - 1) <= max(found.error90_ratio, 0.17)


@pytest.mark.parametrize("name", RECORDED_ROWS_US)
@pytest.mark.parametrize(("column", "rows"), list(enumerate((1, 8, 32))))
def test_the_h100s_sampler_takes_what_it_took(name: str, column: int, rows: int) -> None:
    found = operators(H100).memory(name, 0, rows)
    assert found.coverage is Coverage.INTERPOLATED
    assert abs(found.duration_ns / (RECORDED_ROWS_US[name][column] * 1e3) - 1) <= found.error90_ratio + 0.01


def test_beyond_what_was_measured_is_extrapolated_with_twice_the_error() -> None:
    inside = operators(H100).memory("softmax", 0, 32)
    beyond = operators(H100).memory("softmax", 0, 33)
    assert beyond.coverage is Coverage.EXTRAPOLATED
    assert beyond.error_ratio == 2 * inside.error_ratio
    assert beyond.duration_ns > inside.duration_ns
    # One more row than there are multiprocessors is a second wave of blocks that walk over a row.
    wave = [operators(H100).memory("softmax", 0, rows).duration_ns for rows in (132, 133)]
    assert wave[1] > 1.3 * wave[0]


def test_another_kernel_than_the_measured_one_is_extrapolated() -> None:
    assert operators(H100, "llama-3.1-8b").memory("qk_norm_rope", 8, 0).coverage is Coverage.EXTRAPOLATED
    assert operators(H100).memory("qk_norm_rope", 8, 0).coverage is Coverage.INTERPOLATED


def test_what_nobody_measured_stays_analytical() -> None:
    assert operators(H100).memory("gumbel_sampling", 0, 1).coverage is Coverage.ANALYTICAL
    for product in device_names():
        if product not in (H100, H200):
            assert not DeviceSpec.named(product).memory_operators
            assert operators(product).memory("input_norm", 8, 0).coverage is Coverage.ANALYTICAL


def test_the_h200_has_the_h100s_floors_and_rates_by_its_bandwidth() -> None:
    here, there = (DeviceSpec.named(product) for product in (H100, H200))
    ratio = there.memory_bandwidth_bytes_per_s / here.memory_bandwidth_bytes_per_s
    for mine, theirs in zip(here.memory_operators, there.memory_operators, strict=True):
        assert (mine.operator, mine.floor_ns, mine.cached_bytes_per_s) == (
            theirs.operator,
            theirs.floor_ns,
            theirs.cached_bytes_per_s,
        )
        assert theirs.bytes_per_s == round(mine.bytes_per_s * ratio)
    found = operators(H200).memory("silu_mul", 8192, 0)
    assert found.coverage is Coverage.EXTRAPOLATED
    # All but what the L2 serves.
    assert 1 < operators(H100).memory("silu_mul", 8192, 0).duration_ns / found.duration_ns < ratio


def test_a_product_derived_from_the_h100_does_not_inherit_them() -> None:
    derived = DeviceSpec.named(H100).derived(
        "mine",
        multiprocessors=66,
        l2_cache_bytes=1 << 25,
        memory_bandwidth_bytes_per_s=10**12,
        clock_ratio=1.0,
        overrides={},
    )
    assert not derived.memory_operators


def test_a_users_profile_may_ask_for_them() -> None:
    def derived(**overrides: Any) -> DeviceSpec:
        return DeviceSpec.named(H100).derived(
            "mine",
            multiprocessors=132,
            l2_cache_bytes=50 << 20,
            memory_bandwidth_bytes_per_s=335 * 10**10 // 2,
            clock_ratio=1.0,
            overrides=overrides,
        )

    slower = derived(memory_operators_of=H100).memory_operators
    assert [cost.bytes_per_s * 2 for cost in slower] == pytest.approx(
        [cost.bytes_per_s for cost in DeviceSpec.named(H100).memory_operators]
    )
    (own,) = derived(memory_operators={"softmax": document()["memory_operators"]["softmax"]}).memory_operators
    assert own.operator == "softmax"


def document() -> dict[str, Any]:
    facts = dataclasses.asdict(DeviceSpec.named(H100))
    figures = {cost.pop("operator"): cost for cost in facts["memory_operators"]}
    for cost in figures.values():
        if not cost["walk_bytes_per_s"]:
            del cost["walk_bytes_per_s"]
    return {**facts, "memory_operators": figures}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(memory_operators=[]), "must be a mapping of operators"),
        (lambda d: d["memory_operators"].update(softmax=3), "softmax: must be a mapping of figures"),
        (lambda d: d["memory_operators"]["softmax"].pop("floor_ns"), "softmax: `floor_ns` is missing"),
        (lambda d: d["memory_operators"]["softmax"].update(floor=1), "unknown figure `floor`; did you mean `floor_ns`"),
        (lambda d: d["memory_operators"]["softmax"].update(bytes_per_s=0), "`bytes_per_s` must be a positive number"),
        (lambda d: d["memory_operators"]["softmax"].update(floor_ns="2"), "`floor_ns` must be a positive number"),
        (lambda d: d.update(memory_operators_of=H200), "exclude each other"),
        (lambda d: d.update(memory_operators={}, memory_operators_of="h300"), "must name another product, not 'h300'"),
    ],
)
def test_malformed_figures(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = tmp_path / "mine.yaml"
    facts = document()
    path.write_text(yaml.safe_dump(facts))
    assert DeviceSpec.from_yaml(path).memory_operators
    change(facts)
    path.write_text(yaml.safe_dump(facts))
    with pytest.raises(ValueError, match=message):
        DeviceSpec.from_yaml(path)


def test_an_operator_that_there_is_not(tmp_path: Path, database: KernelDatabase) -> None:
    facts = document()
    facts["memory_operators"] = {"softmaxx": facts["memory_operators"]["softmax"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(facts))
    with pytest.raises(PredictorError, match="`memory_operators` has 'softmaxx', which is none"):
        Operators(operators(H100).model, DeviceSpec.from_yaml(path), database)


def test_a_users_profile_cannot_give_half_of_them() -> None:
    with pytest.raises(ValueError, match="`floor_ns` is missing"):
        check_fields({"memory_operators": {"softmax": {}}}, where="mine.yaml, section `durations`")
