"""Odd arguments get CUDA's own error codes, never a crash of ours: as built, and under the sanitizers."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperlapse.shim import environment, stubgen

from .conftest import Outcome, build, builders

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: Left out, with the reason: they end the process or wait for other ranks by contract, or take a structure or an array whose
#: contents are the program's own promise (a list of pointers, arguments of a kernel), which any library follows.
LEFT_OUT = re.compile(
    r"cudaDeviceReset|cu(da)?Launch(Kernel|CooperativeKernel|HostFunc)|cudaStreamAddCallback|cuStreamAddCallback|"
    r"cu(da)?Library(Load|Enumerate)|cuModule(Load|Enumerate)|cuLibrary|cuTensorMap|cu(da)?IpcOpen|"
    r"cudaFree$|cudaFreeHost|cudaFreeAsync|cudaHostUnregister|cuMemHostUnregister|cuMemFree|cu(da)?StreamDestroy|cu(da)?EventDestroy|cu(da)?GraphDestroy|cu(da)?GraphExecDestroy|"
    r"cuPointerGetAttributes|cuDevicePrimaryCtxRelease|cuMemImport|cu(da)?StreamBeginCapture|cuda(Get|Func|Occupancy)\w*Symbol|nvmlShutdown"
)
HANDLES = {
    "cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t", "cudaMemPool_t", "cudaLibrary_t", "cudaKernel_t", "CUstream",
    "CUevent", "CUgraph", "CUgraphExec", "CUmemoryPool", "CUmodule", "CUfunction", "CUkernel", "CUlibrary", "CUcontext",
    "CUmemGenericAllocationHandle", "nvmlDevice_t", "struct CUstream_st *",
}  # fmt: skip


def kind_of(type_: str, function: str) -> str:
    """Which list of odd values a parameter draws from."""
    type_ = re.sub(r"\s+", " ", type_).strip()
    if type_.removeprefix("const ") in HANDLES:
        return "handle"
    if "Callback" in type_ or "HostFn" in type_ or "CUhostFn" in type_:
        return "function"
    if re.fullmatch(r"const char \*( const)?", type_):
        return "text"
    if type_ == "CUdeviceptr" or (re.search(r"void \*$", type_) and re.search("[Mm]em(cpy|set)|Symbol", function)):
        return "memory"
    if type_ in {"const void *", "void *"}:
        return "out" if "Attribute" in function else "memory"
    if "*" in type_:
        return "out"
    return "float" if type_ in {"float", "double"} else "number"


def prototypes(header: Path, marker: str) -> dict[str, list[str]]:
    """Name -> types of parameters, from declarations ``... MARKER name(parameters);`` of a header."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*|__dv\([^)]*\)", "", header.read_text(encoding="utf-8"), flags=re.S)
    found: dict[str, list[str]] = {}
    for name, parameters in re.findall(rf"{marker}\s+(\w+)\s*\(([^()]*)\)\s*;", text):
        types = []
        for parameter in [] if parameters.strip() in {"", "void"} else parameters.split(","):
            match = re.match(r"\s*(.*?[\s*])(\w+)?\s*(\[\w*\])?\s*$", parameter, re.S)
            assert match, (name, parameter)
            types.append(match[1].strip() + (" *" if match[3] else ""))
        found.setdefault(name, types)  # the newest form stands first; older ones follow for programs that ask for them
    return found


def table() -> list[dict[str, object]]:
    """Every function that is real or a noop and whose parameters the headers of this environment tell."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) / "cu13" / "include" for place in (spec.submodule_search_locations or [])] if spec else []
    include = next((place for place in places if (place / "nvml.h").exists() and (place / "cuda.h").exists()), None)
    if include is None:
        pytest.skip("no CUDA headers in this environment: requirements/dev.txt has them")
    rows: list[dict[str, object]] = []
    for library, header, marker in (
        ("cudart", "cuda_runtime_api.h", "CUDARTAPI"),
        ("cuda", "cuda.h", "CUDAAPI"),
        ("nvml", "nvml.h", "DECLDIR"),
    ):
        manifest = stubgen.load(ROOT / "csrc" / "api" / f"{library}.toml")
        known = prototypes(include / header, marker)
        target = manifest.targets[0]
        names = {symbol.name for symbol in manifest.symbols}
        for symbol in manifest.of(target):
            if {f"{symbol.name}_v2", f"{symbol.name}_v3"} & names:
                continue  # an older form, whose parameters the header does not tell any more
            base = symbol.name if symbol.name in known else re.sub(r"_v\d+$", "", symbol.name)
            if symbol.status == "unsupported" or base not in known or LEFT_OUT.match(symbol.name):
                continue
            kinds = [kind_of(type_, symbol.name) for type_ in known[base]]
            rows.append({"library": target.soname, "name": symbol.name, "arguments": kinds})
    return rows


def known_codes() -> dict[str, set[int]]:
    errors = tomllib.loads((ROOT / "csrc" / "api" / "errors.toml").read_text())
    return {name: {int(code) for code in codes} for name, codes in errors.items()}


def check(answers: dict[str, list[int]], rows: list[dict[str, object]]) -> None:
    codes = known_codes()
    assert set(answers) == {row["name"] for row in rows}
    for row in rows:
        allowed = codes["nvml" if row["library"] == "libnvidia-ml.so.1" else "cuda"]
        name = str(row["name"])
        if name.startswith(("cudaGetErr", "nvmlErr")):
            continue  # answers are texts
        assert set(answers[name]) <= allowed, f"{name} answered {set(answers[name]) - allowed}"


def call_of(rows: list[dict[str, object]], folder: Path, seed: int, rounds: int) -> str:
    (folder / "table.json").write_text(json.dumps(rows))
    return (
        f"import sys, runpy; sys.argv[1:] = ['{folder}/table.json', '{seed}', '{rounds}']\n"
        f"runpy.run_path('{HERE}/fuzz_program.py', run_name='__main__')"
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_odd_arguments_get_error_codes(run_program: Callable[..., Outcome], tmp_path: Path, seed: int) -> None:
    rows = table()
    assert len(rows) > 200
    outcome = run_program(call_of(rows, tmp_path, seed, 6), gpus=2, extra={"HYPERLAPSE_UNSUPPORTED": "error"})
    check(json.loads(outcome.lines[-1]), rows)


def test_odd_arguments_under_the_sanitizers(run_program: Callable[..., Outcome], tmp_path: Path) -> None:
    """A read or write outside of an object, and undefined behaviour, end the program with a report."""
    if len(builders()) < 2:
        pytest.skip("no cmake and ninja to build the sanitized libraries with")
    names = ("libasan.so", "libubsan.so")
    runtimes = [Path(_output("gcc", f"-print-file-name={name}")) for name in names] if shutil.which("gcc") else []
    if not runtimes or not all(path.is_absolute() for path in runtimes):
        pytest.skip("no gcc with its sanitizers' libraries")
    libraries = build(tmp_path / "build", "-DHL_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_COMPILER=gcc")
    rows = table()

    def sanitized(variables: dict[str, str]) -> dict[str, str]:
        ours = [str(path.resolve()) for path in runtimes] + [
            str(libraries / name) for name in environment.GPU_LIBRARIES
        ]
        return {
            **variables,
            "LD_PRELOAD": ":".join(ours),
            "LD_LIBRARY_PATH": str(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONMALLOC": "malloc",
            "HYPERLAPSE_UNSUPPORTED": "error",
        }

    outcome = run_program(call_of(rows, tmp_path, 3, 2), gpus=2, adapt=sanitized)
    assert "runtime error" not in outcome.errors
    check(json.loads(outcome.lines[-1]), rows)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
