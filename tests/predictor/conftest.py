"""Shared fixtures: the measured database where it is installed, and a small made-up one where it is not needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperlapse.predictor.database import (
    AttentionTable,
    ExpertConfig,
    ExpertTable,
    GemmTable,
    HeadConfig,
    KernelDatabase,
)
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.engines import Engines, StepRecipe
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.prediction import DatabaseError
from hyperlapse.predictor.step import StepPredictor

ENGINE = "vllm"
"""The database's name of the engine whose tables are used here; the predictor itself knows none."""

STEPS = Path(__file__).parents[2] / "integrations" / ENGINE / "steps.yaml"

UNPRICED = {
    *((model, "a100-sxm-80gb") for model in ("llama-3.1-8b-fp8", "qwen3-8b-fp8", "qwen3-30b-a3b-fp8")),
    *((model, gpu) for model in ("qwen3-8b-fp8", "qwen3-30b-a3b-fp8") for gpu in ("rtx-4090", "rtx-pro-6000")),
    *(("deepseek-v2-lite", gpu) for gpu in ("a100-sxm-80gb", "rtx-4090")),
}
"""Bundled models with a part that nobody measured on a product (nor on the one that it takes tables from)."""

QWEN3_14B = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "sliding_window": None,
    "use_sliding_window": False,
}


class MadeUpDatabase(KernelDatabase):
    """Latencies from a formula, so that what interpolation must give is known."""

    def __init__(self) -> None:
        super().__init__("made_up", "0", {})
        m = np.array([1, 64, 128, 256, 512, 1024, 1025, 2048])
        side = np.array([512, 1024, 4096, 16384])
        rows, wide, deep = np.meshgrid(m, side, side, indexing="ij")
        weights_ns = wide * deep * 2 / 3000
        arithmetic_ns = 2.0 * rows * wide * deep / 800_000
        self.table = GemmTable(m, side, side, 5000 + np.maximum(weights_ns, arithmetic_ns))
        batch, length = np.array([1, 2, 4, 8, 16]), np.array([1, 512, 1024, 2048, 4096, 8192, 16384])
        count, tokens = np.meshgrid(batch, length, indexing="ij")
        self.decode_table = AttentionTable(batch, length, 9000 + count * tokens * 4096 / 3000)
        pairs = count * tokens * (tokens + 1) / 2
        self.prefill_table = AttentionTable(batch, length, 9000 + 4 * 40 * 128 * pairs / 600_000)

        tokens = np.array([1, 8, 64, 512, 4096])
        self.expert_table = ExpertTable(tokens, 50_000.0 + 100 * tokens)

    def gemm(self, dtype: str = "bfloat16") -> GemmTable:
        return self.table

    def expert_configs(self, ranks: int = 1) -> tuple[ExpertConfig, ...]:
        return (ExpertConfig(2048, 768 // ranks, 8, 128, ranks=ranks),) if ranks <= 2 else ()

    def experts(self, config: ExpertConfig) -> ExpertTable:
        if config not in self.expert_configs(config.ranks):
            raise KeyError(config)
        return self.expert_table

    def decode_configs(self) -> tuple[HeadConfig, ...]:
        return (HeadConfig(40, 8, 128, "bfloat16"),)

    prefill_configs = decode_configs

    def decode(self, config: HeadConfig) -> AttentionTable:
        return self.decode_table

    def prefill(self, config: HeadConfig) -> AttentionTable:
        return self.prefill_table


@pytest.fixture(scope="session")
def model() -> ModelConfig:
    return ModelConfig.from_dict(QWEN3_14B, name="qwen3-14b")


@pytest.fixture(scope="session")
def device() -> DeviceSpec:
    return DeviceSpec.named("h100-sxm-80gb")


@pytest.fixture(scope="session")
def made_up() -> MadeUpDatabase:
    return MadeUpDatabase()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> KernelDatabase:
    """The measured tables of the H100; tests that need them are skipped where the package is absent."""
    try:
        return KernelDatabase.load("h100_sxm", ENGINE)
    except DatabaseError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def steps(model: ModelConfig, device: DeviceSpec, database: KernelDatabase) -> StepPredictor:
    return StepPredictor(model, device, database, recipe())


def recipe() -> StepRecipe:
    """What the engine launches around a model's operators, from its integration's own data."""
    return Engines.load([STEPS]).find(ENGINE)[0].recipe("")
