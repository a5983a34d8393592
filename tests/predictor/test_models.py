"""Model configurations: what is priced is read right, what is not is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.predictor.models import ModelConfig, ModelKey
from hyperlapse.predictor.operators import gemms_of
from hyperlapse.predictor.prediction import UnsupportedModelError
from hyperlapse.shim.models import bundled_models

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
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "mlp_only_layers": [1]}, "MoE"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "decoder_sparse_step": 2}, "MoE"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "n_shared_experts": 1}, "shared experts"),
        ({"kv_lora_rank": 512}, "MLA"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
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


def test_a_missing_field_is_named() -> None:
    config = {name: value for name, value in QWEN3_14B.items() if name != "hidden_size"}
    with pytest.raises(UnsupportedModelError, match="hidden_size"):
        ModelConfig.from_dict(config, name="model")


# Parameters as the makers publish them, in billions.
PUBLISHED = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "mixtral-8x7b": 46.7,
    "qwen3-8b": 8.2,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "qwen3-30b-a3b": 30.5,
    "qwen3-8b-fp8": 8.2,
    "qwen3-30b-a3b-fp8": 30.5,
    "llama-3.1-8b-fp8": 8.03,
    "deepseek-v2-lite": 15.7,
}


def test_bundled_models_have_their_published_size() -> None:
    assert set(PUBLISHED) == set(bundled_models())
    for name, folder in bundled_models().items():
        model = ModelConfig.from_json(folder)
        assert model.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005), name
        if name.endswith("-fp8"):
            assert model.parameters < model.weight_bytes < 1.3 * model.parameters
        else:
            assert model.weight_bytes == 2 * model.parameters


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 0}, "`num_attention_heads` .* from 1 to 4,096, not 0"),
        ({"num_attention_heads": -8}, "not -8"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` .* from 1 to 1,000"),
        ({"hidden_size": "wide"}, "`hidden_size` .* not 'wide'"),
        ({"hidden_size": 5120.5}, "not 5120.5"),
        ({"vocab_size": True}, "not True"),
        ({"num_key_value_heads": 7}, "40 attention heads cannot share 7"),
        ({"head_dim": 0}, "`head_dim`"),
        ({"architectures": ["MixtralForCausalLM"]}, "lacks num_local_experts"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 9},
            "9 of 8 experts",
        ),
    ],
)
def test_impossible_shapes_name_field_and_value(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        ModelConfig.from_dict({**QWEN3_14B, **change}, name="model")


def test_experts_are_read() -> None:
    qwen = ModelConfig.from_json(bundled_models()["qwen3-30b-a3b"])
    assert (qwen.experts, qwen.active_experts, qwen.intermediate, qwen.qk_norm) == (128, 8, 768, True)
    mixtral = ModelConfig.from_json(bundled_models()["mixtral-8x7b"])
    assert (mixtral.experts, mixtral.active_experts, mixtral.intermediate, mixtral.qk_norm) == (8, 2, 14336, False)
    assert "gate_up_proj" not in gemms_of(mixtral)
    assert gemms_of(mixtral)["router"] == (8, 4096)


def test_the_sampler_follows_the_generation_config(tmp_path: Path) -> None:
    """Filters that generation_config.json makes the default decide which kernels a step's sampler has."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_14B))
    assert ModelConfig.from_json(tmp_path).sampling == ("gumbel_sampling",)
    for text, sampling in (
        ('{"top_k": 20, "top_p": 0.95}', ("top_k_mask", "softmax", "top_p_sampling")),
        ('{"top_p": 0.9}', ("softmax", "top_p_sampling")),
        ('{"top_p": 1.0, "temperature": 0.6}', ("gumbel_sampling",)),
        ("{", ("gumbel_sampling",)),
    ):
        (tmp_path / "generation_config.json").write_text(text)
        assert ModelConfig.from_json(tmp_path).sampling == sampling, text


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
