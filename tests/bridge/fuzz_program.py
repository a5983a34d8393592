"""Calls the functions of a table with odd arguments: NULL, 0, huge numbers, stale and foreign handles, from several threads.

Run as a program inside a run; argv: the table (JSON), a seed, calls per function. Prints one line of JSON: the codes that each
function answered. Arguments that would make any library crash are not in the lists: host memory that does not exist
behind an output pointer, a function pointer to nowhere, a size beyond a host buffer.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import threading
from ctypes import byref, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

NUMBERS = [0, 1, 2, 3, 64, -1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
SCRATCH_BYTES = 1 << 20


def main() -> None:
    table, seed, rounds = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    traced = "HYPERLAPSE_FUZZ_TRACE" in os.environ  # for a person who looks for a crash
    libraries = {name: ctypes.CDLL(name) for name in {row["library"] for row in table}}
    rt, cu = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libcuda.so.1")
    nothing = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)

    def made(call: Any, *arguments: Any) -> int:
        value = c_void_p()
        code = call(byref(value), *arguments)
        assert code == 0, (call.__name__, code)
        return value.value or 0

    assert rt.cudaSetDevice(0) == 0
    device = made(rt.cudaMalloc, c_size_t(4 << 20))
    libc = ctypes.CDLL(None)
    libc.mmap.restype = c_void_p
    nowhere = libc.mmap(
        None, c_size_t(8 << 20), 0, 0x22, -1, c_size_t(0)
    )  # PROT_NONE, private, anonymous: as after a free
    pinned = made(rt.cudaMallocHost, c_size_t(1 << 20))
    context = made(cu.cuDevicePrimaryCtxRetain, 0)
    stream, stale_stream = made(rt.cudaStreamCreate), made(rt.cudaStreamCreate)
    assert rt.cudaStreamDestroy(c_void_p(stale_stream)) == 0
    event, stale_event = made(rt.cudaEventCreate), made(rt.cudaEventCreate)
    assert rt.cudaEventDestroy(c_void_p(stale_event)) == 0
    graph, stale_graph = made(rt.cudaGraphCreate, 0), made(rt.cudaGraphCreate, 0)
    assert rt.cudaGraphDestroy(c_void_p(stale_graph)) == 0
    exe = made(rt.cudaGraphInstantiate, c_void_p(graph), c_uint64(0))
    pool = made(rt.cudaDeviceGetDefaultMemPool, 0)
    blas = made(ctypes.CDLL("libcublas.so.13").cublasCreate_v2)

    def scratch(pages: list[Any]) -> int:
        buffer = ctypes.create_string_buffer(SCRATCH_BYTES)
        pages.append(buffer)
        return ctypes.addressof(buffer)

    handles = [0, 1, 2, stream, event, graph, exe, pool, context, blas, stale_stream, stale_event, stale_graph]
    handles += [0xDEADBEEF000, 2**64 - 1, stream + 4, stream + 2**20, device]
    memory = [0, device, device + 4096, device + (4 << 20) - 1, nowhere, nowhere + 100, pinned, pinned + 100, 2**47]

    def value_of(kind: str, draw: random.Random, pages: list[Any]) -> Any:
        match kind:
            case "out":
                return c_void_p(draw.choice([0, scratch(pages), scratch(pages), scratch(pages)]))
            case "memory":
                return c_void_p(draw.choice(memory))
            case "handle":
                return c_void_p(draw.choice(handles))
            case "function":
                return draw.choice([c_void_p(0), nothing])
            case "text":
                return draw.choice(
                    [c_void_p(0), ctypes.c_char_p(b""), ctypes.c_char_p(b"cuInit"), ctypes.c_char_p(b"x" * 5000)]
                )
            case "float":
                return ctypes.c_float(draw.choice([0.0, -1.0, 1e30]))
            case _:
                return c_uint64(draw.choice(NUMBERS) % 2**64)

    answers: dict[str, set[int]] = {row["name"]: set() for row in table}

    def hammer(which: int) -> None:
        draw = random.Random(seed * 1000 + which)
        rt.cudaSetDevice(0)
        for row in draw.sample(table, len(table)):
            call = getattr(libraries[row["library"]], row["name"])
            for _ in range(rounds):
                pages: list[Any] = []
                arguments = [value_of(kind, draw, pages) for kind in row["arguments"]]
                if traced:
                    os.write(2, f"{row['name']} {arguments}\n".encode())
                code = call(*arguments)
                answers[row["name"]].add(code)
                cu.cuCtxSetCurrent(c_void_p(context))

    threads = [threading.Thread(target=hammer, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({name: sorted(codes) for name, codes in answers.items()}))


if __name__ == "__main__":
    main()
