"""Every name of the real libraries is exported, under the version node that their users were linked against."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.shim import stubgen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIBRARIES = {
    "libcudart.so.13": "@libcudart.so.13",
    "libcublas.so.13": "@libcublas.so.13",
    "libcublasLt.so.13": "@libcublasLt.so.13",
    "libcudart.so.12": "@libcudart.so.12",
    "libcublas.so.12": "@libcublas.so.12",
    "libcublasLt.so.12": "@libcublasLt.so.12",
    "libnccl.so.2": "",
    "libcuda.so.1": "",
    "libnvidia-ml.so.1": "@libnvidia-ml.so.1",
    "libcute_dsl_runtime.so": "",
}


def exported(path: Path) -> set[str]:
    """Names with their version node, as `nm` writes them: name@node."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in listing.splitlines())
    return {row[-1].replace("@@", "@") for row in rows if row[-2] in "TWDBRi"}


def fixture(name: str) -> set[str]:
    return {line for line in (HERE / "exports" / name).read_text().splitlines() if not line.startswith("#")}


#: Exported names of the real libraries, from pinned wheels; each file says which.
WHEELS = sorted(path.stem for path in (HERE / "exports").glob("lib*.txt"))


@pytest.mark.parametrize("name", WHEELS)
def test_every_name_of_the_pinned_wheel(libraries: Path, name: str) -> None:
    assert fixture(f"{name}.txt") - exported(libraries / name) == set()


@pytest.mark.parametrize(("name", "node"), LIBRARIES.items())
def test_nothing_but_the_api_under_one_version_node(libraries: Path, name: str, node: str) -> None:
    names = exported(libraries / name)
    assert names
    assert {
        other for other in names if not re.match(r"(__cuda|_?cuda|_?cu|cublas|nvml|p?nccl|CuteDSLRT)[A-Z_]", other)
    } == set()
    assert {other for other in names if (other.partition("@")[2] or None) != (node[1:] or None)} == set()


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_soname_is_the_real_one(libraries: Path, name: str) -> None:
    dynamic = subprocess.run(
        ["readelf", "-dW", str(libraries / name)], capture_output=True, text=True, check=True
    ).stdout
    assert f"Library soname: [{name}]" in dynamic


#: What the shared objects of pinned engines import from NVIDIA's libraries; each file says which (stubgen --imports).
ENGINES = sorted(path.name for path in (HERE / "exports").glob("imports-*.txt"))


@pytest.mark.parametrize("engine_imports", ENGINES)
def test_everything_that_the_pinned_engine_imports(libraries: Path, engine_imports: str) -> None:
    offered = set().union(*(exported(libraries / name) for name in LIBRARIES))
    offered |= {name.partition("@")[0] for name in offered}  # a reference without a version takes any
    assert fixture(engine_imports) - offered == set()


def test_the_name_without_version_stands_beside_the_driver(libraries: Path) -> None:
    assert (libraries / "libcuda.so").exists()


def test_both_forms_of_renamed_functions(libraries: Path) -> None:
    assert {"nvmlInit@libnvidia-ml.so.1", "nvmlInit_v2@libnvidia-ml.so.1"} <= exported(libraries / "libnvidia-ml.so.1")
    assert {"cuMemAlloc", "cuMemAlloc_v2", "cuMemcpy_ptds", "cuStreamSynchronize_ptsz"} <= exported(
        libraries / "libcuda.so.1"
    )


@pytest.mark.engine
def test_the_manifest_knows_every_name_of_the_engine_s_wheels(engine: EngineEnvironment) -> None:
    packages = list((engine.python.parent.parent / "lib").glob("python3.*/site-packages/nvidia"))
    if not packages:
        pytest.skip("the engine's environment has no NVIDIA wheels")
    assert stubgen.scan(ROOT, packages) == {}


@pytest.mark.engine
def test_the_manifest_knows_every_name_that_the_engine_s_packages_import(engine: EngineEnvironment) -> None:
    packages = list((engine.python.parent.parent / "lib").glob("python3.*/site-packages"))
    wanted = stubgen.imports(packages)
    assert wanted, "an engine imports something"
    assert wanted - stubgen.offered(ROOT) == set()
