"""Facts of a GPU that no data sheet has, as a program sees them: memory by stage, copies, launch and graph gaps.

    python device_facts.py OUT.json          on the GPU host; needs torch and nvidia-ml-py, which come with vLLM

Each section is written as soon as it is measured, so that a host that is lost half-way leaves what it had. The profile of a
device (shim/profiles) takes its facts from here. Nothing of Hyperlapse is used.

The stages of memory must come in this order and before anything else uses the device: each shows what the driver takes
when something is used for the first time. Launch times depend on the host's speed where its queue runs empty; gaps are
therefore taken behind a long product, and inside graphs.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ATTRIBUTES = 160
STREAMS = (1, 4, 5, 32, 128)
COPIES = (4, 1 << 10, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28)
GRAPHS = (1, 10, 100, 500, 1000)
QUEUED = (0, 1, 10, 50, 100, 200)
SUSTAINED_S = 2.5


class Driver:
    """The calls of libcuda that torch does not offer, on the first device."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.check(self.cuda.cuInit(0), "cuInit")
        self.device = ctypes.c_int()
        self.check(self.cuda.cuDeviceGet(ctypes.byref(self.device), 0), "cuDeviceGet")

    @staticmethod
    def check(code: int, what: str) -> None:
        if code:
            sys.exit(f"{what} failed with {code}: is there a GPU, and does its driver work (nvidia-smi)?")

    def retain_context(self) -> None:
        context = ctypes.c_void_p()
        self.check(self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), self.device), "cuDevicePrimaryCtxRetain")
        self.check(self.cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")

    def used_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.check(self.cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
        return total.value - free.value

    def total_bytes(self) -> int:
        total = ctypes.c_size_t()
        self.check(self.cuda.cuDeviceTotalMem_v2(ctypes.byref(total), self.device), "cuDeviceTotalMem")
        return total.value

    def attributes(self) -> dict[int, int | str]:
        """Attribute -> value, or the error that the driver gives for it."""
        found: dict[int, int | str] = {}
        for attribute in range(1, ATTRIBUTES):
            value = ctypes.c_int()
            code = self.cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, self.device)
            found[attribute] = f"error {code}" if code else value.value
        return found

    def make_stream(self) -> None:
        stream = ctypes.c_void_p()
        self.check(self.cuda.cuStreamCreate(ctypes.byref(stream), 1), "cuStreamCreate")


def management() -> dict[str, Any]:
    """What NVML says of the first device."""
    import pynvml  # type: ignore[import-not-found]  # on the GPU host only

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def asked(query: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The answer, or the text of the error: hosts deny some queries, and the others are still worth having."""
        try:
            return query(*args, **kwargs)
        except pynvml.NVMLError as error:
            return f"error: {error}"

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    with_reserved = asked(pynvml.nvmlDeviceGetMemoryInfo, handle, version=pynvml.nvmlMemory_v2)
    return {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "name": pynvml.nvmlDeviceGetName(handle),
        "memory": {"total": memory.total, "used": memory.used, "free": memory.free},
        "reserved_bytes": getattr(with_reserved, "reserved", with_reserved),
        "power_limit_mw": asked(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
        "clocks_max_mhz": [asked(pynvml.nvmlDeviceGetMaxClockInfo, handle, kind) for kind in range(4)],
    }


def memory_by_stage(driver: Driver) -> list[tuple[str, int, int]]:
    """(stage, bytes used on the device, bytes that torch has reserved of them). Uses torch for the first time."""
    stages: list[tuple[str, int, int]] = []
    driver.retain_context()
    stages.append(("context", driver.used_bytes(), 0))
    made = 0
    for count in STREAMS:
        while made < count:
            driver.make_stream()
            made += 1
        stages.append((f"{count} streams", driver.used_bytes(), 0))

    import torch

    def stage(name: str) -> None:
        torch.cuda.synchronize()
        stages.append((name, driver.used_bytes(), torch.cuda.memory_reserved()))

    torch.cuda.init()
    stage("torch started")
    one = torch.zeros(1, device="cuda")
    stage("first kernel")
    one.add_(1)
    stage("second kernel")
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    stage("random matrix")
    product = matrix @ matrix
    stage("first product")
    product = torch.nn.functional.linear(matrix, matrix)
    stage("linear")
    scores = torch.softmax(matrix.float(), -1)
    torch.sort(scores)
    torch.cumsum(scores, -1)
    torch.topk(scores, 20)
    torch.multinomial(scores, 1)
    stage("softmax, sort, cumsum, topk, multinomial")
    torch.cuda.Stream()
    stage("torch's streams")
    del matrix, product, scores
    torch.cuda.empty_cache()
    stage("emptied")
    kept = []
    for count in GRAPHS:
        kept.append(captured(lambda: one.add_(1), count))
        stage(f"a graph of {count} nodes")
    for count in (100, 1000):
        kept.extend(captured(lambda: one.add_(1), 9) for _ in range(count))
        stage(f"{count} graphs of 9 nodes")
    kept.clear()
    stage("graphs destroyed")
    return stages


def captured(work: Callable[[], object], count: int) -> Any:
    """A graph that does the work so many times."""
    import torch

    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
        stream.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(count):
            work()
    return graph


def device_us(
    work: Callable[[], object], *, repeats: int = 11, inner: int = 1, before: Callable[[], object] | None = None
) -> float:
    """Median microseconds of the work between two events; `before` is put ahead of the first, to fill the queue."""
    import torch

    taken = []
    for repeat in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if before:
            before()
        begin.record()
        for _ in range(inner):
            work()
        end.record()
        end.synchronize()
        if repeat >= 2:
            taken.append(begin.elapsed_time(end) * 1e3 / inner)
    return round(float(median(taken)), 3)


def copies() -> dict[int, dict[str, float]]:
    """Bytes -> microseconds of a copy or fill by direction; pinned host memory."""
    import torch

    most = COPIES[-1]
    here, there = (torch.empty(most, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.empty(most, dtype=torch.uint8, pin_memory=True)
    found = {}
    for size in COPIES:
        device, other, pinned = here[:size], there[:size], host[:size]
        graph = captured(partial(other.copy_, device), 10)
        found[size] = {
            "h2d": device_us(partial(device.copy_, pinned, non_blocking=True), inner=4),
            "d2h": device_us(partial(pinned.copy_, device, non_blocking=True), inner=4),
            "d2d": device_us(partial(other.copy_, device), inner=4),
            "d2d_in_graph": device_us(graph.replay) / 10,
            "fill": device_us(device.zero_, inner=4),
        }
    return found


def times(work: Callable[[], object], count: int) -> None:
    for _ in range(count):
        work()


def launches() -> dict[str, float]:
    """Microseconds of many small kernels in a stream whose queue is full, and in graphs; nanoseconds of the host's part."""
    import torch

    one = torch.zeros(1, device="cuda")
    wide = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    found: dict[str, float] = {}

    def fill_queue() -> None:
        for _ in range(3):
            wide @ wide

    add = partial(one.add_, 1)
    for count in QUEUED:
        found[f"queued_{count}_us"] = device_us(partial(times, add, count), before=fill_queue)
    for count in GRAPHS:
        graph = captured(add, count)
        found[f"graph_{count}_us"] = device_us(graph.replay)
        found[f"graph_{count}_ten_times_us"] = device_us(partial(times, graph.replay, 10))
    torch.cuda.synchronize()
    begin_ns = time.perf_counter_ns()
    for _ in range(100):
        one.add_(1)
    found["host_launch_ns"] = (time.perf_counter_ns() - begin_ns) / 100
    return found


def sustained() -> dict[str, float]:
    """Microseconds of a large product cold, and after so much of it that the power limit counts."""
    import torch

    wide = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    time.sleep(1.0)
    cold_us = device_us(lambda: wide @ wide, repeats=3)
    end_s = time.monotonic() + SUSTAINED_S
    while time.monotonic() < end_s:
        for _ in range(20):
            wide @ wide
        torch.cuda.synchronize()
    return {"cold_us": cold_us, "hot_us": device_us(lambda: wide @ wide, inner=5)}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python device_facts.py OUT.json")
    path, found = Path(sys.argv[1]), dict[str, Any]()
    nvml = management()
    driver = Driver()

    def keep(name: str, value: Any) -> None:
        found[name] = value
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{name}: done", flush=True)

    keep("nvml", nvml)
    keep("total_memory_bytes", driver.total_bytes())
    keep("attributes", driver.attributes())
    keep("memory", memory_by_stage(driver))
    keep("copies_us", copies())
    keep("launches", launches())
    keep("product_8192", sustained())


if __name__ == "__main__":
    main()
