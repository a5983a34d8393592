"""Calls of the runtime, the driver and NVML, made as any program makes them, with ctypes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import GEMM_NS, Outcome

Program = Callable[..., Outcome]
CUBINS = Path(__file__).resolve().parent / "cubins"

#: The runtime of each ABI; where CUDA 12's headers rename a function, a program built with them calls the other name.
RUNTIMES = {
    "libcudart.so.13": 'rt = ctypes.CDLL("libcudart.so.13")',
    "libcudart.so.12": """rt = ctypes.CDLL("libcudart.so.12")
rt.cudaGetDeviceProperties, rt.cudaStreamGetCaptureInfo = rt.cudaGetDeviceProperties_v2, rt.cudaStreamGetCaptureInfo_v3""",
}
PRELUDE = """
import ctypes, struct, sys
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p, create_string_buffer
cu, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
RUNTIME
rt.cudaGetErrorString.restype = rt.cudaGetErrorName.restype = nvml.nvmlErrorString.restype = c_char_p
def ok(code):
    assert code == 0, (code, rt.cudaGetErrorName(code))
def out(kind, call, *args):
    value = kind()
    ok(call(byref(value), *args))
    return value.value
def malloc(size):
    return out(c_void_p, rt.cudaMalloc, c_size_t(size))
def stream(flags=1):
    return c_void_p(out(c_void_p, rt.cudaStreamCreateWithFlags, flags))
def event(flags=0):
    return c_void_p(out(c_void_p, rt.cudaEventCreateWithFlags, flags))
def memory():
    free, total = c_size_t(), c_size_t()
    ok(rt.cudaMemGetInfo(byref(free), byref(total)))
    return free.value, total.value
def driver():
    ok(cu.cuInit(0))
    context = c_void_p(out(c_void_p, cu.cuDevicePrimaryCtxRetain, 0))
    ok(cu.cuCtxSetCurrent(context))
