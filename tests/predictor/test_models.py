"""Model configurations: what is priced is read right, what is not is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.predictor.models import ModelConfig, ModelKey
from hyperlapse.predictor.operators import gemms_of
from hyperlapse.predictor.prediction import UnsupportedModelError

from .conftest import QWEN3_14B

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


def test_qwen3_14b_has_its_published_shapes() -> None:
    model = ModelConfig.from_dict(QWEN3_14B, name="qwen3-14b")
    assert gemms_of(model) == {
        "qkv_proj": (7168, 5120),
        "o_proj": (5120, 5120),
        "gate_up_proj": (34816, 5120),
        "down_proj": (5120, 17408),
        "lm_head": (151936, 5120),
    }
    assert model.qk_norm


def test_head_dim_follows_from_hidden_size_where_the_file_is_silent() -> None:
    model = ModelConfig.from_dict(LLAMA_8B, name="llama")
    assert (model.head_dim, model.q_width, model.kv_width, model.qk_norm) == (128, 4096, 1024, False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_experts": 128}, "MoE"),
        ({"num_local_experts": 8}, "MoE"),
        ({"kv_lora_rank": 512}, "MLA"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"vision_config": {"depth": 32}}, "vision"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding"),
        (
            {"architectures": ["MistralForCausalLM"], "use_sliding_window": None, "sliding_window": 4096},
            "Mistral|sliding",
        ),
    ],
)
def test_what_cannot_be_priced_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    config = {name: value for name, value in {**QWEN3_14B, **change}.items() if name not in change or value is not None}
    with pytest.raises(UnsupportedModelError, match=says):
        ModelConfig.from_dict(config, name="model")


def test_tensor_parallelism_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="tp=2"):
        ModelConfig.from_dict(QWEN3_14B, name="model", tp=2)


def test_a_missing_field_is_named() -> None:
    config = {name: value for name, value in QWEN3_14B.items() if name != "hidden_size"}
    with pytest.raises(UnsupportedModelError, match="hidden_size"):
        ModelConfig.from_dict(config, name="model")


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError):
        ModelConfig.from_json(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        ModelConfig.from_json(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        ModelConfig.from_json(path)


def test_a_model_key_loads_its_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_14B))
    key = ModelKey.parse(f"{tmp_path}/config.json|tp=1|dtype=bfloat16|kv=auto|block=16|engine=vllm-0.23.0")
    assert (key.tp, key.block_size, key.engine) == (1, 16, "vllm-0.23.0")
    assert key.load().layers == 40
    with pytest.raises(ValueError, match="mood"):
        ModelKey.parse("x|mood=good")
    with pytest.raises(ValueError, match="numbers"):
        ModelKey.parse("x|tp=two")
    with pytest.raises(ValueError, match="empty"):
        ModelKey.parse("")
