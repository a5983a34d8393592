"""Whatever way a program opens an NVIDIA library, it gets ours; what we lack says so and stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Outcome

SONAMES = (
    "libcudart.so.13",
    "libcuda.so.1",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libnccl.so.2",
    "libnvidia-ml.so.1",
)
OPEN = """
import ctypes, sys
from pathlib import Path
class Info(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]
def where(path, symbol):
    info = Info()
    address = ctypes.cast(getattr(ctypes.CDLL(path), symbol), ctypes.c_void_p)
    ctypes.CDLL(None).dladdr(address, ctypes.byref(info))
    return info.file.decode()
"""
SYMBOLS = {
    "libcudart.so.13": "cudaMalloc",
    "libcuda.so.1": "cuInit",
    "libcublas.so.13": "cublasCreate_v2",
    "libcublasLt.so.13": "cublasLtCreate",
    "libcudart.so.12": "cudaMalloc",
    "libcublas.so.12": "cublasCreate_v2",
    "libcublasLt.so.12": "cublasLtCreate",
    "libnccl.so.2": "ncclGetVersion",
    "libnvidia-ml.so.1": "nvmlInit_v2",
}


def test_by_soname_and_by_path(run_program: Callable[..., Outcome], libraries: Path, tmp_path: Path) -> None:
    """A path that leads to another file of that name, or to none, ends at ours."""
    for soname in SONAMES:
        (tmp_path / soname).write_bytes(b"not a library")
    code = (
        OPEN
        + f"""
symbols = {SYMBOLS!r}
for soname, symbol in symbols.items():
    for path in (soname, "{tmp_path}/" + soname, "/nowhere/" + soname):
        print(soname, where(path, symbol))
"""
    )
    lines = run_program(code).lines
    assert lines == [f"{soname} {libraries / soname}" for soname in SYMBOLS for _ in range(3)]


@pytest.mark.parametrize(
    ("name", "symbol", "soname"),
    [
        ("libcudart.so.13.0.96", "cudaMalloc", "libcudart.so.13"),
        ("/opt/cuda/libcudart.so.12.8.90", "cudaMalloc", "libcudart.so.12"),
        ("libcuda.so", "cuInit", "libcuda.so.1"),
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05", "cuInit", "libcuda.so.1"),
        ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05", "nvmlInit", "libnvidia-ml.so.1"),
        ("/opt/libnccl.so", "ncclGetVersion", "libnccl.so.2"),
        ("/opt/nvidia_cutlass_dsl/cu13/lib/libcute_dsl_runtime.so", "_cudaLaunchKernelEx", "libcute_dsl_runtime.so"),
    ],
)
def test_other_names_of_the_same_libraries(
    run_program: Callable[..., Outcome], libraries: Path, name: str, symbol: str, soname: str
) -> None:
    lines = run_program(OPEN + f'print(where("{name}", "{symbol}"))').lines
    assert lines == [str(libraries / soname)]


def test_other_libraries_are_left_alone(run_program: Callable[..., Outcome], tmp_path: Path) -> None:
    code = (
        OPEN
        + f"""
import _ctypes
print(where("libc.so.6", "getpid"))
for name in ("libcufft.so.12", "{tmp_path}/libcudnn.so.9", "libcudart.so.11"):
    try:
        ctypes.CDLL(name)
        print("opened", name)
    except OSError as error:
        print(str(error).split(":")[0])
"""
    )
    lines = run_program(code).lines
    assert "libc" in lines[0]
    assert lines[1:] == ["libcufft.so.12", f"{tmp_path}/libcudnn.so.9", "libcudart.so.11"]


def test_the_callers_rpath_counts(run_program: Callable[..., Outcome], tmp_path: Path) -> None:
    """Dlopen looks along the RPATH of its caller; a wrapper that calls instead of jumping would lose it."""
    import subprocess

    inner, outer = tmp_path / "inner", tmp_path
    inner.mkdir()
    (tmp_path / "i.c").write_text("int answer(void) { return 42; }")
    (tmp_path / "o.c").write_text(
        "#include <dlfcn.h>\n"
        'int ask(void) { void *l = dlopen("libinner_of_a_test.so", RTLD_NOW);'
        ' return l ? ((int (*)(void))dlsym(l, "answer"))() : -1; }'
    )
    library = inner / "libinner_of_a_test.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "i.c"], check=True)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", outer / "libouter.so", tmp_path / "o.c", f"-Wl,-rpath,{inner}"], check=True
    )
    lines = run_program(f'import ctypes; print(ctypes.CDLL("{outer}/libouter.so").ask())').lines
    assert lines == ["42"]


UNSUPPORTED = 'import ctypes; print(ctypes.CDLL("libcudart.so.13").cudaMallocArray())'


def test_an_unsupported_call_names_itself_and_stops(run_program: Callable[..., Outcome]) -> None:
    outcome = run_program(UNSUPPORTED, ok=False)
    assert outcome.status == -6
    line = outcome.errors.strip()
    assert len(line.splitlines()) == 1
    assert line.startswith("hyperlapse: cudaMallocArray of libcudart.so.13 is not supported (called from ")
    assert "libffi" in line, "the caller is the library that made the call"
    assert "HYPERLAPSE_UNSUPPORTED=error" in line


def test_policies_for_unsupported_calls(run_program: Callable[..., Outcome]) -> None:
    quiet = run_program(UNSUPPORTED, extra={"HYPERLAPSE_UNSUPPORTED": "error"})
    assert (quiet.lines, quiet.errors) == (["801"], "")
    loud = run_program(UNSUPPORTED, extra={"HYPERLAPSE_UNSUPPORTED": "warn"})
    assert loud.lines == ["801"]
    assert "warning: cudaMallocArray of libcudart.so.13 is not supported" in loud.errors
    wrong = run_program(UNSUPPORTED, extra={"HYPERLAPSE_UNSUPPORTED": "maybe"}, ok=False)
    assert "choose abort, warn or error" in wrong.errors


def test_an_unknown_part_of_a_supported_call_is_named(run_program: Callable[..., Outcome]) -> None:
    code = 'import ctypes; ctypes.CDLL("libcudart.so.13").cudaDeviceGetAttribute(ctypes.byref(ctypes.c_int()), 9999, 0)'
    outcome = run_program(code, ok=False)
    assert "cudaDeviceGetAttribute with attribute 9999 of libcudart is not supported" in outcome.errors


@pytest.mark.parametrize("call", ['CDLL("libcuda.so.1").cuInit(0)', 'CDLL("libnvidia-ml.so.1").nvmlInit_v2()'])
def test_outside_a_run_the_first_call_says_what_to_do(run_outside: Callable[[str], Outcome], call: str) -> None:
    outcome = run_outside(f"from ctypes import CDLL; {call}")
    assert outcome.status == -6
    assert "takes part in no run: start it with `hyperlapse run -- COMMAND`" in outcome.errors


def test_outside_a_run_loading_the_libraries_does_nothing(run_outside: Callable[[str], Outcome]) -> None:
    outcome = run_outside("print(1 + 1)")
    assert (outcome.status, outcome.output, outcome.errors) == (0, "2\n", "")
