"""What a model's shape says about its operators: read from a Hugging Face `config.json`, never from weights.

Decoder-only transformers are priced so far: dense or with a mixture of experts, with multi-head latent attention, with
weights in bfloat16 or in FP8. Everything else must be refused by name: a model priced as another one would look plausible
and be wrong by a factor.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.predictor.prediction import UnsupportedModelError
from hyperlapse.predictor.quantization import BFLOAT16, element_type, weight_bytes_of

# Architecture -> does it normalise each head's query and key before the rotary embedding?
_DENSE = {
    "LlamaForCausalLM": False,
    "MistralForCausalLM": False,
    "Qwen2ForCausalLM": False,
    "Qwen3ForCausalLM": True,
}

# The same for models whose every layer has a router and experts, with where config.json says how wide an expert is.
_EXPERTS = {
    "MixtralForCausalLM": (False, "intermediate_size"),
    "Qwen3MoeForCausalLM": (True, "moe_intermediate_size"),
    "DeepseekV2ForCausalLM": (False, "moe_intermediate_size"),
    "DeepseekV3ForCausalLM": (False, "moe_intermediate_size"),
}

# Of these, those with latent attention, a first few dense layers and experts that every token goes through.
_LATENT = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")

# A field of config.json that marks what cannot be priced yet, and how to say it.
_REFUSED = (
    ("shared_expert_intermediate_size", "gated shared experts (MoE)"),
    ("mlp_only_layers", "a mixture of experts (MoE) in some of the layers only"),
    ("index_topk", "sparse attention"),
    ("vision_config", "a vision encoder"),
    ("audio_config", "an audio encoder"),
)

# The same, where the architecture is not one that has it.
_REFUSED_ELSEWHERE = (
    ("n_shared_experts", "shared experts (MoE)"),
    ("n_routed_experts", "this mixture of experts (MoE)"),
    ("kv_lora_rank", "multi-head latent attention (MLA)"),
)

_VOCABULARY_PADDING = 64  # rows; what vLLM, SGLang and Megatron pad a shared vocabulary to

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2}
_KV_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


# The sampler's kernels after the temperature, by what a request filters with.
TOP_K_AND_TOP_P = ("top_k_mask", "softmax", "top_p_sampling")
TOP_P_ALONE = ("softmax", "top_p_sampling")
NO_FILTER = ("gumbel_sampling",)


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Multi-head latent attention: keys and values of a token are one vector of `kv_rank` and `rope` elements, from which
    `nope` elements of each head's key and `value` of its value are made by a product.

    q_rank: width of the queries' own latent vector, 0 where queries come from the hidden state at once.
    """

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int

    @property
    def cached(self) -> int:
        """Elements that the KV cache keeps of a token in one layer."""
        return self.kv_rank + self.rope


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes of a transformer on one GPU of `tp` (all counts are per GPU where a GPU holds a shard).

    name: for people; dtype, kv_dtype: database names (`bfloat16`, `fp8`); block_size: tokens a KV-cache block;
    experts, active_experts: zero for a dense model, else those of each layer and those that a token goes through, and
    `intermediate` is the width of one; sampling: operators of the sampler, from the filters that generation_config.json
    makes the default of each request; tied: the output layer uses the embedding's weights.

    weights: database name of the element type of the layers' products and experts (router and output layer have the
    model's); dense_layers: how many of the first layers have no experts, and dense_intermediate their width;
    shared_intermediate: width of the experts that every token goes through, all together; latent: with multi-head latent
    attention, where kv_heads and head_dim say nothing of the cache.
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
    experts: int = 0
    active_experts: int = 0
    sampling: tuple[str, ...] = TOP_K_AND_TOP_P
    tied: bool = False
    weights: str = BFLOAT16
    dense_layers: int = 0
    dense_intermediate: int = 0
    shared_intermediate: int = 0
    latent: LatentShape | None = None

    @property
    def vocab_shard(self) -> int:
        """Rows of the output layer on one GPU; engines pad them so that GPUs share them evenly."""
        if self.tp == 1:
            return self.vocab
        padded = -(-self.vocab // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
        return -(-padded // self.tp)

    @property
    def parameters(self) -> int:
        """Weights of the whole model, norms included (of a model on one GPU)."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self._products + self.layers * norms + self._routers + embeddings + self.hidden

    @property
    def _products(self) -> int:
        """Weights of the layers' products and experts, which quantisation makes smaller."""
        latent = self.latent
        if latent is None:
            attention = self.hidden * (2 * self.q_width + 2 * self.kv_width)
        else:
            q_inputs = latent.q_rank or self.hidden
            attention = (
                self.hidden * (latent.q_rank + latent.cached)
                + q_inputs * self.q_width
                + latent.kv_rank * self.heads * (latent.nope + latent.value)
                + self.heads * latent.value * self.hidden
            )
        each = self.intermediate * max(self.experts, 1) + self.shared_intermediate
        sparse_layers = self.layers - self.dense_layers
        feed_forward = 3 * self.hidden * (sparse_layers * each + self.dense_layers * self.dense_intermediate)
        return self.layers * attention + feed_forward

    @property
    def _routers(self) -> int:
        return (self.layers - self.dense_layers) * self.hidden * self.experts

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights; the scales of quantised ones (at most 0.1 % of them) are not counted."""
        products = self._products
        return round(products * self.product_bytes) + (self.parameters - products) * self.dtype_bytes

    @property
    def product_bytes(self) -> int:
        """Bytes of an element of the layers' products."""
        return weight_bytes_of(self.weights) or self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all layers."""
        if self.latent is not None:
            return self.layers * self.latent.cached * self.kv_dtype_bytes
        return 2 * self.layers * self.kv_width * self.kv_dtype_bytes

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
            "kv_rank": self.latent.kv_rank if self.latent else 0,
            "rope": self.latent.rope if self.latent else 0,
            "value": self.heads * (self.latent.value if self.latent else self.head_dim),
            "shared": self.shared_intermediate,
            "dense": self.dense_intermediate,
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
        model = cls.from_dict(config, name=name, tp=tp, dtype=dtype, kv=kv, block_size=block_size)
        return dataclasses.replace(model, sampling=_sampling(path.parent / "generation_config.json"))

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
        architectures = config.get("architectures") or []
        architecture = architectures[0] if architectures else str(config.get("model_type"))
        for field, what in (*_REFUSED, *(() if architecture in _LATENT else _REFUSED_ELSEWHERE)):
            if config.get(field):
                raise UnsupportedModelError(f"{name}: {what} cannot be priced yet (config.json has `{field}`)")
        if architecture not in _DENSE and architecture not in _EXPERTS:
            known = ", ".join(sorted((*_DENSE, *_EXPERTS)))
            raise UnsupportedModelError(f"{name}: architecture {architecture} cannot be priced yet (known: {known})")
        weights = element_type(config.get("quantization_config"), name)
        experts_field = next(
            (field for field in ("num_experts", "n_routed_experts") if config.get(field)), "num_local_experts"
        )
        experts = _count(config, experts_field, name) if config.get(experts_field) or architecture in _EXPERTS else 0
        if architecture in _DENSE and experts:
            raise UnsupportedModelError(f"{name}: {architecture} with a mixture of experts (MoE) cannot be priced yet")
        for field in ("decoder_sparse_step", "moe_layer_freq"):
            if config.get(field, 1) != 1:
                raise UnsupportedModelError(
                    f"{name}: a mixture of experts (MoE) in every second layer cannot be priced yet"
                    f" (config.json has `{field}`)"
                )
        qk_norm, width = _EXPERTS.get(architecture) or (_DENSE[architecture], "intermediate_size")
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
        heads = _count(config, "num_attention_heads", name)
        kv_heads = _count({"num_key_value_heads": heads, **_given(config)}, "num_key_value_heads", name)
        hidden = _count(config, "hidden_size", name)
        layers = _count(config, "num_hidden_layers", name)
        intermediate = _count(config, width, name)
        vocab = _count(config, "vocab_size", name)
        active = _count(config, "num_experts_per_tok", name) if architecture in _EXPERTS else 0
        latent = _latent(config, name) if architecture in _LATENT else None
        if latent is not None:
            head_dim, kv_heads = latent.nope + latent.rope, heads
        else:
            head_dim = _count({"head_dim": max(hidden // heads, 1), **_given(config)}, "head_dim", name)
        dense_layers, dense_intermediate, shared = 0, 0, 0
        if architecture in _LATENT:
            dense_layers = min(int(config.get("first_k_dense_replace") or 0), layers)
            dense_intermediate = _count(config, "intermediate_size", name)
            shared = int(config.get("n_shared_experts") or 0) * intermediate
        if heads % kv_heads:
            raise UnsupportedModelError(f"{name}: {heads} attention heads cannot share {kv_heads} key-value heads")
        if experts and active > experts:
            raise UnsupportedModelError(f"{name}: a token cannot go through {active} of {experts} experts")
        if tp < 1:
            raise UnsupportedModelError(f"{name}: a tensor-parallel size must be 1 or more, not {tp}")
        if tp > 1 and latent is not None:
            raise UnsupportedModelError(
                f"{name}: multi-head latent attention on {tp} GPUs cannot be priced yet: use one GPU"
            )
        if latent is not None and weights != BFLOAT16:
            raise UnsupportedModelError(
                f"{name}: multi-head latent attention with quantised weights cannot be priced yet"
            )
        if latent is not None and _KV_BYTES[kv] == 1:
            raise UnsupportedModelError(
                f"{name}: multi-head latent attention with an fp8 KV cache cannot be priced yet"
            )
        for what, count in (("attention heads", heads), ("intermediate size", intermediate)):
            if count % tp:
                raise UnsupportedModelError(f"{name}: {tp} GPUs cannot share {count} {what} evenly")
        if max(kv_heads, tp) % min(kv_heads, tp):
            raise UnsupportedModelError(f"{name}: {tp} GPUs cannot share {kv_heads} key-value heads evenly")
        return cls(
            name=name,
            layers=layers,
            hidden=hidden,
            heads=heads // tp,
            kv_heads=max(kv_heads // tp, 1),  # fewer heads than GPUs: each is kept by several
            head_dim=head_dim,
            intermediate=intermediate // tp,
            vocab=vocab,
            qk_norm=qk_norm,
            dtype=dtype,
            kv_dtype="fp8" if _KV_BYTES[kv] == 1 else "bfloat16",
            tp=tp,
            block_size=block_size,
            experts=experts,
            active_experts=active,
            tied=bool(config.get("tie_word_embeddings", False)),
            weights=weights,
            dense_layers=dense_layers,
            dense_intermediate=dense_intermediate,
            shared_intermediate=shared,
            latent=latent,
        )


def _latent(config: dict[str, Any], name: str) -> LatentShape:
    """The shape of multi-head latent attention. Raises UnsupportedModelError, which names what is missing."""
    rank = config.get("q_lora_rank")
    return LatentShape(
        q_rank=0 if rank is None else _count(config, "q_lora_rank", name),
        kv_rank=_count(config, "kv_lora_rank", name),
        nope=_count(config, "qk_nope_head_dim", name),
        rope=_count(config, "qk_rope_head_dim", name),
        value=_count(config, "v_head_dim", name),
    )


# Far above any model: what lies beyond is a slip, and an engine would allocate for hours.
_LIMITS = {"num_hidden_layers": 1000, "num_attention_heads": 4096, "head_dim": 4096, "vocab_size": 10_000_000}
_LIMIT = 1_000_000


def _given(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that have a value: null stands for a default in configurations."""
    return {field: value for field, value in config.items() if value is not None}


def _count(config: dict[str, Any], field: str, name: str) -> int:
    """A count of a configuration. Raises UnsupportedModelError, which names field and value."""
    value = config.get(field)
    if value is None:
        raise UnsupportedModelError(f"{name}: config.json lacks {field}")
    limit = _LIMITS.get(field, _LIMIT)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise UnsupportedModelError(
            f"{name}: `{field}` of config.json must be a whole number from 1 to {limit:,}, not {value!r}"
        )
    return value


def _sampling(path: Path) -> tuple[str, ...]:
    """The sampler's operators for requests that leave their filters to the model's generation_config.json."""
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return NO_FILTER
    if not isinstance(defaults, dict):
        return NO_FILTER
    top_k, top_p = defaults.get("top_k"), defaults.get("top_p")
    if isinstance(top_k, int) and top_k > 0:
        return TOP_K_AND_TOP_P
    return TOP_P_ALONE if isinstance(top_p, int | float) and top_p < 1 else NO_FILTER


@dataclass(frozen=True, slots=True)
class ModelKey:
    """The name of a step launch: `<config.json>|tp=1|dtype=bfloat16|kv=auto|block=16|engine=NAME-1.2.3`."""

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
