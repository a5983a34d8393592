"""Host time of the calls that an engine makes most often, on a virtual GPU: ns per call, from compiled code.

    python benchmarks/launch_cost.py [--calls 200000]

Bound: a kernel launch costs less than 500 ns. The clock is frozen, prices are in the table (their first launch is not timed),
and the least of seven passes counts, since a busy machine only adds. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, finish, verdict
from hyperlapse.shim.launcher import Mode, Run

BOUND_NS = 500
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
typedef struct { unsigned x, y, z; } dim3;
static void *rt, *cu;
#define F(library, type, name, ...) type (*name)(__VA_ARGS__) = (type (*)(__VA_ARGS__))dlsym(library, #name)
#define OK(call) do { int e = (call); if (e) { fprintf(stderr, "%s: %d\n", #call, e); exit(1); } } while (0)
static int64_t now(void) /* the machine's own clock: libc's clocks, and its syscall(), are virtual here */
{
    struct timespec t;
    long number = SYS_clock_gettime;
    __asm__ volatile("syscall" : "+a"(number) : "D"(CLOCK_MONOTONIC_RAW), "S"(&t) : "rcx", "r11", "memory");
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}
/* The queue is emptied before each pass, outside of the time. */
#define TIME(label, call) do { \
    int64_t least = INT64_MAX; \
    for (int pass = 0; pass < 7; pass++) { \
        OK(cudaStreamSynchronize(stream)); \
        int64_t began = now(); \
        for (int i = 0; i < calls; i++) { int e = (call); if (e && e != 600) OK(e); } \
        int64_t took = now() - began; \
        if (took < least) least = took; \
    } \
    printf("%s %.1f\n", label, (double)least / calls); } while (0)
int main(int count, char **arguments)
{
    int calls = atoi(arguments[1]);
    rt = dlopen("libcudart.so.13", RTLD_NOW), cu = dlopen("libcuda.so.1", RTLD_NOW);
    F(rt, int, cudaSetDevice, int); F(rt, int, cudaGetDevice, int *); F(rt, int, cudaMalloc, void **, size_t);
    F(rt, int, cudaStreamCreateWithFlags, void **, unsigned); F(rt, int, cudaStreamSynchronize, void *);
    F(rt, int, cudaEventCreateWithFlags, void **, unsigned); F(rt, int, cudaEventRecordWithFlags, void *, void *, unsigned);
    F(rt, int, cudaStreamWaitEvent, void *, void *, unsigned); F(rt, int, cudaEventQuery, void *);
    F(rt, int, cudaLibraryLoadFromFile, void **, const char *, void *, void *, unsigned, void *, void *, unsigned);
    F(rt, int, cudaLibraryGetKernel, void **, void *, const char *); F(rt, int, cudaPeekAtLastError, void);
    F(rt, int, cudaLaunchKernel, const void *, dim3, dim3, void **, size_t, void *);
    F(rt, int, cudaMemcpyAsync, void *, const void *, size_t, int, void *);
    F(rt, int, cudaMemsetAsync, void *, int, size_t, void *); F(rt, int, cudaStreamIsCapturing, void *, int *);
    F(cu, int, cuModuleLoad, void **, const char *); F(cu, int, cuModuleGetFunction, void **, void *, const char *);
    F(cu, int, cuLaunchKernel, void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
      void **);
    void *stream, *other, *event, *memory, *library, *kernel, *module, *function;
    void *kernel_arguments[2] = {&memory, &memory};
    dim3 one = {1, 1, 1};
    int value;
    char pageable[64] = {0};
    (void)count;
    OK(cudaSetDevice(0)); OK(cudaMalloc(&memory, 1 << 20));
    OK(cudaStreamCreateWithFlags(&stream, 1)); OK(cudaStreamCreateWithFlags(&other, 1)); OK(cudaEventCreateWithFlags(&event, 2));
    OK(cudaLibraryLoadFromFile(&library, arguments[2], NULL, NULL, 0, NULL, NULL, 0));
    OK(cudaLibraryGetKernel(&kernel, library, "framed"));
    OK(cuModuleLoad(&module, arguments[2])); OK(cuModuleGetFunction(&function, module, "framed"));
    OK(cudaLaunchKernel(kernel, one, one, kernel_arguments, 0, stream));
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, kernel_arguments, NULL));
    OK(cudaStreamSynchronize(stream));
    TIME("cudaLaunchKernel", cudaLaunchKernel(kernel, one, one, kernel_arguments, 0, stream));
    TIME("cuLaunchKernel", cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, kernel_arguments, NULL));
    TIME("cudaMemsetAsync(64_bytes)", cudaMemsetAsync(memory, 0, 64, stream));
    TIME("cudaMemcpyAsync(64_bytes,d2d)", cudaMemcpyAsync((char *)memory + 4096, memory, 64, 3, stream));
    TIME("cudaMemcpyAsync(64_bytes,pageable)", cudaMemcpyAsync(memory, pageable, 64, 1, stream));
    TIME("cudaEventRecordWithFlags", cudaEventRecordWithFlags(event, stream, 0));
    TIME("cudaStreamWaitEvent", cudaStreamWaitEvent(other, event, 0));
    TIME("cudaEventQuery", cudaEventQuery(event));
    TIME("cudaStreamIsCapturing", cudaStreamIsCapturing(stream, &value));
    TIME("cudaGetDevice", cudaGetDevice(&value));
    TIME("cudaPeekAtLastError", cudaPeekAtLastError());
    return 0;
}
"""


SERVICE = """
import sys, threading
from pathlib import Path
from hyperlapse.shim import pricing
class OnePrice:
    def price_launch(self, launch): return pricing.Price(2_000, (2_000, 0, 0, 0, 0))
pricing.serve(Path(sys.argv[1]), OnePrice(), threading.Event())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200_000, help="of each kind, for one pass")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Run("h100-sxm-80gb") as run:
        source, program = Path(folder) / "calls.c", Path(folder) / "calls"
        source.write_text(SOURCE)
        subprocess.run(["cc", "-O2", str(source), "-o", str(program), "-ldl"], check=True)
        run.spawn_service([sys.executable, "-c", SERVICE, str(run.directory)])
        run.set_mode(Mode.FROZEN)
        cubin = ROOT / "tests" / "bridge" / "cubins" / "kernels.sm_90.cubin"
        child = run.spawn([str(program), str(options.calls), str(cubin)], stdout=subprocess.PIPE)
        output, _ = child.communicate(timeout=300)
    costs = {name: float(cost) for name, cost in (line.split() for line in output.decode().splitlines())}
    if child.returncode or not costs:
        sys.exit(f"the program of calls failed with status {child.returncode}")
    launch_ns = max(costs["cudaLaunchKernel"], costs["cuLaunchKernel"])
    good = launch_ns < BOUND_NS
    print(f"a kernel launch takes {launch_ns:.0f} ns of host time, bound {BOUND_NS} ns: {verdict(good)}")
    for name, cost in costs.items():
        print(f"  {name:36} {cost:8.1f} ns")
    finish(good)


if __name__ == "__main__":
    main()
