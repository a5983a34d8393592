"""Launches one by one: each kind is priced, what nobody explains is unknown, and kernels add up to their step."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlapse.predictor.attention import AttentionModel
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.engine import DEPENDS_BATCH, DEPENDS_TOKENS, EnginePredictor
from hyperlapse.predictor.kernels import OPERATORS, KernelMap, KernelMapError
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import traffic_of
from hyperlapse.predictor.prediction import Coverage, PredictorError

from .conftest import QWEN3_14B, STEPS, MadeUpDatabase

BATCH = "v1 graph=full tokens=8 rows=5 seqs=1:1030,1:1100x2,1:1200,1:90"
KERNELS = Path(__file__).parents[2] / "integrations" / "vllm" / "kernels.yaml"


@dataclass(frozen=True, slots=True)
class Launch:
    kind: str
    name: str
    args: tuple[int, ...] = (1,) * 8
    tokens: int = 8
    annotation: str = BATCH
    device: int = 0


@pytest.fixture
def predictor(made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec, tmp_path: Path) -> EnginePredictor:
    lines = [f"  - {{name: ^{operator}$, operator: {operator}}}" for operator in OPERATORS]
    lines += ["  - {name: ^attention$, operator: attention}", "  - {name: ^combine$, operator: included}"]
    lines += [f"  - {{name: ^{part}$, operator: attention, part: {part}}}" for part in ("decodes", "prefills")]
    lines += ["  - {name: ^qk_half$, operator: qk_norm_rope, kernels: 2}"]
    lines += ["  - {name: ^copy$, operator: memory, bytes_per_token: {hidden: 4}, bytes: 100}"]
    lines += ["  - {name: ^rows$, operator: memory, bytes_per_row: {vocab: 8}, rows: grid_y}"]
    lines += ["  - {name: ^threads$, operator: memory, bytes_per_thread: 16}"]
    lines += ["  - {name: ^fixed$, operator: fixed, duration_ns: 1234}"]
    path = tmp_path / "kernels.yaml"
    path.write_text("version: 1\nkernels:\n" + "\n".join(lines))
    return EnginePredictor(device, [model], [path], [STEPS], database=made_up)


def test_kernels_add_up_to_their_step(predictor: EnginePredictor, model: ModelConfig) -> None:
    """Both details use the same operators, so the sum over a step's launches is the step less its gaps, to 0.1 %."""
    step = predictor.step_predictor(model).predict(BatchComposition.parse(BATCH))
    gemms = predictor.step_predictor(model).operators.gemms
    names = {"input_preparation": "small", "attention_metadata": "small", "sampling_state": "small"}
    total_ns = gaps_ns = 0
    for operator in step.operators:
        if operator.name in gemms:
            n, k = gemms[operator.name]
            rows = 5 if operator.name == "lm_head" else 8
            launch = Launch("gemm", "bf16,bf16,bf16,f32", (rows, n, k, 1, 0, 1, 0, 0))
        elif "gap" in operator.name or operator.name in {"graph_launch", "input_copies"}:
            gaps_ns += operator.total_ns
            continue
        elif operator.name == "qk_norm_rope":
            launch = Launch("kernel", "qk_half")
        else:
            launch = Launch("kernel", names.get(operator.name, operator.name))
        price = predictor.price_launch(launch)
        assert price.duration_ns == pytest.approx(operator.prediction.duration_ns, abs=1), operator.name
        total_ns += operator.count * price.duration_ns
    assert total_ns == pytest.approx(step.duration_ns - gaps_ns, rel=1e-3)


def test_kernels_of_parts_add_up_to_the_attention_of_their_step(
    predictor: EnginePredictor, made_up: MadeUpDatabase, model: ModelConfig, device: DeviceSpec
) -> None:
    mixed = "v1 graph=none tokens=204 rows=5 seqs=1:1030,1:1100x2,1:90,200:64"
    parts = [
        predictor.price_launch(Launch("kernel", part, annotation=mixed)).duration_ns for part in ("decodes", "prefills")
    ]
    separate = AttentionModel(made_up, model, dataclasses.replace(device, separate_attention=1))
    assert sum(parts) == separate.predict(BatchComposition.parse(mixed)).duration_ns
    assert sum(parts) > predictor.price_launch(Launch("kernel", "attention", annotation=mixed)).duration_ns
    assert predictor.price_launch(Launch("kernel", "decodes", annotation="")).depends == DEPENDS_BATCH


def test_a_step_is_named_by_its_model(predictor: EnginePredictor, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_14B))
    key = f"{tmp_path}/config.json|tp=1|dtype=bfloat16|kv=auto|block=16|engine=vllm-0.23.0"
    price = predictor.price_launch(Launch("step", key))
    assert sum(price.coverage_ns) == price.duration_ns > 8_000_000
    assert price.depends == DEPENDS_BATCH