"""


@pytest.fixture(params=RUNTIMES)
def api(run_program: Program, request: pytest.FixtureRequest) -> Program:
    """Runs a program against the runtime of one ABI."""
    prelude = PRELUDE.replace("RUNTIME", RUNTIMES[request.param])

    def run(code: str, **options: object) -> Outcome:
        return run_program(prelude + textwrap.dedent(code), **options)

    return run


# --- devices ---


def test_the_same_device_through_three_libraries(api: Program) -> None:
    lines = api("""
        driver()
        name = create_string_buffer(96)
        ok(cu.cuDeviceGetName(name, 96, 0)); print(name.value.decode())
        ok(nvml.nvmlInit_v2())
        handle = c_void_p(); ok(nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(handle)))
        ok(nvml.nvmlDeviceGetName(handle, name, 96)); print(name.value.decode())
        properties = create_string_buffer(1032)
        ok(rt.cudaGetDeviceProperties(properties, 0)); print(properties.value.decode())
        uuid = create_string_buffer(48)
        ok(nvml.nvmlDeviceGetUUID(handle, uuid, 48))
        raw = create_string_buffer(16); ok(cu.cuDeviceGetUuid_v2(raw, 0))
        print(uuid.value.decode().replace("-", "")[3:] == raw.raw.hex() == properties.raw[256:272].hex())
        print(out(c_int, rt.cudaDeviceGetAttribute, 75, 0), out(c_int, cu.cuDeviceGetAttribute, 16, 0))
        print(out(c_int, rt.cudaRuntimeGetVersion) // 1000, out(c_int, rt.cudaDriverGetVersion) >= 13000)
        pci = create_string_buffer(16); ok(rt.cudaDeviceGetPCIBusId(pci, 16, 0))
        other = c_void_p(); ok(nvml.nvmlDeviceGetHandleByPciBusId_v2(pci, byref(other)))
        print(other.value == handle.value)
    """).lines
    assert lines[:-2] == ["NVIDIA H100 80GB HBM3"] * 3 + ["True", "9 132"]
    assert lines[-2] in {"12 True", "13 True"}
    assert lines[-1] == "True"


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, "0 1 2 3"),
        ("2,0", "2 0"),
        ("1", "1"),
        ("3,7,0", "3"),
        ("1,1", ""),
        ("", ""),
        ("-1", ""),
        ("no device", ""),
    ],
)
def test_visible_devices(api: Program, visible: str | None, seen: str) -> None:
    """CUDA renumbers what the variable names; NVML shows all devices."""
    lines = api(
        """
        import os
        count = c_int(-1); code = rt.cudaGetDeviceCount(byref(count))
        buses = []
        for i in range(count.value):
            text = create_string_buffer(16); ok(rt.cudaDeviceGetPCIBusId(text, 16, i)); buses.append(text.value)
        ok(nvml.nvmlInit_v2())
        all_buses = []
        for i in range(out(c_uint, nvml.nvmlDeviceGetCount_v2)):
            handle = c_void_p(); ok(nvml.nvmlDeviceGetHandleByIndex_v2(i, byref(handle)))
            info = create_string_buffer(68); ok(nvml.nvmlDeviceGetPciInfo_v3(handle, info))
            all_buses.append(info.raw[:16].rstrip(bytes(1)))
        print(code, count.value, *[all_buses.index(bus) for bus in buses])
        """,
        gpus=4,
        extra={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible},
    ).lines
    count = len(seen.split())
    assert lines == [f"{0 if count else 100} {count} {seen}".strip()]


def test_visible_devices_by_uuid(api: Program) -> None:
    code = """
        ok(nvml.nvmlInit()); handle = c_void_p(); ok(nvml.nvmlDeviceGetHandleByIndex(2, byref(handle)))
        uuid = create_string_buffer(48); ok(nvml.nvmlDeviceGetUUID(handle, uuid, 48))
        import os; os.environ["CUDA_VISIBLE_DEVICES"] = uuid.value.decode()[:12]
        text = create_string_buffer(16); ok(rt.cudaDeviceGetPCIBusId(text, 16, 0))
        print(out(c_int, rt.cudaDeviceGetAttribute, 33, 0))
    """
    first = int(api("print(out(c_int, rt.cudaDeviceGetAttribute, 33, 0))").lines[0])
    assert api(code, gpus=3).lines == [str(first + 2)]


def test_the_driver_wants_to_be_initialised(api: Program) -> None:
    lines = api("""
        count = c_int(); print(cu.cuDeviceGetCount(byref(count)))
        pointer = c_void_p(); ok(cu.cuInit(0)); print(cu.cuMemAlloc_v2(byref(pointer), c_size_t(64)))
        print(cu.cuInit(1), nvml.nvmlDeviceGetCount(byref(c_uint())))
    """).lines
    assert lines == ["3", "201", "1 1"]


def test_a_forked_child_cannot_use_the_parents_cuda(api: Program) -> None:
    lines = api("""
        import os
        malloc(64)
        if (child := os.fork()) == 0:
            os._exit(rt.cudaGetDeviceCount(byref(c_int())))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """).lines
    assert lines == ["3"]


# --- errors ---


def test_names_and_texts_of_errors(api: Program) -> None:
    lines = api("""
        for code in (0, 2, 98, 600, 906, 12345):
            print(code, rt.cudaGetErrorName(code).decode(), rt.cudaGetErrorString(code).decode(), sep=" | ")
        text = c_char_p(); ok(cu.cuGetErrorName(700, byref(text))); print(text.value.decode())
        print(cu.cuGetErrorString(12345, byref(text)), nvml.nvmlErrorString(3).decode())
    """).lines
    assert lines == [
        "0 | cudaSuccess | no error",
        "2 | cudaErrorMemoryAllocation | out of memory",
        "98 | cudaErrorInvalidDeviceFunction | invalid device function",
        "600 | cudaErrorNotReady | device not ready",
        "906 | cudaErrorStreamCaptureImplicit | operation would make the legacy stream depend on a capturing blocking stream",
        "12345 | unrecognized error code | unrecognized error code",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "1 Not Supported",
    ]


def test_the_last_error_is_kept_until_it_is_read(api: Program) -> None:
    lines = api("""
        print(rt.cudaSetDevice(5), rt.cudaPeekAtLastError(), rt.cudaPeekAtLastError())
        malloc(64)
        print(rt.cudaGetLastError(), rt.cudaGetLastError())
        import threading
        rt.cudaSetDevice(5); threading.Thread(target=lambda: print(rt.cudaPeekAtLastError())).start()
    """).lines
    assert lines == ["101 101 101", "101 0", "0"]


@pytest.mark.parametrize(
    "call",
    [
        "rt.cudaMalloc(None, c_size_t(1))",
        "rt.cudaGetDeviceCount(None)",
        "rt.cudaDeviceGetAttribute(None, 1, 0)",
        "rt.cudaGetDeviceProperties(None, 0)",
        "rt.cudaStreamCreate(None)",
        "rt.cudaEventCreate(None)",
        "rt.cudaPointerGetAttributes(None, None)",
        "rt.cudaStreamIsCapturing(None, None)",
        "rt.cudaRuntimeGetVersion(None)",
        "rt.cudaMemcpy(c_void_p(64), None, c_size_t(8), 4)",
        "rt.cudaMemcpy2D(c_void_p(64), c_size_t(4), c_void_p(64), c_size_t(4), c_size_t(8), c_size_t(2), 4)",
        "rt.cudaMemset(c_void_p(64), 0, c_size_t(8))",
        "rt.cudaFree(c_void_p(64))",
        "cu.cuDeviceGetCount(None)",
        "cu.cuGetErrorName(0, None)",
    ],
)
def test_missing_pointers_are_errors(api: Program, call: str) -> None:
    assert api(f"ok(cu.cuInit(0)); print({call})").lines == ["1"]


# --- memory ---


def test_memory_is_counted_exactly_and_given_back(api: Program) -> None:
    lines = api("""
        rt.cudaFree(None)
        before, total = memory()
        big = malloc(5 << 30); small = malloc(1)
        print((before - memory()[0]) >> 20, total)
        for pointer in (big, small): ok(rt.cudaFree(c_void_p(pointer)))
        print(before - memory()[0])
        code = rt.cudaMalloc(byref(c_void_p()), c_size_t(before + 1))
        print(code, rt.cudaGetLastError(), before - memory()[0])
        print(out(c_void_p, rt.cudaMalloc, c_size_t(0)), rt.cudaFree(None), rt.cudaFree(c_void_p(big)))
    """).lines
    assert lines == ["5122 85017493504", "0", "2 2 0", "None 0 1"]


def test_the_driver_takes_memory_of_its_own(api: Program) -> None:
    """Streams, a first kernel and product, and graphs cost what the profile says, and only graphs give it back."""
    lines = api("""
        ok(rt.cudaFree(None)); last = memory()[0]
        def taken():
            global last
            before, last = last, memory()[0]
            return (before - last) >> 20
        streams = [stream() for _ in range(128)]; print(taken())
        for each in streams[:64]: ok(rt.cudaStreamDestroy(each))
        again = [stream() for _ in range(64)]; print(taken())
        blas = ctypes.CDLL("libcublas.so.13")
        handle = c_void_p(); ok(blas.cublasCreate_v2(byref(handle))); s = streams[-1]; ok(blas.cublasSetStream_v2(handle, s))
        def gemm():
            ok(blas.cublasGemmEx(handle, 1, 0, 48, 16, 32, None, None, 14, 32, None, 14, 32, None, None, 14, 48, 68, -1))
        print(taken()); gemm(); print(taken()); gemm(); print(taken())
        graph, exe = c_void_p(), c_void_p()
        ok(rt.cudaStreamBeginCapture(s, 0)); [gemm() for _ in range(1000)]; ok(rt.cudaStreamEndCapture(s, byref(graph)))
        print(taken()); ok(rt.cudaGraphInstantiate(byref(exe), graph, c_uint64(0))); print(taken())
        ok(rt.cudaGraphExecDestroy(exe)); print(taken())
    """).lines
    # 128 x 560 KiB; a product is a kernel, too: 92 + 66 MiB; a graph of 1,000 nodes: 2.9 MiB
    assert lines == ["70", "0", "0", "158", "0", "0", "2", "-2"]


def test_a_full_device_has_no_room_for_a_stream(api: Program) -> None:
    lines = api("""
        ok(rt.cudaFree(None)); malloc(memory()[0] - (20 << 20)); print(memory()[0])
        made = 0
        while not (code := rt.cudaStreamCreateWithFlags(byref(c_void_p()), 1)): made += 1
        print(made, code, memory()[0])
    """).lines
    granule = 2 << 20
    room = int(lines[0]) // granule * granule
    assert 0 < room <= 20 << 20
    made = (room + granule - 1) // 573_440  # the next one would begin a granule that is not there
    assert lines[1:] == [f"{made} 2 {int(lines[0]) - room}"]


def test_what_was_written_can_be_read_back(api: Program) -> None:
    lines = api("""
        host = create_string_buffer(bytes(range(256)) * 4, 1024); back = create_string_buffer(1024)
        pointer = c_void_p(malloc(1024)); other = c_void_p(malloc(1024))
        ok(rt.cudaMemcpy(pointer, host, c_size_t(1024), 1))
        ok(rt.cudaMemcpy(other, pointer, c_size_t(1024), 3))
        ok(rt.cudaMemcpy(back, other, c_size_t(1024), 2)); print(back.raw == host.raw)
        ok(rt.cudaMemset(c_void_p(pointer.value + 16), 7, c_size_t(16)))
        ok(rt.cudaMemcpy2D(back, c_size_t(4), pointer, c_size_t(16), c_size_t(4), c_size_t(3), 4))
        print(back.raw[:12].hex())
        driver(); ok(cu.cuMemsetD32Async(pointer, 0x01020304, c_size_t(4), None))
        ok(cu.cuMemcpyDtoH_v2(back, pointer, c_size_t(20))); print(back.raw[:20].hex())
    """).lines
    assert lines == ["True", "0001020307070707" + "20212223", "04030201" * 4 + "07070707"]


@pytest.mark.parametrize(
    ("kind", "code"), [(1, 0), (2, 1), (3, 1), (4, 0), (5, 21)], ids=["h2d", "d2h", "d2d", "default", "no kind"]
)
def test_a_copy_in_the_wrong_direction(api: Program, kind: int, code: int) -> None:
    lines = api(
        f"host = create_string_buffer(8); print(rt.cudaMemcpy(c_void_p(malloc(8)), host, c_size_t(8), {kind}))"
    ).lines
    assert lines == [str(code)]


def test_a_copy_beyond_its_allocation_is_refused(api: Program) -> None:
    lines = api("""
        host = create_string_buffer(1 << 12); pointer = malloc(1 << 10)
        print(rt.cudaMemcpy(c_void_p(pointer + 1000), host, c_size_t(25), 1), rt.cudaMemset(c_void_p(pointer), 0, c_size_t(1025)))
    """).lines
    assert lines == ["1 1"]


@pytest.mark.parametrize(
    "call",
    [
        "rt.cudaMemset(at, 0, c_size_t(2**64 - 2048))",
        "rt.cudaMemset2D(at, c_size_t(2**63), 0, c_size_t(8), c_size_t(3))",
        "rt.cudaMemset2D(at, c_size_t(2**33), 0, c_size_t(2**33), c_size_t(2**31))",
        "rt.cudaMemcpy(at, host, c_size_t(2**64 - 2048), 1)",
        "rt.cudaMemcpy2D(at, c_size_t(2**33), host, c_size_t(2**33), c_size_t(2**33), c_size_t(2**31), 1)",
        "rt.cudaMallocPitch(byref(c_void_p()), byref(c_size_t()), c_size_t(2**33), c_size_t(2**31))",
        "cu.cuMemsetD32_v2(at, 0, c_size_t(2**62 + 1))",
    ],
)
def test_sizes_that_wrap_around_are_refused(api: Program, call: str) -> None:
    lines = api(f"""
        driver(); at = c_void_p(malloc(1 << 20) + 4096); host = create_string_buffer(4096)
        print({call})
    """).lines
    assert lines == ["1"]


def test_attributes_of_pointers(api: Program) -> None:
    lines = api("""
        def kind(pointer):
            raw = create_string_buffer(128); ok(rt.cudaPointerGetAttributes(raw, c_void_p(pointer)))
            kind, device, on_device, on_host = struct.unpack_from("iiQQ", raw)
            return kind, device, on_device == pointer, on_host == pointer
        print(kind(malloc(1 << 20) + 5000))
        print(kind(out(c_void_p, rt.cudaHostAlloc, c_size_t(100), 0)))
        print(kind(out(c_void_p, rt.cudaMallocManaged, c_size_t(100), 1)))
        own = create_string_buffer(8192); address = (ctypes.addressof(own) + 4095) & ~4095
        print(kind(address)); ok(rt.cudaHostRegister(c_void_p(address), c_size_t(4096), 0)); print(kind(address + 8))
        print(rt.cudaHostRegister(c_void_p(address), c_size_t(4096), 0)); rt.cudaGetLastError()
        ok(rt.cudaHostUnregister(c_void_p(address))); print(rt.cudaHostUnregister(c_void_p(address)), kind(address))
    """).lines
    assert lines == [
        "(2, 0, True, False)",
        "(1, 0, True, True)",
        "(3, 0, True, True)",
        "(0, -2, False, True)",
        "(1, 0, True, True)",
        "712",
        "713 (0, -2, False, True)",
    ]


def test_virtual_memory_management(api: Program) -> None:
    lines = api("""
        driver()
        before = memory()[0]
        prop = create_string_buffer(struct.pack("iiii", 1, 0, 1, 0) + bytes(16), 32)
        print(out(c_size_t, cu.cuMemGetAllocationGranularity, prop, 0))
        size = 8 << 20
        base = out(c_uint64, cu.cuMemAddressReserve, c_size_t(size), c_size_t(0), c_uint64(0), c_uint64(0))
        print(before - memory()[0])
        handle = out(c_uint64, cu.cuMemCreate, c_size_t(size), prop, c_uint64(0)); print((before - memory()[0]) >> 20)
        ok(cu.cuMemMap(c_uint64(base), c_size_t(size), c_size_t(0), c_uint64(handle), c_uint64(0)))
        print(cu.cuMemMap(c_uint64(base), c_size_t(size), c_size_t(0), c_uint64(handle), c_uint64(0)))
        access = struct.pack("iii", 1, 0, 3)
        ok(cu.cuMemSetAccess(c_uint64(base), c_size_t(size), access, c_size_t(1)))
        ok(cu.cuMemsetD8_v2(c_uint64(base + 100), 5, c_size_t(10))); back = create_string_buffer(2)
        ok(cu.cuMemcpyDtoH_v2(back, c_uint64(base + 105), c_size_t(2))); print(back.raw.hex())
        ok(cu.cuMemRelease(c_uint64(handle))); print((before - memory()[0]) >> 20, cu.cuMemRelease(c_uint64(handle)))
        ok(cu.cuMemUnmap(c_uint64(base), c_size_t(size)))
        ok(cu.cuMemAddressFree(c_uint64(base), c_size_t(size))); print(before - memory()[0])
    """).lines
    assert lines == [str(2 << 20), "0", "8", "208", "0505", "8 1", "0"]


def test_stream_ordered_pools(api: Program) -> None:
    lines = api("""
        rt.cudaFree(None); before = memory()[0]
        pool = c_void_p(out(c_void_p, rt.cudaDeviceGetDefaultMemPool, 0))
        pointer = c_void_p(out(c_void_p, rt.cudaMallocAsync, c_size_t(3 << 20), None))
        used = c_uint64(); ok(rt.cudaMemPoolGetAttribute(pool, 7, byref(used)))
        print(used.value >> 20, (before - memory()[0]) >> 20)
        ok(rt.cudaFreeAsync(pointer, None)); ok(rt.cudaMemPoolGetAttribute(pool, 7, byref(used)))
        print(used.value, before - memory()[0])
        print(rt.cudaMemPoolDestroy(pool))
    """).lines
    assert lines == ["3 4", "0 0", "1"]


# --- streams, events, graphs ---


def test_handles_are_checked(api: Program) -> None:
    lines = api("""
        s, e = stream(), event()
        print(rt.cudaStreamSynchronize(c_void_p(0x1234)), rt.cudaEventQuery(s), rt.cudaStreamQuery(e))
        ok(rt.cudaStreamDestroy(s)); print(rt.cudaStreamDestroy(s), rt.cudaEventDestroy(c_void_p(8)))
        print(rt.cudaStreamCreateWithFlags(byref(c_void_p()), 64), rt.cudaGraphLaunch(c_void_p(0x99), None))
    """).lines
    assert lines == ["400 400 400", "400 400", "1 1"]


def test_events_measure_the_stream(api: Program) -> None:
    """Two launches of GEMM_NS each lie between the events."""
    outcome = api("""
        blas = ctypes.CDLL("libcublas.so.13")
        handle = c_void_p(); ok(blas.cublasCreate_v2(byref(handle))); s = stream()
        ok(blas.cublasSetStream_v2(handle, s))
        def gemm():
            ok(blas.cublasGemmEx(handle, 1, 0, 48, 16, 32, None, None, 14, 32, None, 14, 32, None, None, 14, 48, 68, -1))
        gemm(); ok(rt.cudaStreamSynchronize(s))
        a, b, never = event(), event(), event()
        ok(rt.cudaEventRecord(a, s)); gemm(); gemm(); ok(rt.cudaEventRecord(b, s)); ok(rt.cudaEventSynchronize(b))
        ms = c_float(); ok(rt.cudaEventElapsedTime(byref(ms), a, b)); print(round(ms.value * 1e6))
        print(rt.cudaEventElapsedTime(byref(ms), a, never), rt.cudaEventQuery(never), rt.cudaEventQuery(b))
        untimed = event(2); ok(rt.cudaEventRecord(untimed, s)); print(rt.cudaEventElapsedTime(byref(ms), untimed, b))
    """)
    # cuBLAS is column-major: C[48,16] = A^T[48,32] * B[32,16] is D[16,48] = B * A^T row by row
    assert [(launch.name, launch.args[:6]) for launch in outcome.launches] == [
        ("bf16,bf16,bf16,f32", (16, 48, 32, 1, 0, 1))
    ]
    # no upper bound: without a clock page, real time passes between the calls
    assert int(outcome.lines[0]) >= 2 * GEMM_NS
    assert outcome.lines[1:] == ["400 0 0", "400"]


CAPTURE = """
    pointer, host = c_void_p(malloc(64)), create_string_buffer(b"x" * 64, 64)
    s, graph, exe = stream(), c_void_p(), c_void_p()
    def status(which):
        value = c_int(); ok(rt.cudaStreamIsCapturing(which, byref(value))); return value.value
"""


def test_a_graph_moves_its_bytes_at_each_launch(api: Program) -> None:
    lines = api(
        CAPTURE
        + """
    pinned = out(c_void_p, rt.cudaHostAlloc, c_size_t(64), 0); ctypes.memset(pinned, 1, 64)
    ok(rt.cudaStreamBeginCapture(s, 0)); print(status(s), status(None))
    ok(rt.cudaMemcpyAsync(pointer, c_void_p(pinned), c_size_t(64), 1, s))
    count = c_size_t(); info = c_int(); ident = c_uint64(); g = c_void_p()
    ok(rt.cudaStreamGetCaptureInfo(s, byref(info), byref(ident), byref(g), None, None, byref(count)))
    print(info.value, ident.value != 0, g.value is not None)
    ok(rt.cudaStreamEndCapture(s, byref(graph))); print(status(s))
    ok(rt.cudaGraphGetNodes(graph, None, byref(count))); print(count.value)
    ok(rt.cudaGraphInstantiate(byref(exe), graph, c_uint64(0))); ok(rt.cudaGraphDestroy(graph))
    read = lambda: (ok(rt.cudaMemcpy(host, pointer, c_size_t(64), 2)), host.raw[0])[1]
    print(read())
    for value in (2, 3):
        ctypes.memset(pinned, value, 64); ok(rt.cudaGraphLaunch(exe, s)); ok(rt.cudaStreamSynchronize(s))
        print(read())
    ok(rt.cudaGraphExecDestroy(exe)); print(rt.cudaGraphLaunch(exe, s))
    """
    ).lines
    assert lines == ["1 0", "1 True True", "0", "1", "0", "2", "3", "1"]


@pytest.mark.parametrize(
    ("mode", "call", "codes"),
    [
        (0, "rt.cudaStreamSynchronize(s)", "900 2 901"),
        (2, "rt.cudaStreamSynchronize(s)", "900 2 901"),
        (0, "rt.cudaMalloc(byref(c_void_p()), c_size_t(64))", "900 2 901"),
        (1, "rt.cudaMalloc(byref(c_void_p()), c_size_t(64))", "900 2 901"),
        (2, "rt.cudaMalloc(byref(c_void_p()), c_size_t(64))", "0 1 0"),
        (0, "rt.cudaEventQuery(recorded)", "900 2 901"),
        (2, "rt.cudaDeviceSynchronize()", "900 2 901"),
        (0, "rt.cudaStreamBeginCapture(s, 0)", "401 1 0"),
        (0, "rt.cudaStreamWaitEvent(s, recorded, 0)", "905 2 901"),
        (0, "rt.cudaStreamEndCapture(other, byref(graph))", "401 1 0"),
    ],
)
def test_what_a_capture_forbids(api: Program, mode: int, call: str, codes: str) -> None:
    lines = api(
        CAPTURE
        + f"""
    other, recorded = stream(), event(); ok(rt.cudaEventRecord(recorded, other))
    ok(rt.cudaStreamBeginCapture(s, {mode}))
    code = {call}
    print(code, status(s), rt.cudaStreamEndCapture(s, byref(graph)))
    """
    ).lines
    assert lines == [codes]


def test_relaxing_the_thread_lifts_what_a_global_capture_forbids(api: Program) -> None:
    lines = api(
        CAPTURE
        + """
    import threading
    ok(rt.cudaStreamBeginCapture(s, 2)); mode = c_int(2); ok(rt.cudaThreadExchangeStreamCaptureMode(byref(mode)))
    malloc(64); ok(rt.cudaThreadExchangeStreamCaptureMode(byref(mode)))
    print(mode.value, rt.cudaStreamEndCapture(s, byref(graph)))
    ok(rt.cudaStreamBeginCapture(s, 0)); codes = []
    t = threading.Thread(target=lambda: codes.append(rt.cudaMalloc(byref(c_void_p()), c_size_t(64)))); t.start()
    t.join()
    print(*codes, rt.cudaStreamEndCapture(s, byref(graph)))
    """
    ).lines
    assert lines == ["2 0", "900 901"]


def test_streams_joined_by_an_event_capture_together(api: Program) -> None:
    lines = api(
        CAPTURE
        + """
    other, fork, join = stream(), event(2), event(2)
    ok(rt.cudaStreamBeginCapture(s, 0)); ok(rt.cudaEventRecord(fork, s))
    ok(rt.cudaStreamWaitEvent(other, fork, 0)); print(status(other))
    ok(rt.cudaMemsetAsync(pointer, 9, c_size_t(64), other))
    ok(rt.cudaEventRecord(join, other)); ok(rt.cudaStreamWaitEvent(s, join, 0))
    print(rt.cudaStreamEndCapture(other, byref(graph)))
    ok(rt.cudaStreamEndCapture(s, byref(graph)))
    print(status(other), rt.cudaEventQuery(join), rt.cudaEventSynchronize(join))
    """
    ).lines
    assert lines == ["1", "903", "0 907 907"]


@pytest.mark.parametrize(
    ("calls", "code"),
    [
        ("", 0),  # nothing to wait for
        ("fill(b)", 904),
        ("fill(b); wait(s, b)", 0),
        ("fill(b); wait(s, b); fill(b)", 904),
        ("fill(b); wait(c, b); wait(s, c)", 0),  # by way of a third stream
        ("fill(b); wait(c, b); fill(c); wait(s, b)", 904),
        ("fill(b); fill(s); wait(b, s)", 904),
    ],
)
def test_forked_work_must_be_joined(api: Program, calls: str, code: int) -> None:
    lines = api(
        CAPTURE
        + f"""
    b, c = stream(), stream()
    def fill(which): ok(rt.cudaMemsetAsync(pointer, 9, c_size_t(64), which))
    def wait(which, other):
        mark = event(2); ok(rt.cudaEventRecord(mark, other)); ok(rt.cudaStreamWaitEvent(which, mark, 0))
    ok(rt.cudaStreamBeginCapture(s, 0)); wait(b, s); {calls}
    print(rt.cudaStreamEndCapture(s, byref(graph)), graph.value is not None)
    print(status(s), status(b)); fill(b); ok(rt.cudaStreamSynchronize(b))
    """
    ).lines
    assert lines == [f"{code} {code == 0}", "0 0"]


@pytest.mark.parametrize(
    ("call", "codes"),
    [
        ("rt.cudaMemsetAsync(pointer, 9, c_size_t(64), None)", "906 2 901"),
        ("rt.cudaMemcpy(host, pointer, c_size_t(64), 2)", "906 2 901"),
        ("rt.cudaStreamSynchronize(None)", "906 2 901"),
        ("rt.cudaStreamQuery(None)", "906 2 901"),
        ("rt.cudaEventRecord(event(), None)", "906 2 901"),
        ("rt.cudaStreamIsCapturing(None, byref(c_int()))", "906 1 0"),  # loses nothing
        ("rt.cudaMemsetAsync(pointer, 9, c_size_t(64), stream())", "0 1 0"),
        ("rt.cudaMemsetAsync(pointer, 9, c_size_t(64), stream(0))", "0 1 0"),
    ],
)
def test_the_legacy_stream_beside_a_blocking_stream_that_captures(api: Program, call: str, codes: str) -> None:
    lines = api(
        CAPTURE
        + f"""
    s = stream(0); ok(rt.cudaStreamBeginCapture(s, 2)); code = {call}
    print(code, status(s), rt.cudaStreamEndCapture(s, byref(graph)))
    print(rt.cudaMemsetAsync(pointer, 9, c_size_t(64), None))
    """
    ).lines
    assert lines == [codes, "0"]


def test_the_legacy_stream_beside_another_stream_that_captures(api: Program) -> None:
    lines = api(
        CAPTURE
        + """
    mark = event(2); ok(rt.cudaStreamBeginCapture(s, 2))
    print(rt.cudaMemsetAsync(pointer, 9, c_size_t(64), None), status(s), status(None))
    ok(rt.cudaEventRecord(mark, s)); print(rt.cudaStreamWaitEvent(None, mark, 0))
    print(status(s), rt.cudaStreamEndCapture(s, byref(graph)))
    """
    ).lines
    assert lines == ["0 1 0", "906", "2 901"]


def test_the_legacy_stream_cannot_capture(api: Program) -> None:
    assert api("print(rt.cudaStreamBeginCapture(None, 0))").lines == ["900"]


def test_host_functions_run_in_stream_order(api: Program) -> None:
    lines = api("""
        import threading
        done = []; s = stream()
        plain = ctypes.CFUNCTYPE(None, c_void_p)(lambda data: done.append(("plain", data)))
        def add(which, status, data): done.append(("older", which == s.value, status, data))
        older = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)(add)
        ok(rt.cudaLaunchHostFunc(s, plain, c_void_p(7))); ok(rt.cudaStreamAddCallback(s, older, c_void_p(8), 0))
        ok(rt.cudaStreamSynchronize(s)); print(done)
        print(rt.cudaLaunchHostFunc(s, None, None))
    """).lines
    assert lines == ["[('plain', 7), ('older', True, 0, 8)]", "1"]


# --- kernels ---

MODULE = f"""
    driver()
    image = open("{CUBINS}/kernels.sm_90.cubin", "rb").read()
    module, function = c_void_p(), c_void_p()
    ok(cu.cuModuleLoadData(byref(module), image)); ok(cu.cuModuleGetFunction(byref(function), module, b"bounded"))
    def launch(grid=(1, 1, 1), block=(32, 1, 1), shared=0, which=None):
        return cu.cuLaunchKernel(which or function, *grid, *block, shared, None, None, None)
