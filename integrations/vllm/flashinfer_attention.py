"""FlashInfer's attention on data-centre Blackwell (compute capability 10.x) without its downloaded kernels.

Why: there vLLM takes FlashInfer, whose attention is NVIDIA's "trtllm-gen": binaries that are downloaded one by one, for a
launcher that is compiled with nvcc against a header which is downloaded too. None of that exists on a host without a
GPU and a network. So the two functions that hand out the module (`get_trtllm_gen_fmha_module` of flashinfer.decode and
flashinfer.prefill, flashinfer 0.6 and 0.7) give out a stand-in. Which function is called with which tensors, workspaces,
checks and the page layout stay FlashInfer's.

A decode is one launch: with at most 16 blocks along the keys their results are joined inside the cluster
(CgaSmemReduction in trtllm/fmha/fmhaKernels.cuh); the separate reduction beyond that is inside the measured latency.
The tiles of queries and keys are in the header that is not there, so the grids are those of one block a head group and
sequence: attention is priced by the batch, never by its grid.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hyperlapse.integrations.vllm.flashinfer_launch import launch

_CONTEXT_TILE_TOKENS = 128  # queries of a block in the "Q128Kv128" context kernels
_CONTEXT_THREADS, _DECODE_THREADS = 512, 384
_TYPES = {"torch.bfloat16": "Bfloat16", "torch.float16": "Fp16", "torch.float8_e4m3fn": "E4m3"}


def replace_trtllm_gen() -> None:
    """Replaces the module getters in this process."""
    module = _TrtllmGenModule()
    for name in ("flashinfer.decode", "flashinfer.prefill"):
        part = importlib.import_module(name)
        if not hasattr(part, "get_trtllm_gen_fmha_module"):
            raise NotImplementedError(
                f"{name} has no get_trtllm_gen_fmha_module: this FlashInfer was never tested; take a vLLM that "
                "`hyperlapse engines` lists as tested"
            )
        setattr(part, "get_trtllm_gen_fmha_module", lambda: module)  # noqa: B010 - no attribute that mypy knows


class _TrtllmGenModule:
    """csrc/trtllm_fmha_kernel_launcher.cu of FlashInfer. Arguments are those of its TVM bindings; keys and values come as
    [pages, heads, tokens, head_dim].
    """

    def trtllm_paged_attention_decode(self, out: Any, _scales: Any, query: Any, keys: Any, *_: Any) -> None:
        sequences = query.shape[0]  # one token each: speculative decoding is refused
        launch(kernel_name(query, keys, out, "Decode"), query, (1, keys.shape[-3], sequences), _DECODE_THREADS)

    def trtllm_paged_attention_context(self, out: Any, _scales: Any, query: Any, keys: Any, *_: Any) -> None:
        tokens, heads = query.shape[:2]
        grid = (-(-tokens // _CONTEXT_TILE_TOKENS), heads, 1)
        launch(kernel_name(query, keys, out, "Context"), query, grid, _CONTEXT_THREADS)

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise NotImplementedError(
            f"FlashInfer's fmha_gen.{name} has no stand-in yet: choose another backend for this part in vLLM's flags"
        )


def kernel_name(query: Any, keys: Any, out: Any, phase: str) -> str:
    """As trtllm-gen spells its kernels (seen in public profiles of B200s), with the tiles of the commonest. phase: Context
    or Decode.
    """
    types = []
    for tensor in (query, keys, out):
        if str(tensor.dtype) not in _TYPES:
            raise NotImplementedError(
                f"trtllm-gen attention with {tensor.dtype} has no stand-in: use a bfloat16 model and --kv-cache-dtype auto"
            )
        types.append(_TYPES[str(tensor.dtype)])
    q, kv, o = types
    inputs = f"Qkv{q}" if q == kv else f"Q{q}Kv{kv}"
    kind = (
        "CausalP{}VarSeqQ128Kv128PersistentContext"
        if phase == "Context"
        else "CausalP{}MultiCtasKvCgaVarSeqQ8Kv128StaticSwapsAbForGen"
    )
    return f"fmhaSm100fKernel_{inputs}O{o}H{query.shape[-1]}PagedKv{kind.format(keys.shape[-2])}"
