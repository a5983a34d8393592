"""DeepGEMM's kernels without compiling them.

Why: on Hopper and Blackwell vLLM computes block-wise FP8 products with DeepGEMM (vendored as vllm.third_party.deep_gemm, or
installed beside it), which writes CUDA for each shape and compiles it with nvcc at its first use. A host without a GPU has no
nvcc, and the kernels never run. So the products of its Python module are replaced by launches of kernels of the real names,
shapes included; which product vLLM asks for, and with which tensors, stays vLLM's.

The tile sizes are chosen in DeepGEMM's C++ and not known here: the grid is one block a multiprocessor, which all its
persistent kernels have, and prices are read from shapes and never from the grid.

A product that is not known here raises and says its name.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from hyperlapse.integrations.vllm.flashinfer_launch import device_limits, launch

_MODULES = ("deep_gemm", "vllm.third_party.deep_gemm")
_THREADS = 384  # 128 that load and 256 that multiply, of the commonest tiles
# Compiled at first use, and without a stand-in.
_OTHERS = ("einsum", "mqa_logits", "paged_mqa_logits", "grouped", "prenorm_gemm", "mega_", "fp4_gemm", "bf16_gemm")


def install() -> None:
    """Replaces the products in this process; calling it again changes nothing. Nothing where DeepGEMM is not installed."""
    for name in _MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        for function in dir(module):
            if any(part in function for part in _OTHERS) and callable(getattr(module, function)):
                setattr(module, function, _refusing(function))
        for function in ("fp8_gemm_nt", "fp8_fp4_gemm_nt"):
            if hasattr(module, function):
                setattr(module, function, _fp8_gemm_nt)


def _fp8_gemm_nt(a: Any, b: Any, d: Any, *_: Any, **__: Any) -> None:
    """A product of row-major `a` (m x k) and the transpose of `b` (n x k), both FP8 with their scales beside them."""
    (rows, k), n = a[0].shape, b[0].shape[0]
    if not rows:
        return  # as DeepGEMM: nothing to launch
    processors, _limit = device_limits(d.device.index)
    launch(kernel_name(n, k, _capability(d)), d, (processors, 1, 1), _THREADS)


def kernel_name(n: int, k: int, capability: int) -> str:
    """As DeepGEMM 2.8 mangles its template: the major order of the scales, m (known at run time: 0), n, k, groups.
    capability: major number of the device's. Raises NotImplementedError for a device that it has no kernels for.
    """
    kernels = {9: "sm90_fp8_gemm_1d2d_impl", 10: "sm100_fp8_gemm_1d1d_impl", 12: "sm120_fp8_gemm_1d1d_impl"}
    if capability not in kernels:
        raise NotImplementedError(f"DeepGEMM has no FP8 product for devices of compute capability {capability}.x")
    kernel = kernels[capability]
    return f"_ZN9deep_gemm{len(kernel)}{kernel}ILN4cute4UMMA5MajorE0ELj0ELj{n}ELj{k}ELj1E"


def _capability(tensor: Any) -> int:
    import torch

    return int(torch.cuda.get_device_capability(tensor.device)[0])


def _refusing(function: str) -> Callable[..., None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError(
            f"DeepGEMM's {function} is compiled at first use, and the integration has no stand-in for it yet: set "
            "VLLM_USE_DEEP_GEMM=0, or choose another backend for this part in vLLM's flags"
        )

    return refuse