"""


@pytest.mark.parametrize("image", ["kernels.sm_80.cubin", "kernels.sm_90.cubin"])
def test_attributes_come_from_the_image(api: Program, image: str) -> None:
    """As `ptxas -v` printed them when the images were made."""
    lines = api(f"""
        driver()
        library = c_void_p()
        ok(cu.cuLibraryLoadFromFile(byref(library), b"{CUBINS}/{image}", None, None, 0, None, None, 0))
        for name in (b"bounded", b"framed"):
            kernel = c_void_p(); ok(cu.cuLibraryGetKernel(byref(kernel), library, name))
            print(*[out(c_int, cu.cuKernelGetAttribute, which, kernel, 0) for which in (4, 1, 3, 0)])
            text = c_char_p(); ok(cu.cuKernelGetName(byref(text), kernel)); print(text.value.decode())
        print(cu.cuLibraryGetKernel(byref(kernel), library, b"absent"), out(c_uint, cu.cuLibraryGetKernelCount, library))
        address, size = c_uint64(), c_size_t()
        ok(cu.cuLibraryGetGlobal(byref(address), byref(size), library, b"counters")); print(size.value)
        ok(cu.cuMemsetD8_v2(address, 1, size))
        print(cu.cuLibraryGetGlobal(byref(address), byref(size), library, b"absent"))
        print(cu.cuModuleLoadData(byref(library), b"no image at all, and long enough to look at it"))
    """).lines
    # registers, shared, local, threads
    assert lines == ["8 512 0 256", "bounded", "8 0 64 1024", "framed", "500 2", "192", "500", "200"]


def test_launches_carry_name_and_shape(api: Program) -> None:
    outcome = api(
        MODULE
        + """
    ok(launch((5, 4, 3), (64, 2, 1), 1024)); ok(cu.cuCtxSynchronize())
    """
    )
    (launch,) = outcome.launches
    assert (launch.kind, launch.name, launch.args[:7]) == ("kernel", "bounded", (5, 4, 3, 64, 2, 1, 1024))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("(0, 1, 1)", 1),
        ("(1, 65536, 1)", 1),
        ("(1, 1, 1), (2048, 1, 1)", 1),
        ("(1, 1, 1), (32, 32, 2)", 1),
        ("(1, 1, 1), (512, 1, 1)", 701),
        ("(1, 1, 1), (32, 1, 1), 49152", 1),
        ("(1, 1, 1), (32, 1, 1), 48640", 0),
        ("(1, 1, 1), (32, 1, 1), 0, c_void_p(0x77)", 400),
    ],
)
def test_launches_that_no_card_takes(api: Program, arguments: str, code: int) -> None:
    assert api(MODULE + f"    print(launch({arguments}))").lines == [str(code)]


def test_dynamic_shared_memory_is_opted_in(api: Program) -> None:
    lines = api(
        MODULE
        + """
    print(launch(shared=100_000), cu.cuFuncSetAttribute(function, 8, 300_000))
    ok(cu.cuFuncSetAttribute(function, 8, 100_000))
    print(launch(shared=100_000), out(c_int, cu.cuFuncGetAttribute, 8, function))
    """
    ).lines
    assert lines == ["1 1", "0 100000"]


def test_occupancy_by_each_limit(api: Program) -> None:
    """132 multiprocessors of 2048 threads, 32 blocks, 64 Ki registers, 228 KiB shared less 1 KiB a block (H100)."""
    lines = api(
        MODULE
        + """
    ok(cu.cuFuncSetAttribute(function, 8, 200_000))
    count = cu.cuOccupancyMaxActiveBlocksPerMultiprocessor
    blocks = lambda threads, shared=0: out(c_int, count, function, threads, c_size_t(shared))
    print(blocks(32), blocks(256), blocks(256, 50_000), blocks(256, 200_000))
    grid, block = c_int(), c_int()
    ok(cu.cuOccupancyMaxPotentialBlockSize(byref(grid), byref(block), function, None, c_size_t(0), 0))
    print(grid.value, block.value)
    together = lambda blocks: cu.cuLaunchCooperativeKernel(function, blocks, 1, 1, 256, 1, 1, 0, None, None)
    print(together(132 * 8 + 1), together(132 * 8))
    """
    ).lines
    assert lines == ["32 8 4 1", "1056 256", "720 0"]


def test_registered_kernels_of_a_program(api: Program) -> None:
    """What nvcc's start-up code does: a host pointer stands for a kernel."""
    outcome = api("""
        rt.__cudaRegisterFatBinary = rt["__cudaRegisterFatBinary"]; rt.__cudaRegisterFatBinary.restype = c_void_p
        register, get = rt["__cudaRegisterFunction"], rt["__cudaGetKernel"]
        handle = c_void_p(rt.__cudaRegisterFatBinary(create_string_buffer(64)))
        host = create_string_buffer(8); name = create_string_buffer(b"_Z4testv")
        register(handle, host, name, name, -1, None, None, None, None, None)
        kernel = c_void_p(); ok(get(byref(kernel), host))
        class Dim3(ctypes.Structure): _fields_ = [("x", c_uint), ("y", c_uint), ("z", c_uint)]
        launch = rt.cudaLaunchKernel; launch.argtypes = [c_void_p, Dim3, Dim3, c_void_p, c_size_t, c_void_p]
        ok(launch(ctypes.addressof(host), Dim3(2, 1, 1), Dim3(64, 1, 1), None, 0, None))
        name.value = b"changed"  # the library that brought the name may be gone: launches keep their own copy
        ok(launch(kernel, Dim3(3, 1, 1), Dim3(64, 1, 1), None, 0, None)); ok(rt.cudaDeviceSynchronize())
        one = Dim3(1, 1, 1)
        print(launch(1234, one, Dim3(64, 1, 1), None, 0, None), launch(kernel, one, Dim3(2000, 1, 1), None, 0, None))
    """)
    assert [(launch.name, launch.args[0]) for launch in outcome.launches] in (
        [("_Z4testv", 2), ("_Z4testv", 3)],
        [("_Z4testv", 2)],
    )
    assert outcome.lines == ["98 9"]


