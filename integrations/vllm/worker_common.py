"""What both workers share: who they are on the virtual devices, and what they tell the run about themselves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperlapse.integrations.vllm.sampler import VirtualSampler
from hyperlapse.integrations.vllm.versions import configured_runner
from hyperlapse.integrations.vllm.vocabulary import Vocabulary


def virtual_device(local_rank: int) -> int:
    """The run's ordinal of this worker's device: CUDA_VISIBLE_DEVICES renumbers what the engine sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ordinals = [part.strip() for part in visible.split(",") if part.strip()]
    if not ordinals:
        return local_rank
    if local_rank >= len(ordinals) or not ordinals[local_rank].isdigit():
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={visible} names no device for local rank {local_rank} (only ordinals are supported)"
        )
    return int(ordinals[local_rank])


def device_facts(device: int) -> bytes:
    """The facts of a virtual device, as bytes: part of a profile's key. Raises RuntimeError outside a run."""
    from hyperlapse.shim._core import core

    binding = core()
    facts = binding.lib.hl_device_facts_of(device)
    if not facts:
        raise RuntimeError(
            f"there is no virtual device {device}: start the server through `hyperlapse run` or `hyperlapse bench`"
        )
    return bytes(binding.ffi.buffer(facts, binding.ffi.sizeof("hl_device_facts")))


def model_key(vllm_config: Any) -> str:
    """The name under which the predictor finds the model of a step."""
    import vllm

    model, cache = vllm_config.model_config, vllm_config.cache_config
    config = Path(model.model, "config.json").resolve()
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{config}|tp={vllm_config.parallel_config.tensor_parallel_size}|dtype={dtype}|kv={cache.cache_dtype}"
        f"|block={cache.block_size}|engine=vllm-{vllm.__version__}"
    )


def sampler_of(vllm_config: Any) -> VirtualSampler:
    """The virtual sampler of this model: its ids are words of the model's tokenizer and never its end-of-sequence ids."""
    model = vllm_config.model_config
    stops: set[int] = set()
    generation = model.try_get_generation_config()
    for source in (generation.get("eos_token_id"), getattr(model.hf_config, "eos_token_id", None)):
        stops.update(source if isinstance(source, list) else [source] if isinstance(source, int) else [])
    if model.skip_tokenizer_init:
        return VirtualSampler(Vocabulary.without_tokenizer(model.get_vocab_size(), stops))
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model)  # the engine's grammars use the same one
    return VirtualSampler(Vocabulary.of_tokenizer(tokenizer, model.get_vocab_size(), stops))


_CASCADE_TOKENS = 256  # and 8 requests: use_cascade_attention in vllm/v1/attention/backends/flash_attn.py of 0.15.1
_CASCADE_REQUESTS = 8


def cascade_watch(vllm_config: Any) -> Callable[[Any], None] | None:
    """Tells the run, once, when a SchedulerOutput may run with cascade attention, which nobody prices: model runner V1
    takes it for prompts with a common beginning, by default until 0.15. None where it never does.
    """
    if configured_runner(vllm_config) != "V1" or vllm_config.model_config.disable_cascade_attn:
        return None
    cache, told = vllm_config.cache_config, False

    def tell(output: Any) -> None:
        nonlocal told
        common = max(output.num_common_prefix_blocks, default=0) * cache.block_size
        if told or common < _CASCADE_TOKENS or len(output.num_scheduled_tokens) < _CASCADE_REQUESTS:
            return
        told = True
        from hyperlapse.shim._core import core

        core().lib.hl_report_event(
            b"cascade-attention",
            b"all requests of a step begin alike, and this vLLM may then compute their common beginning once (cascade "
            b"attention), which is not priced: give the engine --disable-cascade-attn",
        )

    return tell


def tell_run(record: dict[str, Any]) -> None:
    """Appends one line to this process's statistics file in the run directory; nothing outside a run.

    Written at once and unbuffered: a line is in memory of the kernel before the call returns, so no signal can lose it.
    """
    directory = os.environ.get("HYPERLAPSE_RUN_DIR")
    if not directory:
        return
    line = json.dumps({"t_ns": time.monotonic_ns(), "pid": os.getpid(), **record}, separators=(",", ":")) + "\n"
    file = os.open(Path(directory, f"engine-{os.getpid()}.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
