"""KV-cache block counts that vLLM computed for itself on real cards, as far as anyone has published them.

Why: they are the test of everything that an engine's memory profiling sees: weights, activations, the compiler's own
tensors, and what the driver takes. Counts and configurations are facts and stand here; the recordings do not.

It must never hold a count that a simulator made, and never one whose configuration is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESIDENCY = "github.com/inference-sim/residency-vllm, w5_w7/experiment_specs.md"
OWN = "a lent H100 80GB HBM3, driver 580.159.04, 2026-11-27, benchmarks/gpu"
LLMSERVINGSIM = "github.com/casys-kaist/LLMServingSim, bench/examples, meta.json"
TRAINING = (
    "github.com/inference-sim/inference-sim, testdata/trained_physics_iter29.json (total_kv_blocks of recorded runs)"
)

_TRAINING_FLAGS = ("--max-num-seqs", "128", "--max-num-batched-tokens")
_ANY = {"initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
LLAMA_2_7B: Mapping[str, Any] = {
    **_ANY, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MISTRAL_NEMO: Mapping[str, Any] = {
    **_ANY, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 5120, "head_dim": 128,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
    "vocab_size": 131072, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "rope_theta": 1000000.0, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
QWEN_2_5_7B: Mapping[str, Any] = {
    **_ANY, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "hidden_act": "silu",
    "rope_theta": 1000000.0, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28,
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordedBlocks:
    """One count. model: a bundled model, or a name for `configuration`; compile_cache: the state that the recording had,
    `warm` or `cold` (`told`: the source says so; else it is what fits); flags: of `vllm serve`, beside the defaults;
    missing: why this version cannot be asked for the count, empty when it can.
    """

    gpu: str
    version: str
    model: str
    blocks: int
    compile_cache: str
    told: bool
    source: str
    flags: tuple[str, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""

    def model_argument(self, folder: Path) -> str:
        """What `--model` is given: the bundled name, or a folder made below this one."""
        if not self.configuration:
            return self.model
        path = folder / self.model
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.configuration), encoding="utf-8")
        return str(path)


def _training(model: str, configuration: Mapping[str, Any], batched_tokens: int, blocks: int) -> RecordedBlocks:
    return RecordedBlocks(
        "h100-sxm-80gb", "0.15.1", model, blocks, "cold", False, TRAINING,
        ("--max-model-len", "4096", *_TRAINING_FLAGS, str(batched_tokens)), configuration,
    )  # fmt: skip


RECORDED = (
    RecordedBlocks("h100-sxm-80gb", "0.23.0", "qwen3-14b", 18_038, "warm", False, RESIDENCY),
    RecordedBlocks("h100-sxm-80gb", "0.23.0", "qwen3-14b", 18_038, "warm", True, OWN),
    RecordedBlocks("h100-sxm-80gb", "0.23.0", "qwen3-14b", 17_815, "cold", True, OWN),
    RecordedBlocks("h100-sxm-80gb", "0.23.0", "llama-3.1-8b", 28_934, "cold", True, OWN),
    RecordedBlocks(
        "rtx-4090", "0.19.0", "llama-3.1-8b", 2_588, "cold", False, LLMSERVINGSIM,
        ("--max-model-len", "32768", "--max-num-batched-tokens", "2048", "--max-num-seqs", "256"),
    ),
    _training("llama-2-7b", LLAMA_2_7B, 2048, 7_463),
    _training("mistral-nemo-12b", MISTRAL_NEMO, 2048, 19_251),
    _training("qwen2.5-7b", QWEN_2_5_7B, 2048, 65_352),
    _training("qwen2.5-7b", QWEN_2_5_7B, 1024, 65_368),
    RecordedBlocks(
        "rtx-pro-6000", "0.28.0", "deepseek-v3.2-16l64e", 49_181, "cold", False, LLMSERVINGSIM,
        missing="sparse MLA with FP8 experts",
    ),
    RecordedBlocks("h100-sxm-80gb", "0.15.1", "llama-3.1-70b", 30_251, "cold", False, TRAINING, missing="four GPUs"),
    RecordedBlocks("h100-sxm-80gb", "0.15.1", "mistral-nemo-12b", 48_009, "cold", False, TRAINING, missing="two GPUs"),
    RecordedBlocks("h100-sxm-80gb", "0.15.1", "yi-34b", 20_793, "cold", False, TRAINING, missing="two GPUs"),
    RecordedBlocks(
        "h100-sxm-80gb", "0.15.1", "llama-4-scout-fp8", 8_253, "cold", False, TRAINING, missing="two GPUs, FP8 experts"
    ),
)  # fmt: skip
