"""What a model's shape says about its operators: read from a Hugging Face `config.json`, never from weights.

Only dense decoder-only transformers are priced so far. Everything else must be refused by name: a mixture of experts
priced as a dense model would look plausible and be wrong by a factor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.predictor.prediction import UnsupportedModelError

# Architecture -> does it normalise each head's query and key before the rotary embedding?
_DENSE = {
    "LlamaForCausalLM": False,
    "MistralForCausalLM": False,
    "Qwen2ForCausalLM": False,
    "Qwen3ForCausalLM": True,
}

# A field of config.json that marks what cannot be priced yet, and how to say it.
_REFUSED = (
    ("num_experts", "a mixture of experts (MoE)"),
    ("num_local_experts", "a mixture of experts (MoE)"),
    ("n_routed_experts", "a mixture of experts (MoE)"),
    ("kv_lora_rank", "multi-head latent attention (MLA)"),
    ("quantization_config", "quantised weights"),
    ("vision_config", "a vision encoder"),
    ("audio_config", "an audio encoder"),
)

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2}
_KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes of a dense transformer on one GPU of `tp` (all counts are per GPU where a GPU holds a shard).

    name: for people; dtype, kv_dtype: database names (`bfloat16`, `fp8`); block_size: tokens a KV-cache block.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    qk_norm: bool
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    tp: int = 1
    block_size: int = 16

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of the keys alone; the values are as wide."""
        return self.kv_heads * self.head_dim

    @property
    def dtype_bytes(self) -> int:
        return _DTYPE_BYTES[self.dtype]

    @property
    def kv_dtype_bytes(self) -> int:
        return _KV_BYTES[self.kv_dtype]

    def widths(self) -> dict[str, int]:
        """Named widths for kernel-name maps, in elements a token."""
        return {
            "hidden": self.hidden,
            "q": self.q_width,
            "kv": self.kv_width,
            "qkv": self.q_width + 2 * self.kv_width,
            "intermediate": self.intermediate,
            "vocab": self.vocab,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "one": 1,
        }

    @classmethod
    def from_json(
        cls, path: Path | str, *, tp: int = 1, dtype: str = "auto", kv: str = "auto", block_size: int = 16
    ) -> ModelConfig:
        """Reads a `config.json` (or the folder that holds one).

        Raises UnsupportedModelError for what cannot be priced yet, FileNotFoundError, ValueError for broken JSON.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        with path.open(encoding="utf-8") as file:
            try:
                config = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path}: not a model configuration (no JSON object)")
        name = path.parent.name or str(path)
        return cls.from_dict(config, name=name, tp=tp, dtype=dtype, kv=kv, block_size=block_size)

    @classmethod
    def from_dict(
        cls,
        config: dict[str, Any],
        *,
        name: str,
        tp: int = 1,
        dtype: str = "auto",
        kv: str = "auto",
        block_size: int = 16,
    ) -> ModelConfig:
        """As from_json, of a configuration that is already read."""
        for field, what in _REFUSED:
            if config.get(field):
                raise UnsupportedModelError(f"{name}: {what} cannot be priced yet (config.json has `{field}`)")
        architectures = config.get("architectures") or []
        architecture = architectures[0] if architectures else str(config.get("model_type"))
        if architecture not in _DENSE:
            raise UnsupportedModelError(
                f"{name}: architecture {architecture} cannot be priced yet (known: {', '.join(sorted(_DENSE))})"
            )
        if config.get("use_sliding_window", architecture == "MistralForCausalLM") and config.get("sliding_window"):
            raise UnsupportedModelError(f"{name}: sliding-window attention cannot be priced yet")
        if dtype == "auto":
            dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
        if dtype not in _DTYPE_BYTES:
            known = ", ".join(_DTYPE_BYTES)
            raise UnsupportedModelError(f"{name}: weights of type {dtype} cannot be priced yet ({known} can)")
        if kv not in _KV_BYTES:
            known = ", ".join(_KV_BYTES)
            raise UnsupportedModelError(f"{name}: a KV cache of type {kv} cannot be priced yet ({known} can)")
        try:
            heads = int(config["num_attention_heads"])
            kv_heads = int(config.get("num_key_value_heads") or heads)
            hidden = int(config["hidden_size"])
            layers = int(config["num_hidden_layers"])
            intermediate = int(config["intermediate_size"])
            vocab = int(config["vocab_size"])
        except KeyError as error:
            raise UnsupportedModelError(f"{name}: config.json lacks {error.args[0]}") from None
        if tp != 1:
            raise UnsupportedModelError(f"{name}: tensor parallelism (tp={tp}) cannot be priced yet: use one GPU")
        return cls(
            name=name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=intermediate,
            vocab=vocab,
            qk_norm=_DENSE[architecture],
            dtype=dtype,
            kv_dtype="fp8" if _KV_BYTES[kv] == 1 else "bfloat16",
            tp=tp,
            block_size=block_size,
        )


@dataclass(frozen=True, slots=True)
class ModelKey:
    """The name of a step launch: `<config.json>|tp=1|dtype=bfloat16|kv=auto|block=16|engine=vllm-0.23.0`."""

    path: str
    tp: int
    dtype: str
    kv: str
    block_size: int
    engine: str

    @classmethod
    def parse(cls, text: str) -> ModelKey:
        """Raises ValueError, which quotes the text."""
        path, *fields = text.split("|")
        values = dict(field.partition("=")[::2] for field in fields)
        unknown = set(values) - {"tp", "dtype", "kv", "block", "engine"}
        if not path:
            raise ValueError("empty model key")
        if unknown:
            raise ValueError(f"model key {text!r}: unknown field {min(unknown)!r}")
        try:
            return cls(
                path=path,
                tp=int(values.get("tp", "1")),
                dtype=values.get("dtype", "auto"),
                kv=values.get("kv", "auto"),
                block_size=int(values.get("block", "16")),
                engine=values.get("engine", ""),
            )
        except ValueError:
            raise ValueError(f"model key {text!r}: tp and block must be numbers") from None

    def load(self) -> ModelConfig:
        """The configuration that the key names."""
        return ModelConfig.from_json(self.path, tp=self.tp, dtype=self.dtype, kv=self.kv, block_size=self.block_size)
