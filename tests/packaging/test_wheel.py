"""What users install: the wheel that the source archive builds, in an empty environment, away from this tree.

Building needs what pyproject.toml's build-system asks for, and the empty environment what hyperlapse needs, from the package
index or uv's cache; without either these tests are skipped.
"""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from hyperlapse.cli import own_wheel
from hyperlapse.cli.uv import find_uv
from hyperlapse.integrations.environments import SHIM_REQUIREMENTS, parse_release

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 560
GLIBC_MOST = (2, 34)
NO_INDEX = re.compile(
    "network was disabled|connectivity is disabled|error sending request|dns error|Failed to fetch|Could not connect"
)
LIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2"}


def run(*command: str, folder: Path, **variables: str) -> str:
    names = ("HYPERLAPSE_", "VIRTUAL_ENV", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    result = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if result.returncode and command[0] == find_uv() and (missing := NO_INDEX.search(result.stderr)):
        pytest.skip(f"no package index, and uv's cache lacks what is needed ({missing[0]})")
    assert result.returncode == 0, f"{command}: {result.stdout[-3000:]}{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive and the wheel that was built from it and not from the tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(find_uv(), "build", "--quiet", "--python", sys.executable, "--out-dir", str(folder), str(ROOT), folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_the_source_archive_holds_sources_only(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = [name.partition("/")[2] for name in files.getnames()]
    assert "csrc/clock/libc.c" in names
    assert "integrations/vllm/environments.yaml" in names
    assert not [name for name in names if re.search(r"\.(so(\.\d+)*|pyc|whl)$", name) or "__pycache__" in name]


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    """C libraries without Python's ABI. On a package index its platform is manylinux_2_34_x86_64 (docs/containers.md)."""
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name and not name.endswith("/.gitkeep")}
        (metadata,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        fields = email.message_from_bytes(files.read(metadata))
    assert names == set(own_wheel.packed_names()), "what engine environments get is what users install"
    release = parse_release("vllm")
    assert release is not None
    extra = {text.partition(";")[0].strip() for text in fields.get_all("Requires-Dist") if "extra == " in text}
    assert extra == set(release.requirements) - set(SHIM_REQUIREMENTS), "the extra is the newest tested release"


def test_the_libraries_need_no_more_than_the_stated_glibc(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path)
    ours = {path.name for path in (tmp_path / "hyperlapse" / "shim" / "lib").iterdir()}
    looked_at = 0
    for path in (tmp_path / "hyperlapse" / "shim" / "lib").iterdir():
        if path.read_bytes()[:4] != b"\x7fELF":
            continue
        looked_at += 1
        text = run("readelf", "--wide", "--dynamic", "--version-info", str(path), folder=tmp_path)
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"Name: GLIBC_([0-9.]+)", text)}
        assert max(versions, default=(0,))[:2] <= GLIBC_MOST, path.name
        needed = set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", text))
        assert needed <= ours | LIBC, path.name
    assert looked_at > 10


def test_it_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run(find_uv(), "venv", "--quiet", "--python", sys.executable, str(environment), folder=tmp_path)
    python, command = str(environment / "bin" / "python"), str(environment / "bin" / "hyperlapse")
    run(find_uv(), "pip", "install", "--quiet", "--python", python, str(wheel), folder=tmp_path)
    version = wheel.name.split("-")[1]
    assert run(command, "--version", folder=tmp_path).strip() == f"hyperlapse, version {version}"
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state")}
    examined = json.loads(run(command, "doctor", "--json", folder=tmp_path, **variables))
    assert examined["ok"], [row for row in examined["findings"] if row["status"] == "broken"]
    assert str(environment) in next(row["found"] for row in examined["findings"] if row["name"] == "installed files")
    code = (
        "import ctypes, time; began = time.monotonic(); time.sleep(1000); count = ctypes.c_int();"
        "status = ctypes.CDLL('libcudart.so.13').cudaGetDeviceCount(ctypes.byref(count));"
        "print(status, count.value, round(time.monotonic() - began))"
    )
    assert run(command, "run", "--gpus", "2", "--", python, "-c", code, folder=tmp_path).split() == ["0", "2", "1000"]
    assert "hyperlapse" in run(command, "engines", folder=tmp_path, **variables)
