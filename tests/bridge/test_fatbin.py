"""Which of a program's code a kernel runs: asked by CUB, which refuses an architecture that it was not compiled for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment

from .conftest import Outcome

PROGRAM = """
import ctypes, struct
from ctypes import byref, c_char_p, c_int, c_void_p
rt = ctypes.CDLL("libcudart.so.13")
register, function = getattr(rt, "__cudaRegisterFatBinary"), getattr(rt, "__cudaRegisterFunction")
register.argtypes, register.restype = (c_void_p,), c_void_p
function.argtypes = (c_void_p, c_void_p, c_char_p, c_char_p, c_int, *(5 * (c_void_p,)))
PTX, CUBIN = 1, 2
def entry(kind, architecture, payload=b"compressed code"):
    return struct.pack("<HHIQIIHHIIIQQQ", kind, 257, 64, len(payload), 0, 0, 0, 1, architecture, 0, 0, 0, 0, 0) + payload
rt.cudaFuncGetAttributes.argtypes = (c_void_p, c_void_p)
kept = []
def versions(*entries):
    code = b"".join(entry(*each) for each in entries)
    fatbin = ctypes.create_string_buffer(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(code)) + code)
    wrapper = ctypes.create_string_buffer(struct.pack("<IIQQ", 0x466243B1, 1, ctypes.addressof(fatbin) if entries else 0, 0))
    stub, attributes = ctypes.create_string_buffer(1), (c_int * 64)()
    kept.append((fatbin, wrapper, stub))
    function(register(ctypes.addressof(wrapper)), ctypes.addressof(stub), b"k", b"k", -1, *(5 * (None,)))
    assert rt.cudaFuncGetAttributes(byref(attributes), ctypes.addressof(stub)) == 0
    return tuple(attributes[8:10])  # ptxVersion, binaryVersion, behind three sizes and two numbers
"""

TORCH = ", ".join(f"(CUBIN, {each})" for each in (75, 80, 86, 90, 100, 120))


@pytest.mark.parametrize(
    ("gpu", "cases"),
    [
        (
            "l40s",  # capability 8.9
            {
                TORCH: "(86, 86)",  # machine code of 8.6 runs on it
                "(CUBIN, 86), (PTX, 89)": "(86, 86)",  # and comes before PTX
                "(CUBIN, 90), (PTX, 90)": "(89, 89)",  # nothing for it: the device's own, as where nothing is known
                "": "(89, 89)",
            },
        ),
        (
            "h100-sxm-80gb",
            {TORCH: "(90, 90)", "(CUBIN, 86), (PTX, 80)": "(80, 90)"},
        ),  # of another major: PTX, compiled here
        ("rtx-pro-6000", {TORCH: "(120, 120)", "(CUBIN, 100), (PTX, 80), (PTX, 90)": "(90, 120)"}),
    ],
)
def test_versions_are_those_of_the_code_that_runs(
    run_program: Callable[..., Outcome], gpu: str, cases: dict[str, str]
) -> None:
    asked = "\n".join(f"print(versions({entries}))" for entries in cases)
    assert run_program(PROGRAM + asked, gpu=gpu).lines == list(cases.values())


def test_torchs_scans_run_where_torch_has_no_code_of_the_very_architecture(
    run_program: Callable[..., Outcome], engine: EngineEnvironment
) -> None:
    code = "import torch; print(torch.zeros(5000, dtype=torch.int32, device='cuda').cumsum(0).shape)"
    outcome = run_program(code, gpu="l40s", python=engine.python)
    assert outcome.lines == ["torch.Size([5000])"]
    assert any("scan" in one.name.lower() for one in outcome.launches)