def test_tensor_maps_are_checked(api: Program) -> None:
    lines = api("""
        driver()
        pointer = out(c_uint64, cu.cuMemAlloc_v2, c_size_t(1 << 20)); raw = create_string_buffer(256)
        place = c_void_p((ctypes.addressof(raw) + 63) & ~63)
        def encode(dims=(64, 64), strides=(128,), box=(64, 64), base=pointer, swizzle=3):
            return cu.cuTensorMapEncodeTiled(place, 9, 2, c_void_p(base), (c_uint64 * 2)(*dims), (c_uint64 * 1)(*strides),
                                             (c_uint * 2)(*box), (c_uint * 2)(1, 1), 0, swizzle, 0, 0)
        print(encode(), encode(base=pointer + 8), encode(strides=(100,)), encode(box=(512, 1)))
        print(encode(box=(128, 1)), encode(dims=(0, 1)))
    """).lines
    assert lines == ["0 1 1 1", "1 1"]


# --- entry points ---


@pytest.mark.parametrize(
    ("name", "version", "flags", "symbol", "status"),
    [
        ("cuMemAlloc", 13000, 0, "cuMemAlloc_v2", 0),
        ("cuMemAlloc", 3010, 0, "cuMemAlloc", 0),
        ("cuCtxGetDevice", 12000, 0, "cuCtxGetDevice", 0),
        ("cuCtxGetDevice", 13000, 0, "cuCtxGetDevice_v2", 0),
        ("cuMemCreate", 10000, 0, None, 2),
        ("cuMemCreate", 10020, 1, "cuMemCreate", 0),
        ("cuStreamGetCaptureInfo", 11030, 0, "cuStreamGetCaptureInfo_v2", 0),
        ("cuStreamSynchronize", 13000, 1, "cuStreamSynchronize", 0),
        ("cuStreamSynchronize", 13000, 2, "cuStreamSynchronize_ptsz", 0),
        ("cuInit", 13000, 2, "cuInit", 0),
        ("cuMemAlloc_v2", 13000, 0, None, 1),
        ("cuNothing", 13000, 0, None, 1),
    ],
)
def test_entry_points(api: Program, name: str, version: int, flags: int, symbol: str | None, status: int) -> None:
    """By name, version and flag, through the driver and through the runtime."""
    lines = api(f"""
        wanted = ctypes.cast(getattr(cu, {symbol!r}), c_void_p).value if {symbol!r} else None
        f, status = c_void_p(), c_int()
        ok(cu.cuGetProcAddress_v2(b"{name}", byref(f), {version}, c_uint64({flags}), byref(status)))
        print(f.value == wanted, status.value)
        f, status = c_void_p(), c_int()
        ok(rt.cudaGetDriverEntryPointByVersion(b"{name}", byref(f), {version}, c_uint64({flags}), byref(status)))
        print(f.value == wanted, status.value)
        print(cu.cuGetProcAddress(b"{name}", byref(f), {version}, c_uint64({flags})))
    """).lines
    assert lines == [f"True {status}", f"True {status}", "500" if status else "0"]


