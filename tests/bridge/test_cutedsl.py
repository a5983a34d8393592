"""Programs that CuTe-DSL compiles, whose own runtime is replaced: loading once, and launches that are seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hyperlapse.cli.engine_environment import EngineEnvironment

from .conftest import Outcome

Program = Callable[..., Outcome]

PRELUDE = """
import ctypes
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_void_p
dsl = ctypes.CDLL("/opt/cutlass/lib/libcute_dsl_runtime.so")
state, did = c_void_p(), []
def load(at, result=0):
    did.append("load"); at[0] = 77; return result
def to_device(at, device):
    did.append(f"device {device} of {at[0]}"); return 0
STATE = POINTER(c_void_p)
LOAD, TO_DEVICE, ERROR = CFUNCTYPE(c_int, STATE), CFUNCTYPE(c_int, STATE, c_int), CFUNCTYPE(None, c_char_p, c_char_p)
error = ERROR(lambda kind, text: did.append(f"{kind.decode()}: {text.decode()}"))
"""


def test_kernels_are_loaded_once_and_made_known_to_every_device(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
for _ in range(2):
    print(dsl.cuda_dialect_init_library_once(byref(state), LOAD(load), TO_DEVICE(to_device), error), state.value)
print(did)
dsl.cuda_dialect_unload_library_once(byref(state)); print(state.value)
""",
        gpus=2,
    )
    assert outcome.lines == ["0 77", "0 77", "['load', 'device 0 of 77', 'device 1 of 77']", "None"]


def test_what_cannot_be_loaded_is_an_error_with_its_name(run_program: Program) -> None:
    outcome = run_program(
        PRELUDE
        + """
broken = LOAD(lambda at: load(at, 209))
print(dsl.cuda_dialect_init_library_once(byref(state), broken, TO_DEVICE(to_device), error), state.value)
print(did)
dsl.cuda_dialect_get_error_name.restype = c_char_p; print(dsl.cuda_dialect_get_error_name(1).decode())
"""
    )
    assert outcome.lines == [
        "-1 None",
        "['load', 'RuntimeError: cudaErrorNoKernelImageForDevice']",
        "cudaErrorInvalidValue",
    ]


def test_a_compiled_program_launches(run_program: Program, engine: EngineEnvironment, tmp_path: Path) -> None:
    """The DSL's own compiler, in the engine's environment; it reads the source of its kernels from their file."""
    program = tmp_path / "program.py"
    program.write_text("""
import cutlass
import cutlass.cute as cute

@cute.kernel
def nothing(number: cutlass.Int32):
    cute.arch.barrier()

@cute.jit
def run(number: cutlass.Int32):
    nothing(number).launch(grid=[3, 1, 1], block=[64, 1, 1])

compiled = cute.compile(run, cutlass.Int32(1), options="--enable-tvm-ffi")
compiled(1)
compiled(2)
print("ran")
""")
    outcome = run_program(
        f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')",
        gpu="b200-sxm-180gb",
        python=engine.python,
    )
    assert outcome.lines == ["ran"]
    assert {(one.kind, one.name, one.args[:4]) for one in outcome.launches} == {
        ("kernel", "kernel_cutlass_nothing__0", (3, 1, 1, 64))
    }
