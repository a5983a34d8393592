"""Collectives between processes: ranks meet on the virtual timeline."""

from __future__ import annotations

from collections.abc import Callable

from .conftest import Outcome

Program = Callable[..., Outcome]

# One process forks the ranks before anybody touches CUDA, as an engine's executor does.
PRELUDE = """
import ctypes, os, sys, time
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_void_p
rt, nccl = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libnccl.so.2")
nccl.ncclGetErrorString.restype = c_char_p
class Id(ctypes.Structure): _fields_ = [("bytes", c_char * 128)]
nccl.ncclCommInitRank.argtypes = [c_void_p, c_int, Id, c_int]
def ok(code): assert code == 0, code
def fork(ranks):
    unique = Id(); ok(nccl.ncclGetUniqueId(byref(unique)))
    for rank in range(1, ranks):
        if os.fork() == 0: return rank, unique
    return 0, unique
def comm(ranks, rank, unique, device=None):
    ok(rt.cudaSetDevice(rank if device is None else device))
    handle = c_void_p(); ok(nccl.ncclCommInitRank(ctypes.addressof(handle), ranks, unique, rank)); return handle
def say(*parts): os.write(1, (" ".join(map(str, parts)) + "\\n").encode())  # whole lines, whatever the ranks do
def end(rank):
    if rank: os._exit(0)
    while True:
        try: assert os.wait()[1] == 0
        except ChildProcessError: break
"""


def test_an_all_reduce_waits_for_the_last_rank(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
rank, unique = fork(2)
handle = comm(2, rank, unique); stream = c_void_p(); ok(rt.cudaStreamCreateWithFlags(byref(stream), 1))
if rank: time.sleep(0.5)
begin = time.monotonic()
ok(nccl.ncclAllReduce(None, None, c_size_t(1000), 9, 0, handle, stream)); asked = time.monotonic() - begin
ok(rt.cudaStreamSynchronize(stream)); waited = time.monotonic() - begin
count, number = c_int(), c_int(); ok(nccl.ncclCommCount(handle, byref(count)))
ok(nccl.ncclCommUserRank(handle, byref(number)))
say(rank, asked < 0.3, waited > 0.3, count.value, number.value); ok(nccl.ncclCommDestroy(handle)); end(rank)
""",
        gpus=2,
    )
    assert sorted(outcome.lines) == ["0 True True 2 0", "1 True False 2 1"]
    assert {(one.kind, one.name, one.args[:2]) for one in outcome.launches} == {
        ("collective", "all_reduce,bf16", (2000, 2))
    }


def test_sizes_are_those_of_the_whole_message(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
rank, unique = fork(2)
handle = comm(2, rank, unique); n = c_size_t(100)
ok(nccl.ncclAllGather(None, None, n, 7, handle, None)); ok(nccl.ncclReduceScatter(None, None, n, 6, 0, handle, None))
ok(nccl.ncclBroadcast(None, None, n, 1, 0, handle, None)); ok(nccl.ncclAlltoAll(None, None, n, 4, handle, None))
ok(rt.cudaDeviceSynchronize()); end(rank)
""",
        gpus=2,
    )
    assert sorted({(one.name, one.args[0]) for one in outcome.launches}) == [
        ("all_gather,f32", 800),
        ("all_to_all,i64", 1600),
        ("broadcast,u8", 100),
        ("reduce_scatter,f16", 400),
    ]


def test_ranks_that_send_to_each_other_do_not_wait_for_ever(run_program: Program) -> None:
    """In one group, each rank names its own send first."""
    outcome = run_program(
        PRELUDE
        + """
rank, unique = fork(3)
handle = comm(3, rank, unique)
for _ in range(3):
    ok(nccl.ncclGroupStart())
    for peer in [p for p in range(3) if p != rank][:: 1 if rank else -1]:
        ok(nccl.ncclSend(None, c_size_t(8), 1, peer, handle, None))
        ok(nccl.ncclRecv(None, c_size_t(8), 1, peer, handle, None))
    ok(nccl.ncclGroupEnd())
ok(rt.cudaDeviceSynchronize()); say(rank); end(rank)
""",
        gpus=3,
    )
    assert sorted(outcome.lines) == ["0", "1", "2"]


def test_split_by_colour_and_key(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
rank, unique = fork(4)
handle = comm(4, rank, unique); part = c_void_p()
color, key = (-1, 0) if rank == 3 else (rank % 2, -rank)
ok(nccl.ncclCommSplit(handle, color, key, byref(part), None))
if part.value:
    count, number = c_int(), c_int(); ok(nccl.ncclCommCount(part, byref(count)))
    ok(nccl.ncclCommUserRank(part, byref(number)))
    ok(nccl.ncclAllReduce(None, None, c_size_t(4), 7, 0, part, None)); ok(rt.cudaDeviceSynchronize())
    say(rank, count.value, number.value)
else:
    say(rank, "none")
end(rank)
""",
        gpus=4,
    )
    assert sorted(outcome.lines) == ["0 2 1", "1 1 0", "2 2 0", "3 none"]


def test_alone_an_operation_is_a_copy(run_program: Program) -> None:
    lines = run_program(
        PRELUDE
        + """
rank, unique = fork(1); handle = comm(1, 0, unique)
a, b = c_void_p(), c_void_p(); ok(rt.cudaMalloc(byref(a), c_size_t(64))); ok(rt.cudaMalloc(byref(b), c_size_t(64)))
ok(rt.cudaMemset(a, 3, c_size_t(64))); ok(nccl.ncclAllReduce(a, b, c_size_t(16), 7, 0, handle, None))
back = ctypes.create_string_buffer(64); ok(rt.cudaMemcpy(back, b, c_size_t(64), 2))
print(back.raw == bytes([3] * 64))
version = c_int(); ok(nccl.ncclGetVersion(byref(version))); print(version.value, nccl.ncclGetErrorString(4).decode())
print(nccl.ncclAllReduce(a, b, c_size_t(16), 99, 0, handle, None), nccl.ncclCommCount(c_void_p(5), byref(version)))
print(nccl.ncclGroupEnd())
"""
    ).lines
    assert lines == ["True", "22809 invalid argument (run with NCCL_DEBUG=WARN for details)", "4 4", "5"]