def test_matrix_products(predictor: EnginePredictor) -> None:
    shape = (1024, 4096, 4096, 1, 0, 1, 0, 0)
    bf16 = predictor.price_launch(Launch("gemm", "bf16,bf16,bf16,f32", shape))
    f16 = predictor.price_launch(Launch("gemm", "f16,f16,f16,f32", shape))
    f32 = predictor.price_launch(Launch("gemm", "f32,f32,f32,f32", shape))
    assert bf16.coverage_ns[Coverage.MEASURED] == bf16.duration_ns == f16.coverage_ns[Coverage.INTERPOLATED]
    assert f32.coverage_ns[Coverage.ANALYTICAL] == f32.duration_ns > 5 * bf16.duration_ns
    assert predictor.price_launch(Launch("gemm", "q3,q3,q3,q3", shape)).coverage_ns[Coverage.UNKNOWN] > 0


def test_what_nobody_explains_costs_the_floor_and_is_counted(predictor: EnginePredictor, device: DeviceSpec) -> None:
    for launch in (Launch("kernel", "mystery"), Launch("kernel", "mystery"), Launch("collective", "all_reduce,bf16")):
        price = predictor.price_launch(launch)
        assert price.coverage_ns[Coverage.UNKNOWN] == price.duration_ns == device.kernel_floor_ns
    assert predictor.unknown == {"mystery": 2, "collective all_reduce,bf16 of 1 ranks": 1}


def test_what_a_price_depends_on(predictor: EnginePredictor) -> None:
    depends = {
        name: predictor.price_launch(Launch("kernel", name)).depends
        for name in ("small", "silu_mul", "softmax", "attention", "copy", "rows", "threads", "fixed", "combine")
    }
    assert depends == {
        "small": 0,
        "silu_mul": DEPENDS_TOKENS,
        "softmax": DEPENDS_BATCH,
        "attention": DEPENDS_BATCH,
        "copy": DEPENDS_TOKENS,
        "rows": 0,
        "threads": 0,
        "fixed": 0,
        "combine": 0,
    }


def test_without_an_annotation_only_the_grid_tells(predictor: EnginePredictor) -> None:
    for name in ("silu_mul", "softmax", "attention"):
        price = predictor.price_launch(Launch("kernel", name, tokens=0, annotation=""))
        assert price.coverage_ns[Coverage.UNKNOWN] == price.duration_ns
        # kept by name: a warm-up launch must not make the annotated ones look alike
        assert price.depends == predictor.price_launch(Launch("kernel", name)).depends
    rows = predictor.price_launch(Launch("kernel", "rows", (1, 64, 1, 1, 1, 1, 0, 0), tokens=0, annotation=""))
    assert rows.coverage_ns[Coverage.ANALYTICAL] == rows.duration_ns > 10_000
    assert predictor.price_launch(Launch("kernel", "fixed", tokens=0, annotation="")).duration_ns == 1234


def test_a_broken_annotation_is_an_error_that_names_the_kernel(predictor: EnginePredictor) -> None:
    with pytest.raises(PredictorError, match="attention"):
        predictor.price_launch(Launch("kernel", "attention", annotation="v9"))


def test_threads_count_their_bytes(predictor: EnginePredictor, device: DeviceSpec) -> None:
    price = predictor.price_launch(Launch("kernel", "threads", (10_000, 1, 1, 256, 1, 1, 0, 0)))
    assert price.duration_ns == pytest.approx(device.kernel_floor_ns + device.stream_ns(16 * 2_560_000), abs=1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kernels: []", "version: 1"),
        ("version: 1\nkernels: {}", "version: 1"),
        ("version: 1\nkernels: [{name: x}]", "rule 1: needs"),
        ("version: 1\nkernels: [{name: x, operator: magic}]", "unknown operator `magic`"),
        ("version: 1\nkernels: [{name: x, operator: small, mood: good}]", "unknown field `mood`"),
        ("version: 1\nkernels: [{name: '(', operator: small}]", "regular expression"),
        ("version: 1\nkernels: [{name: x, operator: small, rows: depth}]", "`rows` must be one of"),
        ("version: 1\nkernels: [{name: x, operator: memory, bytes: many}]", "rule 1"),
        ("version: 1\nkernels: [{name: x, operator: attention, part: halves}]", "`part` must be decodes or prefills"),
        ("version: 1\nkernels: [{name: x, operator: small, part: decodes}]", "`operator: attention` only"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(KernelMapError) as caught:
        KernelMap.load([path])
    assert says in str(caught.value)


def test_every_memory_bound_operator_can_be_named_in_a_map(model: ModelConfig) -> None:
    assert set(OPERATORS) == set(traffic_of(model))


@pytest.mark.skipif(not KERNELS.is_file(), reason="the vLLM integration has no kernel-name map")
def test_the_map_of_the_vllm_integration_loads() -> None:
    found = KernelMap.load([KERNELS])
    rule = found.find("_ZN7cutlass13device_kernelIN5flash11enable_sm90INS1_16FlashAttnFwdSm90INS1_25CollectiveMainloop")
    assert rule is not None
    assert rule.operator == "attention"
