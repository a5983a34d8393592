"""Device memory and events that another process opens: the bytes are the same, the count is the owner's."""

from __future__ import annotations

from collections.abc import Callable

from .conftest import Outcome

Program = Callable[..., Outcome]

# The owner (rank 0) and the opener talk over pipes; each has its own device.
PRELUDE = """
import array, ctypes, os, socket, sys
from ctypes import byref, c_char, c_int, c_size_t, c_uint, c_uint64, c_void_p
rt, cu = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libcuda.so.1")
class Handle(ctypes.Structure): _fields_ = [("bytes", c_char * 64)]
rt.cudaIpcOpenMemHandle.argtypes = [c_void_p, Handle, c_uint]
rt.cudaIpcOpenEventHandle.argtypes = [c_void_p, Handle]
def ok(code): assert code == 0, code
a, b = socket.socketpair()
rank = 0 if os.fork() else 1
wire = a if rank == 0 else b
ok(rt.cudaSetDevice(rank))
def say(*parts): os.write(1, (" ".join(map(str, parts)) + "\\n").encode())
def send(data): wire.sendall(bytes(data))
def take(count):
    data = b""
    while len(data) < count: data += wire.recv(count - len(data)) or sys.exit("the other side has ended")
    return data
def alloc(count):
    p = c_void_p(); ok(rt.cudaMalloc(byref(p), c_size_t(count))); return p
def put(p, data): ok(rt.cudaMemcpy(p, bytes(data), c_size_t(len(data)), 1))
def get(p, count):
    data = ctypes.create_string_buffer(count); ok(rt.cudaMemcpy(data, p, c_size_t(count), 2)); return data.raw
def free_bytes():
    free, total = c_size_t(), c_size_t(); ok(rt.cudaMemGetInfo(byref(free), byref(total))); return free.value
def end():
    if rank: os._exit(0)
    assert os.wait()[1] == 0
"""


