"""PyTorch on a virtual H100: one program asks, each test looks at one answer."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment

from .conftest import GEMM_NS, Outcome

pytestmark = pytest.mark.engine

PROGRAM = """
import torch
def tell(name, value): print("ANSWER", repr((name, value)))
tell("available", torch.cuda.is_available()); tell("count", torch.cuda.device_count())
p = torch.cuda.get_device_properties(0)
tell("properties", (p.name, p.major, p.minor, p.total_memory, p.multi_processor_count, p.L2_cache_size))
a = torch.randn(256, 512, device="cuda", dtype=torch.bfloat16)
b = torch.randn(512, 1024, device="cuda", dtype=torch.bfloat16)
c = a @ b; tell("matmul", tuple(c.shape))
weight, bias = (torch.empty(*size, device="cuda", dtype=torch.bfloat16) for size in ((128, 512), (128,)))
torch.nn.functional.linear(a, weight, bias)
torch.bmm(torch.empty(3, 16, 32, device="cuda"), torch.empty(3, 32, 8, device="cuda")); torch.cuda.synchronize()

tell("round trip", torch.arange(1000).cuda().cpu().sum().item())
pinned = torch.arange(8).pin_memory()
tell("pinned", pinned.is_pinned() and pinned.to("cuda", non_blocking=True).cpu().equal(pinned))

start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
start.record()
for _ in range(100): torch.mm(a, b, out=c)
stop.record(); stop.synchronize(); tell("100 products ms", start.elapsed_time(stop)); tell("query", stop.query())

side, done = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True); before = torch.cuda.Event(enable_timing=True)
before.record()
for _ in range(20): torch.mm(a, b, out=c)
mark = torch.cuda.Event(); mark.record()
with torch.cuda.stream(side):
    side.wait_event(mark); done.record()
done.synchronize(); tell("other stream ms", before.elapsed_time(done))

g = torch.cuda.CUDAGraph(); x = torch.zeros(4, device="cuda")
with torch.cuda.graph(g):
    for _ in range(10): torch.mm(a, b, out=c)
for _ in range(2): g.replay()
torch.cuda.synchronize(); start.record(); g.replay(); stop.record(); stop.synchronize()
tell("graph of 10 ms", start.elapsed_time(stop))
forked = torch.cuda.CUDAGraph()
with torch.cuda.graph(forked):
    torch.mm(a, b, out=c); side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side): torch.mm(a, b)
    torch.cuda.current_stream().wait_stream(side)
forked.replay(); torch.cuda.synchronize()
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side): torch.mm(a, b)
except Exception as error: tell("unjoined", str(error).splitlines()[0])
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.cuda.synchronize()
except Exception as error: tell("sync in capture", [str(e).splitlines()[0] for e in (error.__context__, error)])

free, total = torch.cuda.mem_get_info(); tell("memory", (free, total))
keep = torch.empty(1 << 30, dtype=torch.uint8, device="cuda"); tell("one GiB", free - torch.cuda.mem_get_info()[0])
try: torch.empty(100 << 30, dtype=torch.uint8, device="cuda")
except torch.cuda.OutOfMemoryError as error: tell("out of memory", str(error))
try: torch.cuda.set_device(3)
except Exception as error: tell("no such device", str(error).splitlines()[0])
"""


@pytest.fixture(scope="module")
def outcome(run_program: Callable[..., Outcome], request: pytest.FixtureRequest) -> Outcome:
    """HYPERLAPSE_TORCH_PYTHON: a Python with any PyTorch (one for CUDA 12, say); else the engine's."""
    chosen = os.environ.get("HYPERLAPSE_TORCH_PYTHON")
    engine: EngineEnvironment | None = None if chosen else request.getfixturevalue("engine")
    return run_program(PROGRAM, python=engine.python if engine else Path(str(chosen)))


@pytest.fixture(scope="module")
def answers(outcome: Outcome) -> dict[str, Any]:
    pairs = [ast.literal_eval(line.removeprefix("ANSWER ")) for line in outcome.lines if line.startswith("ANSWER ")]
    return dict(pairs)


def test_the_device(answers: dict[str, Any]) -> None:
    assert answers["available"] is True
    assert answers["count"] == 1
    assert answers["properties"] == ("NVIDIA H100 80GB HBM3", 9, 0, 85_017_493_504, 132, 52_428_800)


def test_products_have_their_shapes(outcome: Outcome, answers: dict[str, Any]) -> None:
    assert answers["matmul"] == (256, 1024)
    shapes = [(one.name, one.args[:6]) for one in outcome.launches if one.kind == "gemm"]
    assert shapes == [
        ("bf16,bf16,bf16,f32", (256, 1024, 512, 1, 0, 0)),
        ("bf16,bf16,bf16,f32", (256, 128, 512, 1, 0, 1)),  # linear with bias: cuBLASLt, weight stored [n,k]
        ("f32,f32,f32,f32", (16, 8, 32, 3, 0, 0)),
    ]


def test_kernels_have_their_names(outcome: Outcome) -> None:
    names = {one.name for one in outcome.launches if one.kind == "kernel"}
    assert any("normal_kernel" in name for name in names)
    assert all(name.startswith("_Z") for name in names)


def test_small_data_is_real(answers: dict[str, Any]) -> None:
    assert answers["round trip"] == 499_500
    assert answers["pinned"] is True


def test_events_measure_the_stream(answers: dict[str, Any]) -> None:
    # 100 launches of GEMM_NS back to back; gaps and host time come on top
    assert answers["100 products ms"] >= 100 * GEMM_NS / 1e6
    assert answers["query"] is True
    assert answers["other stream ms"] >= 20 * GEMM_NS / 1e6, "the other stream waited for the event"


def test_a_graph_costs_the_sum_of_its_nodes(answers: dict[str, Any]) -> None:
    assert 10 * GEMM_NS / 1e6 <= answers["graph of 10 ms"] < 20 * GEMM_NS / 1e6
    assert answers["sync in capture"] == [
        "CUDA error: operation not permitted when stream is capturing",
        "CUDA error: operation failed due to a previous error during capture",
    ]


def test_a_forked_stream_must_be_joined(answers: dict[str, Any]) -> None:
    assert answers["unjoined"] == "CUDA error: capturing stream has unjoined work"


def test_memory_ends_as_on_the_card(answers: dict[str, Any]) -> None:
    assert answers["memory"][1] == 85_017_493_504
    assert answers["one GiB"] == 1 << 30
    message = answers["out of memory"]
    assert "CUDA out of memory. Tried to allocate 100.00 GiB. GPU 0 has a total capacity of 79.18 GiB" in message
    assert "this process has" in message


def test_a_device_that_does_not_exist(answers: dict[str, Any]) -> None:
    assert answers["no such device"] == "CUDA error: invalid device ordinal"