# --- NVML ---


def test_confidential_computing_is_off(api: Program) -> None:
    lines = api("""
        state, settings = (c_uint * 3)(9, 9, 9), (c_uint * 5)(0x1000014, 9, 9, 9, 9)
        print(nvml.nvmlSystemGetConfComputeState(state)); ok(nvml.nvmlInit_v2())
        ok(nvml.nvmlSystemGetConfComputeState(state)); ok(nvml.nvmlSystemGetConfComputeSettings(settings))
        print(list(state), list(settings)[1:])
        settings[0] = 1; print(nvml.nvmlSystemGetConfComputeSettings(settings), nvml.nvmlSystemGetConfComputeState(None))
    """).lines
    assert lines == ["1", "[0, 0, 0] [0, 0, 0, 0]", "25 2"]


def test_memory_as_nvml_sees_it(api: Program) -> None:
    lines = api("""
        ok(nvml.nvmlInit_v2()); handle = c_void_p(); ok(nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(handle)))
        def info():
            raw = (c_uint64 * 5)(); raw[0] = 40 | 2 << 24; ok(nvml.nvmlDeviceGetMemoryInfo_v2(handle, raw))
            return list(raw)[1:]
        total, reserved, free, used = info(); print(total == reserved + free + used, used)
        malloc(1 << 30); after = info(); print((after[3] - used) >> 30, free - after[2] == after[3] - used)
        simple = (c_uint64 * 3)(); ok(nvml.nvmlDeviceGetMemoryInfo(handle, simple))
        print(simple[0] == total, simple[1] == after[2], simple[2] == reserved + after[3])
        raw = (c_uint64 * 5)(); print(nvml.nvmlDeviceGetMemoryInfo_v2(handle, raw))
        import os; count, entry = c_uint(4), create_string_buffer(64)
        ok(nvml.nvmlDeviceGetComputeRunningProcesses(handle, byref(count), entry))
        pid, bytes_used = struct.unpack_from("IxxxxQ", entry)
        print(count.value, pid == os.getpid(), bytes_used == after[3])
        ok(nvml.nvmlShutdown()); print(nvml.nvmlShutdown())
    """).lines
    assert lines == ["True 0", "1 True", "True True True", "25", "1 True True", "1"]
