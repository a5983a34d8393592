"""Programs compiled with NVIDIA's own headers of CUDA 12 and 13, and linked with their real runtimes, get ours of the same
ABI: names, argument lists and layouts are the compiler's, not this project's.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import Outcome

SOURCE = r"""
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>
#define OK(call) do { cudaError_t e = call; if (e) { printf("%s: %s\n", #call, cudaGetErrorName(e)); return 1; } } while (0)
int main(void)
{
    struct cudaDeviceProp p;
    int version, clock;
    OK(cudaRuntimeGetVersion(&version));
    printf("built %d runs %d\n", CUDART_VERSION / 1000, version / 1000);
    memset(&p, 0x5a, sizeof p);
    OK(cudaGetDeviceProperties(&p, 0));
    printf("%s %d.%d %d %zu %d %zu %d %d %d %d\n", p.name, p.major, p.minor, p.multiProcessorCount, p.totalGlobalMem,
           p.l2CacheSize, p.sharedMemPerBlockOptin, p.maxThreadsPerMultiProcessor, p.regsPerMultiprocessor,
           p.memoryPoolsSupported, p.clusterLaunch);
    OK(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
#if CUDART_VERSION < 13000
    printf("clock %d\n", p.clockRate == clock && p.deviceOverlap == 1 && p.computeMode == 0);
#else
    printf("clock %d\n", clock > 0);
#endif
    cudaStream_t stream;
    cudaGraph_t graph = NULL, mine = NULL;
    cudaGraphExec_t exec;
    enum cudaStreamCaptureStatus status;
    unsigned long long id;
    const cudaGraphNode_t *nodes;
    size_t count = 9;
    void *memory;
    unsigned char host[16] = {0};
    OK(cudaStreamCreate(&stream));
    OK(cudaMalloc(&memory, sizeof host));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    OK(cudaMemsetAsync(memory, 7, sizeof host, stream));
#if CUDART_VERSION < 13000
    OK(cudaStreamGetCaptureInfo(stream, &status, &id, &mine, &nodes, &count));
#else
    const cudaGraphEdgeData *edges;
    OK(cudaStreamGetCaptureInfo(stream, &status, &id, &mine, &nodes, &edges, &count));
#endif
    printf("capturing %d %d %d %zu\n", status == cudaStreamCaptureStatusActive, id != 0, mine != NULL, count);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaMemcpyAsync(host, memory, sizeof host, cudaMemcpyDeviceToHost, stream));
    OK(cudaStreamSynchronize(stream));
    printf("bytes %d %d\n", host[0], host[15]);
    struct cudaPointerAttributes a;
    OK(cudaPointerGetAttributes(&a, memory));
    printf("pointer %d %d\n", a.type == cudaMemoryTypeDevice, a.device);
    return 0;
}
"""


@dataclass(frozen=True, slots=True)
class Abi:
    major: int
    library: Path
    includes: tuple[Path, ...]


def _folder(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _abi(major: int) -> Abi:
    cu13, cu12 = _folder("nvidia.cu13"), _folder("nvidia.cuda_runtime")
    if cu13 is None or (major == 12 and cu12 is None):
        pytest.skip(
            "no CUDA headers in this environment: requirements/dev.txt has them (nvidia-cuda-runtime and -cu12)"
        )
    if major == 13:
        return Abi(13, cu13 / "lib" / "libcudart.so.13", (cu13 / "include",))
    assert cu12 is not None
    return Abi(12, cu12 / "lib" / "libcudart.so.12", (cu12 / "include", cu13 / "include"))


def compiled(abi: Abi, source: str, folder: Path) -> Path:
    """A program that needs the real library by soname and would find it by RPATH, which nothing but a preload beats."""
    code, program = folder / "program.c", folder / "program"
    code.write_text(source)
    command = ["cc", "-std=gnu11", "-Werror", *[f"-I{path}" for path in abi.includes], str(code), "-o", str(program)]
    command += [str(abi.library), f"-Wl,--disable-new-dtags,-rpath,{abi.library.parent}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


@pytest.mark.parametrize("major", [12, 13])
def test_a_program_of_each_abi(run_program: Callable[..., Outcome], tmp_path: Path, major: int) -> None:
    program = compiled(_abi(major), SOURCE, tmp_path)
    lines = run_program(f"import subprocess, sys; sys.exit(subprocess.run(['{program}']).returncode)").lines
    assert lines == [
        f"built {major} runs {major}",
        "NVIDIA H100 80GB HBM3 9.0 132 85017493504 52428800 232448 2048 65536 1 1",
        "clock 1",
        "capturing 1 1 1 0",
        "bytes 7 7",
        "pointer 1 0",
    ]


def test_both_runtimes_in_one_process_are_one_gpu(run_program: Callable[..., Outcome]) -> None:
    """Memory, streams and events of one are the other's: an engine of one ABI may load a library of the other."""
    lines = run_program("""
        import ctypes
        from ctypes import byref, c_float, c_int, c_size_t, c_void_p, create_string_buffer
        old, new = ctypes.CDLL("libcudart.so.12"), ctypes.CDLL("libcudart.so.13")
        version = c_int()
        for rt in (old, new):
            assert rt.cudaRuntimeGetVersion(byref(version)) == 0; print(version.value // 1000)
        memory, stream, event = c_void_p(), c_void_p(), c_void_p()
        assert old.cudaMalloc(byref(memory), c_size_t(4096)) == 0
        assert old.cudaStreamCreate(byref(stream)) == 0
        assert new.cudaEventCreate(byref(event)) == 0
        assert old.cudaMemsetAsync(memory, 9, c_size_t(4096), stream) == 0
        assert old.cudaEventRecord(event, stream) == 0 and new.cudaEventSynchronize(event) == 0
        host = create_string_buffer(4)
        assert new.cudaMemcpy(host, memory, c_size_t(4), 2) == 0; print(list(host.raw))
        free = [c_size_t(), c_size_t()]
        for rt, value in zip((old, new), free):
            assert rt.cudaMemGetInfo(byref(value), byref(c_size_t())) == 0
        print(free[0].value == free[1].value)
        assert new.cudaFree(memory) == 0 and new.cudaStreamDestroy(stream) == 0
        assert old.cudaFree(memory) != 0 and old.cudaStreamQuery(stream) == 400  # gone for both
        print(new.cudaPeekAtLastError(), old.cudaGetLastError())  # the last error is each runtime's own
    """).lines
    assert lines == ["12", "13", "[9, 9, 9, 9]", "True", "0 400"]
