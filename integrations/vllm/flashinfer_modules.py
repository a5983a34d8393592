"""FlashInfer's sampling kernels without compiling them.

Why: for a model that ships a generation_config.json stock vLLM samples with FlashInfer, whose CUDA modules are compiled
with nvcc at first use. The kernels never run here, and a host without a GPU has no nvcc. So the loader of compiled
modules (`JitSpec.build_and_load`, flashinfer 0.6) gives out stand-ins that launch kernels of the real names, grids and
blocks through the CUDA runtime, and everything around them (which function is called, its buffers and their memory)
stays FlashInfer's.

A module that is not known here must never become a silent no-op: it raises and says its name.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

_BLOCK_THREADS = 1024  # DISPATCH_COMPUTE_CAP_NUM_THREADS in flashinfer/sampling.cuh, compute capability 8 and later
_RADIX_FIXED_SHARED_BYTES = 2080  # RadixTopKMaskLogitsMultiCTA in flashinfer/topk.cuh: 517 words, rounded up to 16


def install() -> None:
    """Replaces the module loader in this process; calling it again changes nothing."""
    from flashinfer.jit import core as jit

    if getattr(jit.JitSpec, "_hyperlapse", False):
        return
    compiled = jit.JitSpec.build_and_load

    def build_and_load(spec: Any) -> Any:
        if spec.name == "sampling":
            return _SamplingModule()
        if spec.is_aot:
            return compiled(spec)
        raise NotImplementedError(
            f"FlashInfer's module {spec.name!r} is compiled with nvcc at first use, and the integration has no "
            "stand-in for it yet: choose another backend for this part in vLLM's flags"
        )

    jit.JitSpec.build_and_load = build_and_load
    jit.JitSpec._hyperlapse = True


class _SamplingModule:
    """csrc/sampling.cu and csrc/renorm.cu of FlashInfer. Arguments are those of its TVM bindings."""

    def top_k_mask_logits(self, logits: Any, *_: Any) -> None:
        rows, vocabulary = logits.shape
        blocks, shared_bytes = radix_grid(rows, vocabulary, *_device_limits(logits.device.index))
        _launch("RadixTopKMaskLogitsKernel_MultiCTA", logits, blocks, shared_bytes)

    def top_k_renorm_probs(self, probs: Any, *_: Any) -> None:
        rows, vocabulary = probs.shape
        blocks, shared_bytes = radix_grid(rows, vocabulary, *_device_limits(probs.device.index))
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


@functools.cache
def _device_limits(device: int) -> tuple[int, int]:
    """(multiprocessors, opt-in shared memory per block in bytes), asked of the CUDA runtime as FlashInfer does."""
    cudart, value = _cudart(), ctypes.c_int()
    limits: list[int] = []
    for attribute in (16, 97):  # cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin
        _check(cudart.cudaDeviceGetAttribute(ctypes.byref(value), attribute, device), "cudaDeviceGetAttribute")
        limits.append(value.value)
    return limits[0], limits[1]


class _Dim3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


class _FatBinary(ctypes.Structure):
    """__fatBinC_Wrapper_t of NVIDIA's fatbinary.h: what a compiled module registers. Ours holds no code."""

    _fields_ = (
        ("magic", ctypes.c_int),
        ("version", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("unused", ctypes.c_void_p),
    )


@functools.cache
def _cudart() -> Any:
    import torch

    # loaded already: the name finds the one that the engine uses
    library = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")
    pointer = ctypes.c_void_p
    library.cudaLaunchKernel.argtypes = (pointer, _Dim3, _Dim3, pointer, ctypes.c_size_t, pointer)
    library.cudaFuncSetAttribute.argtypes = (pointer, ctypes.c_int, ctypes.c_int)
    return library


@functools.cache
def _registration() -> tuple[Any, Any]:
    """The two calls that the start-up code of a module compiled by nvcc makes."""
    pointer = ctypes.c_void_p
    register_module = getattr(_cudart(), "__cudaRegisterFatBinary")
    register_module.argtypes, register_module.restype = (pointer,), pointer
    register_kernel = getattr(_cudart(), "__cudaRegisterFunction")
    register_kernel.argtypes = (pointer, pointer, pointer, pointer, ctypes.c_int, *(5 * (pointer,)))
    return register_module, register_kernel


_BINARY = _FatBinary(0x466243B1, 1, None, None)  # the runtime keeps its address


@functools.cache
def _module() -> int:
    """A registered module without code, whose kernels have names only."""
    register_module, _ = _registration()
    handle: int = register_module(ctypes.byref(_BINARY))
    return handle


class _Kernel:
    """A registered kernel: the runtime keeps the addresses of its host stub and of its name."""

    def __init__(self, name: str) -> None:
        self._stub = ctypes.c_char()
        self._name = ctypes.create_string_buffer(name.encode())
        self._shared_bytes = 0
        self.address = ctypes.addressof(self._stub)
        _, register_kernel = _registration()
        register_kernel(_module(), self.address, self._name, self._name, -1, *(5 * (None,)))

    def allow(self, shared_bytes: int) -> None:
        """As FlashInfer does before a launch: more than 48 KiB of dynamic shared memory must be asked for."""
        if shared_bytes > self._shared_bytes:
            attribute = 8  # cudaFuncAttributeMaxDynamicSharedMemorySize
            _check(_cudart().cudaFuncSetAttribute(self.address, attribute, shared_bytes), "cudaFuncSetAttribute")
            self._shared_bytes = shared_bytes


@functools.cache
def _kernel(name: str) -> _Kernel:
    return _Kernel(name)


def _launch(kernel: str, tensor: Any, blocks: int, shared_bytes: int) -> None:
    """Launches on the stream that FlashInfer's bindings use: torch's current one of the tensor's device."""
    import torch

    registered = _kernel(f"_ZN10flashinfer8sampling{len(kernel)}{kernel}ILj{_BLOCK_THREADS}E")
    registered.allow(shared_bytes)
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    status = _cudart().cudaLaunchKernel(
        registered.address,
        _Dim3(blocks, 1, 1),
        _Dim3(_BLOCK_THREADS, 1, 1),
        None,
        shared_bytes,
        stream,
    )
    _check(status, kernel)


def _check(status: int, what: str) -> None:
    if status != 0:
        raise RuntimeError(f"{what} failed with CUDA error {status}")
