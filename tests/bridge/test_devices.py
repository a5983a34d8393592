"""What the libraries say about each bundled device comes from its profile, and says the same thing by every road."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

from hyperlapse.shim import devices

from .conftest import Outcome

PRELUDE = """
import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p, create_string_buffer
rt, cu, nvml = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
def ok(code): assert code == 0, code
def out(kind, call, *args):
    value = kind()
    ok(call(byref(value), *args))
    return value.value
ok(cu.cuInit(0)); ok(nvml.nvmlInit_v2())
def handle(i):
    h = c_void_p(); ok(nvml.nvmlDeviceGetHandleByIndex_v2(i, byref(h))); return h
"""


@pytest.mark.parametrize("gpu", sorted(path.stem for path in devices.DIRECTORY.glob("*.yaml")))
def test_facts_of_each_bundled_device(run_program: Callable[..., Outcome], gpu: str) -> None:
    code = """
        # compute capability, SMs, L2, shared memory per block and with opt-in, threads and blocks per SM, ECC, FP64 ratio
        print(*[out(c_int, rt.cudaDeviceGetAttribute, a, 0) for a in (75, 76, 16, 38, 8, 97, 81, 39, 106, 32, 87)])
        print(*[out(c_int, cu.cuDeviceGetAttribute, a, 0) for a in (75, 76, 16, 38, 8, 97, 81, 39, 106, 32, 87)])
        unknown = [a for a in range(1, 150) if cu.cuDeviceGetAttribute(byref(c_int()), a, 0)]
        print(unknown)
        print(out(c_int, cu.cuDeviceGetAttribute, 120, 0) == out(c_int, cu.cuDeviceGetAttribute, 127, 0))  # clusters and TMA
        brand, major, minor, architecture = c_int(), c_int(), c_int(), c_uint()
        ok(nvml.nvmlDeviceGetBrand(handle(0), byref(brand)))
        ok(nvml.nvmlDeviceGetCudaComputeCapability(handle(0), byref(major), byref(minor)))
        ok(nvml.nvmlDeviceGetArchitecture(handle(0), byref(architecture)))
        print(major.value, minor.value, architecture.value, brand.value)
        can = [out(c_int, rt.cudaDeviceCanAccessPeer, 0, 1), out(c_int, cu.cuDeviceCanAccessPeer, 1, 0),
               out(c_int, rt.cudaDeviceGetP2PAttribute, 2, 0, 1), out(c_int, cu.cuDeviceGetP2PAttribute, 2, 1, 0)]
        print(*can, rt.cudaDeviceEnablePeerAccess(1, 0), rt.cudaDeviceCanAccessPeer(byref(c_int()), 0, 2))
        ok(rt.cudaSetDevice(0))
        status = [c_int() for _ in range(3)]
        for capability, value in enumerate(status):
            ok(nvml.nvmlDeviceGetP2PStatus(handle(0), handle(1), capability, byref(value)))
        print(*[value.value for value in status])
        active = c_int(); code = nvml.nvmlDeviceGetNvLinkState(handle(0), 0, byref(active))
        print(code, active.value)
    """
    lines = run_program(
        PRELUDE + textwrap.dedent(code), gpu=gpu, gpus=2, extra={"HYPERLAPSE_UNSUPPORTED": "error"}
    ).lines
    facts = devices.load(gpu).facts
    wanted = (
        f"{facts.compute_major} {facts.compute_minor} {facts.multiprocessors} {facts.l2_cache_bytes} "
        f"{facts.shared_memory_per_block_bytes} {facts.shared_memory_per_block_optin_bytes} "
        f"{facts.shared_memory_per_multiprocessor_bytes} {facts.max_threads_per_multiprocessor} "
        f"{facts.max_blocks_per_multiprocessor} {facts.ecc} {facts.fp32_per_fp64}"
    )
    assert lines[:2] == [wanted, wanted]
    holes = set(map(int, lines[2].strip("[]").replace(",", " ").split()))
    assert holes == {139, 140, 148, 149}, (
        "all of CUDA 13.0 have an answer but the PCI device and subsystem ids, which no profile has"
    )
    architectures = {(8, 0): 7, (8, 9): 8, (9, 0): 9, (10, 0): 10, (12, 0): 10}
    capability = (facts.compute_major, facts.compute_minor)
    brand = 5 if "GeForce" in facts.name else 13 if "RTX" in facts.name else 14
    assert lines[3:5] == ["True", f"{capability[0]} {capability[1]} {architectures[capability]} {brand}"]
    peers, links = int(facts.copy_p2p_bytes_per_s > 0), int(facts.nvlink_links > 0)
    assert lines[5] == f"{peers} {peers} {peers} {peers} {0 if peers else 217} 101"
    assert lines[6] == " ".join(str(0 if yes else 5) for yes in (peers, peers, links))
    assert lines[7] == ("0 1" if links else "3 0")