def test_memory_of_another_process(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
handle, p = Handle(), c_void_p()
if rank == 0:
    mine = alloc(5 << 20); put(c_void_p(mine.value + (3 << 20)), b"before")
    before = free_bytes()
    ok(rt.cudaIpcGetMemHandle(byref(handle), c_void_p(mine.value + 100)))  # of the allocation, whatever lies in it
    again = Handle(); ok(rt.cudaIpcGetMemHandle(byref(again), mine))
    say("same handle", bytes(again) == bytes(handle), "charge unchanged", before == free_bytes())
    say("own handle", rt.cudaIpcOpenMemHandle(byref(p), handle, 1))
    send(handle); take(1)
    say("owner sees", get(mine, 5), "and its own", get(c_void_p(mine.value + (3 << 20)), 6))
    put(c_void_p(mine.value + 64), b"owner"); send(b"x"); take(1)
    ok(rt.cudaFree(mine)); send(b"x"); end()
else:
    before = free_bytes()
    ctypes.memmove(byref(handle), take(64), 64)
    ok(rt.cudaIpcOpenMemHandle(byref(p), handle, 1))
    q = c_void_p(); ok(rt.cudaIpcOpenMemHandle(byref(q), handle, 1))
    base, size = c_uint64(), c_size_t(); ok(cu.cuMemGetAddressRange_v2(byref(base), byref(size), c_uint64(p.value + 7)))
    device = c_int(); ok(cu.cuPointerGetAttribute(byref(device), 9, c_uint64(p.value)))
    say("again", p.value == q.value, "range", base.value == p.value, size.value == 5 << 20, "device", device.value)
    say("uncharged", before == free_bytes(), "free is not close", rt.cudaFree(p))
    say("sees", get(c_void_p(p.value + (3 << 20)), 6)); put(p, b"hello"); send(b"x"); take(1)
    say("sees later", get(c_void_p(p.value + 64), 5))
    ok(rt.cudaIpcCloseMemHandle(q)); say("still", get(p, 5)); ok(rt.cudaIpcCloseMemHandle(p))
    say("closed", rt.cudaIpcCloseMemHandle(p), rt.cudaIpcCloseMemHandle(c_void_p(4096))); send(b"x"); take(1)
    say("freed", rt.cudaIpcOpenMemHandle(byref(p), handle, 1))
    say("bad", rt.cudaIpcOpenMemHandle(byref(p), Handle(), 1), rt.cudaIpcOpenMemHandle(byref(p), handle, 2))
    end()
""",
        gpus=2,
    )
    assert sorted(outcome.lines) == sorted(
        [
            "same handle True charge unchanged True",
            "own handle 201",
            "owner sees b'hello' and its own b'before'",
            "again True range True True device 0",
            "uncharged True free is not close 1",
            "sees b'before'",
            "sees later b'owner'",
            "still b'hello'",
            "closed 1 1",
            "freed 400",
            "bad 1 1",
        ]
    )


def test_an_event_of_another_process(run_program: Program) -> None:
    """The opener's stream waits for work that the owner has put on its own."""
    outcome = run_program(
        PRELUDE
        + """
import time
handle, event = Handle(), c_void_p()
stream = c_void_p(); ok(rt.cudaStreamCreateWithFlags(byref(stream), 1))
if rank == 0:
    plain = c_void_p(); ok(rt.cudaEventCreateWithFlags(byref(plain), 2))
    say("not for others", rt.cudaIpcGetEventHandle(byref(handle), plain))
    ok(rt.cudaEventCreateWithFlags(byref(event), 2 | 4)); ok(rt.cudaIpcGetEventHandle(byref(handle), event))
    big = alloc(1 << 30); ok(rt.cudaMemsetAsync(big, 0, c_size_t(1 << 30), stream))
    host = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: time.sleep(0.4)); ok(rt.cudaLaunchHostFunc(stream, host, None))
    ok(rt.cudaEventRecord(event, stream)); send(handle); take(1); ok(rt.cudaEventDestroy(event)); send(b"x"); take(1); end()
else:
    ctypes.memmove(byref(handle), take(64), 64); ok(rt.cudaIpcOpenEventHandle(byref(event), handle))
    begin = time.monotonic(); say("query", rt.cudaEventQuery(event)); ok(rt.cudaStreamWaitEvent(stream, event, 0))
    ok(rt.cudaStreamSynchronize(stream)); say("waited", time.monotonic() - begin > 0.2, rt.cudaEventQuery(event))
    send(b"x"); take(1); say("gone", rt.cudaEventQuery(event), rt.cudaEventDestroy(event)); send(b"x"); end()
""",
        gpus=2,
    )
    assert sorted(outcome.lines) == ["gone 400 0", "not for others 400", "query 600", "waited True 0"]


def test_physical_memory_travels_as_a_descriptor(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
class Location(ctypes.Structure): _fields_ = [("type", c_int), ("id", c_int)]
class Prop(ctypes.Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", Location), ("security", c_void_p), ("flags", c_uint64)]
ok(cu.cuInit(0)); ok(rt.cudaFree(None)); size = c_size_t(4 << 20)
prop = Prop(1, 1, Location(1, rank), None, 0); memory = c_uint64()
def mapped(memory):
    at = c_uint64(); ok(cu.cuMemAddressReserve(byref(at), size, c_size_t(0), c_uint64(0), c_uint64(0)))
    ok(cu.cuMemMap(at, size, c_size_t(0), memory, c_uint64(0))); return c_void_p(at.value)
if rank == 0:
    before = free_bytes(); ok(cu.cuMemCreate(byref(memory), size, byref(prop), c_uint64(0)))
    first, second = mapped(memory), mapped(memory); put(first, b"one"); say("two places", get(second, 3))
    file = c_int(); ok(cu.cuMemExportToShareableHandle(byref(file), memory, 1, c_uint64(0)))
    say("fabric", cu.cuMemExportToShareableHandle(byref(file), memory, 8, c_uint64(0)))
    socket.send_fds(wire, [b"x"], [file.value]); take(1); say("owner sees", get(first, 5))
    ok(cu.cuMemUnmap(c_uint64(first.value), size)); ok(cu.cuMemUnmap(c_uint64(second.value), size)); ok(cu.cuMemRelease(memory))
    say("given back", before == free_bytes()); send(b"x"); end()
else:
    before = free_bytes(); file = socket.recv_fds(wire, 1, 1)[1][0]
    ok(cu.cuMemImportFromShareableHandle(byref(memory), c_void_p(file), 1)); os.close(file); at = mapped(memory)
    device = c_int(); ok(cu.cuPointerGetAttribute(byref(device), 9, c_uint64(at.value)))
    say("sees", get(at, 3), "device", device.value, "uncharged", before == free_bytes())
    put(at, b"hello"); send(b"x"); take(1); say("outlives its owner", get(at, 5))
    other = c_void_p(os.open("/dev/null", os.O_RDONLY))
    say("no memory", cu.cuMemImportFromShareableHandle(byref(memory), other, 1))
    say("closed", cu.cuMemImportFromShareableHandle(byref(memory), c_void_p(999), 1)); end()
""",
        gpus=2,
    )
    assert sorted(outcome.lines) == sorted(
        [
            "two places b'one'",
            "fabric 801",
            "owner sees b'hello'",
            "given back True",
            "sees b'one' device 0 uncharged True",
            "outlives its owner b'hello'",
            "no memory 1",
            "closed 1",
        ]
    )
