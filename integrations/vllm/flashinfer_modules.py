"""FlashInfer's sampling kernels, and its block-wise FP8 products, without compiling them.

Why: for a model that ships a generation_config.json stock vLLM samples with FlashInfer, whose CUDA modules are compiled
with nvcc at first use. The kernels never run here, and a host without a GPU has no nvcc. So the loader of compiled
modules (`JitSpec.build_and_load`, flashinfer 0.6 and 0.7) gives out stand-ins that launch kernels of the real names, grids and
blocks through the CUDA runtime, and everything around them (which function is called, its buffers and their memory)
stays FlashInfer's.

A module that is not known here must never become a silent no-op, nor be looked for in the network, where a virtual clock
waits for nobody: it raises and says its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyperlapse.integrations.vllm.flashinfer_attention import replace_trtllm_gen
from hyperlapse.integrations.vllm.flashinfer_comm import decline_all_reduce
from hyperlapse.integrations.vllm.flashinfer_launch import device_limits, launch

_BLOCK_THREADS = 1024  # DISPATCH_COMPUTE_CAP_NUM_THREADS in flashinfer/sampling.cuh, compute capability 8 and later
_RADIX_FIXED_SHARED_BYTES = 2080  # RadixTopKMaskLogitsMultiCTA in flashinfer/topk.cuh: 517 words, rounded up to 16
_SWAPPED_BELOW_ROWS = 32  # fp8_blockscale_gemm_kernel.cuh: weights and rows change places for small batches
_REMEDY = "choose another backend for this part in vLLM's flags (for experts --moe-backend triton)"


def install() -> None:
    """Replaces the module loader in this process; calling it again changes nothing."""
    from flashinfer.jit import core as jit
    from flashinfer.jit import cubin_loader

    if getattr(jit.JitSpec, "_hyperlapse", False):
        return
    compiled = jit.JitSpec.build_and_load

    def build_and_load(spec: Any) -> Any:
        if spec.name == "sampling":
            return _SamplingModule()
        if spec.name == "fp8_blockscale_gemm_90":
            return _BlockScaleModule()
        if getattr(spec, "is_aot", False):  # only modules for nvcc have it
            return compiled(spec)
        raise NotImplementedError(
            f"FlashInfer's module {spec.name!r} is compiled at first use, and the integration has no "
            f"stand-in for it yet: {_REMEDY}"
        )

    def download(source: str, *_: Any, **__: Any) -> bool:
        raise NotImplementedError(
            f"FlashInfer would download {source}, and the integration has no stand-in for it yet: {_REMEDY}"
        )

    jit.JitSpec.build_and_load = build_and_load
    cubin_loader.download_file = download
    jit.JitSpec._hyperlapse = True
    decline_all_reduce()
    replace_trtllm_gen()


class _SamplingModule:
    """csrc/sampling.cu and csrc/renorm.cu of FlashInfer. Arguments are those of its TVM bindings."""

    def top_k_mask_logits(self, logits: Any, *_: Any) -> None:
        rows, vocabulary = logits.shape
        blocks, shared_bytes = radix_grid(rows, vocabulary, *device_limits(logits.device.index))
        _launch("RadixTopKMaskLogitsKernel_MultiCTA", logits, blocks, shared_bytes)

    def top_k_renorm_probs(self, probs: Any, *_: Any) -> None:
        rows, vocabulary = probs.shape
        blocks, shared_bytes = radix_grid(rows, vocabulary, *device_limits(probs.device.index))
        _launch("RadixTopKRenormProbKernel_MultiCTA", probs, blocks, shared_bytes)

    def top_p_sampling_from_probs(self, probs: Any, *_: Any) -> None:
        _launch("TopPSamplingFromProbKernel", probs, probs.shape[0], 0)

    def top_k_sampling_from_probs(self, probs: Any, *_: Any) -> None:
        _launch("TopKSamplingFromProbKernel", probs, probs.shape[0], 0)

    def top_k_top_p_sampling_from_probs(self, probs: Any, *_: Any) -> None:
        _launch("TopKTopPSamplingFromProbKernel", probs, probs.shape[0], 0)

    def min_p_sampling_from_probs(self, probs: Any, *_: Any) -> None:
        _launch("MinPSamplingFromProbKernel", probs, probs.shape[0], 0)

    def top_p_renorm_probs(self, probs: Any, *_: Any) -> None:
        _launch("TopPRenormProbKernel", probs, probs.shape[0], 0)

    def sampling_from_probs(self, probs: Any, *_: Any) -> None:
        _launch("SamplingFromProbKernel", probs, probs.shape[0], 0)

    def sampling_from_logits(self, logits: Any, *_: Any) -> None:
        _launch("SamplingFromLogitsKernel", logits, logits.shape[0], 0)

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise NotImplementedError(f"FlashInfer's sampling.{name} has no stand-in yet")


class _BlockScaleModule:
    """csrc/fp8_blockscale_gemm_sm90_binding.cu of FlashInfer: products of bfloat16 rows, quantised here, and FP8 weights
    with a scale for each block. A product is written and compiled for its shape by the module itself.
    """

    def set_deepgemm_jit_include_dirs(self, *_: Any) -> None:
        """Nothing is compiled."""

    def init(self) -> _BlockScaleModule:
        return self

    def configure_workspace(self, *_: Any) -> None:
        """No kernel runs."""

    def get_workspace_size(self, m: int, n: int, k: int) -> int:
        """Bytes: the most that any of its three runners takes, the one that quantises weights too."""
        scales = -(-k // 128)
        rows_bytes = -(-m // 4) * 4 * k + -(-m // 32) * 32 * scales * 4
        return rows_bytes + n * k + scales * -(-n // 128) * 4

    def run_gemm(self, rows: Any, weight: Any, out: Any, *_: Any) -> None:
        (m, k), n = rows.shape, weight.shape[0]
        processors, _limit = device_limits(out.device.index)
        if rows.element_size() > 1:
            launch(
                "_ZN12tensorrt_llm7kernels19fp8_blockscale_gemm18scale_1x128_kernelI", out, (processors * 8, 1, 1), 256
            )
        kernel = "fp8_gemm_kernel_swapAB" if m < _SWAPPED_BELOW_ROWS else "fp8_gemm_kernel"
        name = f"_ZN9deep_gemm{len(kernel)}{kernel}ILj{n}ELj{k}E"
        launch(name, out, (processors, 1, 1), 384)

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise NotImplementedError(f"FlashInfer's fp8_blockscale_gemm.{name} has no stand-in yet")


def radix_grid(rows: int, vocabulary: int, processors: int, shared_limit_bytes: int) -> tuple[int, int]:
    """(thread blocks, dynamic shared memory in bytes) of the multi-block radix kernels on float32 rows.

    RadixTopKMaskLogitsMultiCTA in flashinfer/topk.cuh: a row is split over as many blocks as its ordered copy needs.
    """
    vector = 4 if vocabulary % 4 == 0 else 2 if vocabulary % 2 == 0 else 1
    chunk_limit = (shared_limit_bytes - _RADIX_FIXED_SHARED_BYTES) // 4 // vector * vector
    chunk_limit = max(chunk_limit, vector * _BLOCK_THREADS)
    per_row = _divide_up(vocabulary, chunk_limit)
    chunk = min(_divide_up(_divide_up(vocabulary, per_row), vector) * vector, chunk_limit)
    groups = max(min(processors // per_row, rows), 1)
    return groups * per_row, _RADIX_FIXED_SHARED_BYTES + chunk * 4


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)


def _launch(kernel: str, tensor: Any, blocks: int, shared_bytes: int) -> None:
    """A sampling kernel; all of them are templates over the threads of a block first."""
    name = f"_ZN10flashinfer8sampling{len(kernel)}{kernel}ILj{_BLOCK_THREADS}E"
    launch(name, tensor, (blocks, 1, 1), _BLOCK_THREADS, shared_bytes)
