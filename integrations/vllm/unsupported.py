"""Configurations that cannot be emulated, refused before the engine starts, each with what to do instead.

Why: a configuration that nobody prices would end in the worker, as a stack trace of the engine core under which the cause
is hard to find. What the command line tells is refused by the launcher, before any process starts (`refuse_flags`); what
only vLLM's resolved configuration tells is refused by the worker, before it loads anything (`refuse_configuration`),
with one line of plain text in front of the traceback that vLLM prints.

It must never refuse what works: docs/features.md lists both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hyperlapse.integrations.vllm.versions import configured_runner, installed_version, model_runner


class UnsupportedConfigurationError(ValueError):
    """A configuration that cannot be emulated; the text says what to do instead."""


_NO_LORA = "LoRA adapters are not priced: leave the adapter flags out and serve the base model"
_NO_SPECULATION = (
    "speculative decoding is not emulated: which drafts are accepted depends on logits, and no kernel runs. Leave "
    "--speculative-config out"
)
_NO_POOLING = (
    "embedding, classification, reward and scoring models are not emulated: their output is what kernels compute. Serve a "
    "model that generates text"
)
_NO_EMBEDS = "prompts given as embeddings are not emulated: leave --enable-prompt-embeds out and send text or token ids"
_NO_OFFLOADING = (
    "KV offloading needs the KV cache's tensors, and the step detail has none: use --detail kernel, or leave it out"
)
_OFFLOADING_VERSION = (
    "KV offloading works with vLLM 0.23.0 only: 0.32.0 then calls the CUDA runtime that torchvision brings, which is not "
    "virtual. Use --engine vllm==0.23.0, or leave it out"
)
_NO_CONNECTOR = (
    "it moves blocks between engines, or to storage, which has no virtual time: use --kv-offloading-size with --detail "
    "kernel, or leave it out"
)
_NO_MASKS = "sampling masks are made of logits, and no kernel runs. Leave --return-sampling-mask out"
_NO_PROCESSORS = "logits processors change logits, and no kernel makes any. Leave --logits-processors out"
_NO_EXPERT_PARALLELISM = (
    "expert parallelism is not priced (which GPU a token's experts are on, and the exchange of tokens): leave it out, and "
    "GPUs share each expert's columns"
)
_NO_REPLICAS_OF_EXPERTS = (
    "replicas of a model with experts are not priced: vLLM divides the experts among all of them. Use tensor parallelism "
    "alone"
)
_EXPERT_PARALLELISM = ("--enable-expert-parallel", "-ep")
_GPUS_OF_EXPERTS = ("--tensor-parallel-size", "-tp", "--data-parallel-size", "-dp")
_OFFLOADING = "OffloadingConnector"
"""VLLM's own, which copies blocks to the host's memory and back; --kv-offloading-size makes it."""
_REFUSED_FLAGS = {
    "--enable-lora": _NO_LORA,
    "--lora-modules": _NO_LORA,
    "--speculative-config": _NO_SPECULATION,
    "-sc": _NO_SPECULATION,
    "--spec-method": _NO_SPECULATION,
    "--spec-model": _NO_SPECULATION,
    "--enable-prompt-embeds": _NO_EMBEDS,
    "--return-sampling-mask": _NO_MASKS,
    "--logits-processors": _NO_PROCESSORS,
}


def refuse_flags(flags: Sequence[str], detail: str) -> None:
    """flags: what follows `vllm serve`. Raises UnsupportedConfigurationError for the first that cannot be emulated."""
    for index, flag in enumerate(flags):
        name, given, value = flag.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-").partition(".")[0]  # vLLM takes --speculative-config.method too
        following = value if given else "".join(flags[index + 1 : index + 2])
        if name in _REFUSED_FLAGS:
            raise UnsupportedConfigurationError(f"{name}: {_REFUSED_FLAGS[name]}")
        if name == "--runner" and following == "pooling":
            raise UnsupportedConfigurationError(f"--runner pooling: {_NO_POOLING}")
        if name in ("--task", "--convert") and following not in ("generate", "auto", "none"):
            raise UnsupportedConfigurationError(f"{name} {following}: {_NO_POOLING}")
        if name == "--kv-offloading-size" and detail == "step":
            raise UnsupportedConfigurationError(f"{name}: {_NO_OFFLOADING}")
        if name in _EXPERT_PARALLELISM and _divides_experts(flags):
            raise UnsupportedConfigurationError(f"{name}: {_NO_EXPERT_PARALLELISM}")


def _divides_experts(flags: Sequence[str]) -> bool:
    """On one GPU expert parallelism changes nothing."""
    for index, flag in enumerate(flags):
        name, given, value = flag.partition("=")
        if name.replace("_", "-") in _GPUS_OF_EXPERTS:
            size = value if given else "".join(flags[index + 1 : index + 2])
            if size.isdecimal() and int(size) > 1:
                return True
    return False


def refuse_configuration(vllm_config: Any, detail: str) -> None:
    """Raises UnsupportedConfigurationError, after having said why on stderr, for a resolved VllmConfig that cannot be
    emulated.
    """
    for why in _reasons(vllm_config, detail):
        print(f"hyperlapse: {why}", file=sys.stderr, flush=True)
        raise UnsupportedConfigurationError(why)


def _reasons(config: Any, detail: str) -> Iterator[str]:
    model = config.model_config
    if model.runner_type == "pooling":
        yield _NO_POOLING
    if model.is_encoder_decoder:
        yield "encoder-decoder models are not emulated: serve a decoder-only model"
    if model.is_multimodal_model:
        yield (
            "multimodal models are not emulated: their encoders are not priced. Serve the text-only model of the family"
        )
    if config.lora_config is not None:
        yield _NO_LORA
    if config.speculative_config is not None:
        yield _NO_SPECULATION
    if getattr(model, "enable_prompt_embeds", False):
        yield _NO_EMBEDS
    if getattr(model, "return_sampling_mask", False):
        yield _NO_MASKS
    if getattr(model, "logits_processors", None):
        yield _NO_PROCESSORS
    parallel = config.parallel_config
    replicas = parallel.data_parallel_size
    if getattr(parallel, "enable_expert_parallel", False) and parallel.tensor_parallel_size * replicas > 1:
        yield _NO_EXPERT_PARALLELISM
    if replicas > 1 and getattr(model, "is_moe", False):
        yield _NO_REPLICAS_OF_EXPERTS
    runner = configured_runner(config)
    if runner == "V2" and model_runner() == "V1":
        yield (
            "this version of vLLM has model runner V2 only as an experiment, which is not emulated: unset "
            "VLLM_USE_V2_MODEL_RUNNER, or take a newer vLLM"
        )
    connector = config.kv_transfer_config
    if connector is not None and connector.kv_connector != _OFFLOADING:
        yield f"the KV connector {connector.kv_connector} is not emulated: {_NO_CONNECTOR}"
    if connector is not None and detail == "step":
        yield _NO_OFFLOADING
    elif connector is not None and not (installed_version() or "0.23.0").startswith("0.23."):
        yield _OFFLOADING_VERSION
    if detail == "step":
        yield from _reasons_of_step(config)


def _reasons_of_step(config: Any) -> Iterator[str]:
    parallel, model = config.parallel_config, config.model_config
    for asked, what in (
        (bool(model.hf_overrides), "--hf-overrides (the predictor reads the model's config.json)"),
        (parallel.data_parallel_size > 1, "data parallelism"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism"),
    ):
        if asked:
            yield f"{what} is not supported with --detail step yet: use --detail kernel"
