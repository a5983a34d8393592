"""cuMemcpyBatchAsync: many copies, one operation of the stream for each direction."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

from .conftest import Outcome

PRELUDE = """
import ctypes
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p, create_string_buffer
cu = ctypes.CDLL("libcuda.so.1")
class Location(ctypes.Structure):
    _fields_ = [("kind", c_int), ("id", c_int)]
class Attributes(ctypes.Structure):
    _fields_ = [("order", c_int), ("source", Location), ("target", Location), ("flags", ctypes.c_uint)]
def out(kind, call, *args):
    value = kind()
    assert call(byref(value), *args) == 0
    return value
assert cu.cuInit(0) == 0
assert cu.cuCtxSetCurrent(out(c_void_p, cu.cuDevicePrimaryCtxRetain, 0)) == 0
def device(size):
    return out(c_uint64, cu.cuMemAlloc_v2, c_size_t(size)).value
def pinned(size):
    return out(c_void_p, cu.cuMemHostAlloc, c_size_t(size), 0).value
stream, start, end = (c_void_p(out(c_void_p, call, 0).value) for call in (cu.cuStreamCreate, cu.cuEventCreate, cu.cuEventCreate))
def batch(copies, version=1, on=stream, order=1, first=0, attributes=1):
    columns = [(kind * len(copies))(*column) for kind, column in zip((c_uint64, c_uint64, c_size_t), zip(*copies))]
    failed = c_size_t(77)
    rest = [byref(failed)] if version == 1 else []
    call = cu.cuMemcpyBatchAsync if version == 1 else cu.cuMemcpyBatchAsync_v2
    described = byref(Attributes(order)), byref(c_size_t(first)), c_size_t(attributes)
    code = call(*columns, c_size_t(len(copies)), *described, *rest, on)
    return code, failed.value
def microseconds(work, busy):
    for _ in range(32):  # what the host takes to ask must not count: the stream is busy meanwhile, for about a second
        busy()
    assert cu.cuEventRecord(start, stream) == 0
    work()
    assert cu.cuEventRecord(end, stream) == cu.cuEventSynchronize(end) == 0
    return out(ctypes.c_float, cu.cuEventElapsedTime, start, end).value * 1000
"""


@pytest.fixture
def program(run_program: Callable[..., Outcome]) -> Callable[[str], Outcome]:
    return lambda code: run_program(PRELUDE + textwrap.dedent(code))


@pytest.mark.parametrize("version", [1, 2])
def test_bytes_are_moved_both_ways(program: Callable[[str], Outcome], version: int) -> None:
    lines = program(f"""
        on_device, host = device(1 << 16), pinned(1 << 16)
        ctypes.memmove(host, bytes(range(256)) * 16, 4096)
        print(*batch([(on_device + 512 * i, host + 256 * i, 256) for i in range(8)], {version}))
        print(*batch([(host + 8192 + 256 * i, on_device + 512 * i, 256) for i in range(8)], {version}))
        assert cu.cuStreamSynchronize(stream) == 0
        print(ctypes.string_at(host + 8192, 2048) == ctypes.string_at(host, 2048))
    """).lines
    assert lines == ["0 77", "0 77", "True"]


def test_a_batch_takes_the_time_of_its_bytes_and_starts_once(program: Callable[[str], Outcome]) -> None:
    """1 GiB in 4,096 pieces as in one; a latency of each piece would be milliseconds."""
    lines = program("""
        on_device, host, piece = device(1 << 30), pinned(1 << 30), 1 << 18
        one = lambda: cu.cuMemcpyHtoDAsync_v2(c_uint64(on_device), c_void_p(host), c_size_t(1 << 30), stream)
        whole = microseconds(one, one)
        pieces = [(on_device + i * piece, host + i * piece, piece) for i in range(4096)]
        print(abs(microseconds(lambda: batch(pieces), one) - whole) < 10, whole > 10_000)
        back = [(b, a, size) for a, b, size in pieces]
        both = microseconds(lambda: batch([*pieces[:2048], *back[2048:]]), one)
        print(0.8 < both / whole < 1.25)
    """).lines
    assert lines == ["True True", "True"]


def test_what_is_refused(program: Callable[[str], Outcome]) -> None:
    lines = program("""
        on_device, host = device(4096), pinned(4096)
        good = (on_device, host, 4096)
        nothing = 2**64 - 1
        print(batch([good, (on_device, host, 4097)]) == (1, 1), batch([good, good, (0, host, 1)]) == (1, 2))
        print(batch([good, (on_device, host, 0)]) == (1, 1))
        for wrong in ({"on": None}, {"on": c_void_p(1)}, {"order": 0}, {"order": 4}, {"first": 1}, {"attributes": 0}):
            print(batch([good], **wrong) == (1, nothing))
    """).lines
    assert lines == ["True True", "True"] + ["True"] * 6
