"""Quantised weights: which checkpoints are priced, from which table, and what host-limited measurements become."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.kernels import KernelMap
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import Operators
from hyperlapse.predictor.prediction import Coverage, UnsupportedModelError
from hyperlapse.predictor.quantization import BFLOAT16, FP8, FP8_BLOCK, element_type
from hyperlapse.shim.models import bundled_models

from .conftest import STEPS

KERNELS = STEPS.parent / "kernels.yaml"
FLOAT = {"type": "float", "num_bits": 8}
DEEP_GEMM = "_ZN9deep_gemm23sm90_fp8_gemm_1d2d_implILN4cute4UMMA5MajorE0ELj0ELj6144ELj4096ELj1E"


def compressed(**changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**FLOAT, "strategy": "channel"}, "input_activations": FLOAT, **changes}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        (None, BFLOAT16),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, FP8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, FP8_BLOCK),
        ({"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.3.mlp.gate"]}, FP8),
        (compressed(), FP8),
        (compressed(weights={**FLOAT, "strategy": "block", "block_structure": [128, 128]}), FP8_BLOCK),
        ({**compressed(), "ignore": ["lm_head", "re:.*mlp.gate$"]}, FP8),
    ],
)
def test_what_a_checkpoint_is_computed_in(quantization: dict[str, Any] | None, weights: str) -> None:
    assert element_type(quantization, "model") == weights


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "awq"}, "'awq'"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"block of \[64, 64\]"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]}, "down_proj, not"),
        (compressed(weights={"type": "int", "num_bits": 4}), "weights of 4 bits .int"),
        (compressed(input_activations=None), "inputs of 16 bits"),
        ({**compressed(), "kv_cache_scheme": FLOAT}, "KV cache"),
        (compressed(targets=["Embedding"]), "Embedding"),
    ],
)
def test_other_quantisation_is_refused_by_name(quantization: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        element_type(quantization, "model")


def operators(database: KernelDatabase, device: DeviceSpec, name: str) -> Operators:
    return Operators(ModelConfig.from_json(bundled_models()[name]), device, database)


def test_host_limited_measurements_are_replaced(database: KernelDatabase, device: DeviceSpec) -> None:
    """128 x 128 x 128 takes some microseconds on the device, whatever the host needs to launch it."""
    blocks = database.gemm(FP8_BLOCK)
    assert blocks.replaced is not None
    assert 0.4 < blocks.replaced.mean() < 0.8
    smallest = blocks.latency_ns[blocks.m <= 1024, 2, 2]
    assert np.nanmax(smallest) < 20_000
    whole = database.gemm(FP8)
    assert whole.replaced is None
    assert database.gemm(BFLOAT16).replaced is None
    assert any("fp8_block" in note for note in database.notes)
    own = operators(database, device, "qwen3-8b-fp8").matrix("down_proj", 8)
    assert own.coverage is Coverage.EXTRAPOLATED
    large = operators(database, device, "qwen3-8b-fp8").matrix("gate_up_proj", 8192)
    assert large.coverage is not Coverage.EXTRAPOLATED


@pytest.mark.parametrize(("quantised", "plain"), [("qwen3-8b-fp8", "qwen3-8b"), ("llama-3.1-8b-fp8", "llama-3.1-8b")])
@pytest.mark.parametrize("rows", [1, 64, 512, 8192])
def test_half_the_bytes_take_less_time(
    database: KernelDatabase, device: DeviceSpec, quantised: str, plain: str, rows: int
) -> None:
    small, large = operators(database, device, quantised), operators(database, device, plain)
    for name in ("gate_up_proj", "down_proj"):
        n, k = small.gemms[name]
        ratio = small.matrix(name, rows).duration_ns / large.matrix(name, rows).duration_ns
        assert 0.4 < ratio < 1.0, name
        assert small.matrix(name, rows).duration_ns >= device.light_ns(float(n * k), float(rows * n * k))
    assert small.matrix("lm_head", rows) == dataclasses.replace(large.matrix("lm_head", rows))


def test_a_product_of_unknown_shape_is_the_mean_of_the_layer_s(database: KernelDatabase, device: DeviceSpec) -> None:
    found = operators(database, device, "llama-3.1-8b-fp8")
    mean = found.quantised_product(64)
    assert mean is not None
    every = [found.matrix(name, 64).duration_ns for name in found.gemms if name != "lm_head"]
    assert mean.duration_ns == round(np.mean(every))
    assert operators(database, device, "llama-3.1-8b").quantised_product(64) is None


def test_shapes_in_names_of_kernels(database: KernelDatabase, device: DeviceSpec) -> None:
    found = operators(database, device, "qwen3-8b-fp8")
    rule = KernelMap.load([KERNELS]).find(DEEP_GEMM)
    assert rule is not None
    batch = BatchComposition.parse("v1 graph=none tokens=512 rows=1 seqs=512:0")
    args = (132, 1, 1, 384, 1, 1, 0, 0)
    priced = rule.price(found, device, args, 512, batch, DEEP_GEMM)
    assert priced is not None
    assert priced[0] == found.matrix("qkv_proj", 512)  # 6144 x 4096
    assert rule.price(found, device, args, 0, None, DEEP_GEMM) is None
    plain = operators(database, device, "qwen3-8b")
    assert rule.price(plain, device, args, 512, batch, DEEP_GEMM) is None
