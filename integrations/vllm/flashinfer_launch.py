"""Kernels of FlashInfer that have names but no code, and their launches through the CUDA runtime.

Why: FlashInfer's compiled modules register their kernels as every module compiled by nvcc does, so the stand-ins for them
do the same: the core sees a launch of the real name and prices it, inside graphs too.

It must never launch a name that FlashInfer does not have: the name is what the launch is priced by.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any


@functools.cache
def device_limits(device: int) -> tuple[int, int]:
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


def launch(kernel: str, tensor: Any, grid: tuple[int, int, int], threads: int, shared_bytes: int = 0) -> None:
    """Launches on the stream that FlashInfer's bindings use: torch's current one of the tensor's device. kernel: its
    mangled name; grid: thread blocks; threads: of a block; shared_bytes: dynamic shared memory.
    """
    import torch

    registered = _kernel(kernel)
    registered.allow(shared_bytes)
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    status = _cudart().cudaLaunchKernel(
        registered.address,
        _Dim3(*grid),
        _Dim3(threads, 1, 1),
        None,
        shared_bytes,
        stream,
    )
    _check(status, kernel)


def _check(status: int, what: str) -> None:
    if status != 0:
        raise RuntimeError(f"{what} failed with CUDA error {status}")
