"""Our own declarations of cuBLAS, NCCL and NVML say what NVIDIA's headers say, where those are at hand."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = ROOT / "csrc" / "bridge"
#: The packages of the tests' own environment: nvidia-nvml-dev is there (requirements/dev.txt).
OWN = Path(sysconfig.get_path("purelib"))
HEADERS = {
    "cublas/cublas_abi.h": ("cublas_api.h", "CUBLAS_"),
    "nccl/nccl_abi.h": ("nccl.h", "nccl"),
    "nvml/nvml_abi.h": ("nvml.h", "NVML_"),
}


def constants(path: Path, prefix: str) -> set[str]:
    """Constants with an explicit value in one of our headers."""
    return set(re.findall(rf"\b({prefix}\w+) = -?\d+", path.read_text()))


def compiles(code: str, folders: list[Path], tmp_path: Path) -> str:
    source = tmp_path / "check.c"
    source.write_text(code)
    command = ["cc", "-std=gnu11", "-fsyntax-only", *[f"-I{folder}" for folder in folders], str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("ours", HEADERS)
def test_values_and_layouts(engine: EngineEnvironment, tmp_path: Path, ours: str) -> None:
    header, prefix = HEADERS[ours]
    packages = engine.python.parent.parent
    found = [path for place in (packages, OWN) for path in place.rglob(header) if "nvidia" in path.parts]
    if not found:
        pytest.skip(f"no {header} in the engine's environment or in this one (requirements/dev.txt has nvml.h)")
    folders = [found[0].parent, *{path.parent for path in packages.rglob("cuda_runtime_api.h")}]
    text = (BRIDGE / ours).read_text()
    checks = [
        f'_Static_assert({name} == {re.search(rf"{name} = (-?[0-9]+)", text)[1]}, "{name}");'  # type: ignore[index]
        for name in sorted(constants(BRIDGE / ours, prefix))
    ]
    checks += [f'_Static_assert({check}, "layout");' for check in re.findall(r"sizeof\(nvml\w+\) == \d+", text)]
    assert checks
    assert compiles(f"#include <{header}>\n" + "\n".join(checks), folders, tmp_path) == ""


def test_layouts_of_cublaslt(engine: EngineEnvironment, tmp_path: Path) -> None:
    packages = engine.python.parent.parent
    found = [path for path in packages.rglob("cublasLt.h") if "nvidia" in path.parts]
    if not found:
        pytest.skip("no cublasLt.h in the engine's environment")
    code = """
    #include <stdbool.h>
    #include <cublasLt.h>
    _Static_assert(sizeof(cublasLtMatrixLayoutOpaque_t) == 64 && sizeof(cublasLtMatmulDescOpaque_t) == 256, "");
    _Static_assert(sizeof(cublasLtMatmulPreferenceOpaque_t) == 64 && sizeof(cublasLtMatmulAlgo_t) == 64, "");
    _Static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == 96, "");
    _Static_assert(CUBLASLT_MATMUL_DESC_TRANSA == 3 && CUBLASLT_MATMUL_DESC_TRANSB == 4, "");
    _Static_assert(CUBLASLT_MATMUL_DESC_EPILOGUE == 7 && CUBLASLT_EPILOGUE_DEFAULT == 1, "");
    _Static_assert(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET == 15 && CUBLASLT_MATMUL_DESC_FAST_ACCUM == 25, "");
    _Static_assert(CUBLASLT_MATMUL_DESC_EMULATION_DESCRIPTOR < 39 && CUBLASLT_MATRIX_LAYOUT_BATCH_MODE == 8, "");
    _Static_assert(CUBLASLT_ORDER_COL == 0 && CUBLASLT_ORDER_ROW == 1 && CUBLASLT_MATMUL_PREF_IMPL_MASK == 12, "");
    """
    folders = [found[0].parent, *{path.parent for path in packages.rglob("cuda_runtime_api.h")}]
    assert compiles(code, folders, tmp_path) == ""
