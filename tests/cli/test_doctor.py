"""`hyperlapse doctor`: on this machine, behind a container's walls, and beside libraries that must be found out."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hyperlapse.cli import doctor_host, doctor_libraries, doctor_probe
from hyperlapse.cli.diagnosis import Finding, Status
from hyperlapse.shim._core import library
from hyperlapse.shim.environment import GPU_LIBRARIES

LIMIT_S = 300
CONTAINER = Path(__file__).with_name("container.py")
NOT_OURS = ("HYPERLAPSE_", "LD_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
NO_ENGINE = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
# What these groups find is of our making; the rest is this machine's: its disk, its limits, an engine beside us.
OURS = ("libraries", "clock")


def doctor(folder: Path, *arguments: str, prefix: Sequence[str] = (), **variables: str) -> tuple[int, str, str]:
    environment = {**NO_ENGINE, "XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
    result = subprocess.run(
        [*prefix, sys.executable, "-m", "hyperlapse.cli.main", "doctor", *arguments],
        capture_output=True,
        text=True,
        env=environment | variables,
        cwd=folder,
        timeout=LIMIT_S,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout, result.stderr


def findings(output: str) -> dict[tuple[str, str], dict[str, Any]]:
    answer = json.loads(output)
    found = {(row["group"], row["name"]): row for row in answer["findings"]}
    assert len(found) == len(answer["findings"]), "each finding has a name of its own"
    assert answer["ok"] == all(row["status"] != "broken" for row in answer["findings"])
    assert all(row["remedy"] for row in answer["findings"] if row["status"] in ("warning", "broken"))
    return found


def broken(found: dict[tuple[str, str], dict[str, Any]], *groups: str) -> list[dict[str, Any]]:
    return [row for row in found.values() if row["status"] == "broken" and row["group"] in (groups or OURS)]


def expected_status(found: dict[tuple[str, str], dict[str, Any]]) -> int:
    return int(any(row["status"] == "broken" for row in found.values()))


def test_what_is_installed_is_sound(tmp_path: Path) -> None:
    status, output, errors = doctor(tmp_path, "--json", "--no-torch")
    found = findings(output)
    assert broken(found) == [], errors
    assert status == expected_status(found)
    assert "all ours" in found["libraries", "this Python"]["found"]
    assert found["libraries", "installed files"]["found"].endswith("for programs of CUDA 12 and 13")
    assert found["clock", "self-test"]["status"] == "ok"


def test_behind_a_containers_walls(tmp_path: Path) -> None:
    """Own PID, mount and network namespaces, hidepid=2, 64 MiB of /dev/shm, no capability, Docker's seccomp list."""
    walls = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*walls, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces (unshare --user)")
    walls = (*walls, sys.executable, str(CONTAINER), "64m")
    status, output, errors = doctor(tmp_path, "--json", "--no-torch", prefix=walls)
    found = findings(output)
    assert broken(found, *OURS, "memory", "system") == [], errors
    assert status == expected_status(found)
    for name in ("hidepid", "seccomp", "user namespaces"):
        assert found["clock", name]["status"] == "note"
    assert found["memory", "/dev/shm"]["status"] == "warning"
    assert "--shm-size" in found["memory", "/dev/shm"]["remedy"]
    assert found["clock", "self-test"]["status"] == "ok"


def test_a_limited_address_space_is_found_by_its_limit_and_by_the_virtual_gpu(tmp_path: Path) -> None:
    status, output, _ = doctor(tmp_path, "--json", prefix=("sh", "-c", 'ulimit -v 8000000; exec "$@"', "sh"))
    found = findings(output)
    assert status == 1
    assert found["limits", "address space"]["remedy"].startswith("ulimit -v unlimited")
    assert "refuses 17179869184 bytes of address space for device memory" in found["libraries", "this Python"]["found"]


def test_an_engine_that_is_not_there_is_broken_when_it_was_named(tmp_path: Path) -> None:
    status, output, _ = doctor(tmp_path, "--json", "--engine", str(tmp_path / "nowhere"))
    assert status == 1
    assert "there is no Python at" in findings(output)["engines", "engine"]["remedy"]


def test_the_table_says_what_to_do(tmp_path: Path) -> None:
    status, output, _ = doctor(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert status == 1, "no device is visible to the programs of a run"
    assert "→ unset CUDA_VISIBLE_DEVICES" in output
    assert re.search(r"[1-9][0-9]* broken", output.splitlines()[-1])


def test_a_library_that_escapes_is_named(tmp_path: Path) -> None:
    """An auditor of ld.so can send any soname elsewhere: here to a copy that is not ours."""
    (tmp_path / "escape.c").write_text(
        "#include <link.h>\n#include <string.h>\n"
        "unsigned la_version(unsigned v) { return v; }\n"
        "char *la_objsearch(const char *n, uintptr_t *c, unsigned f) {\n"
        '  return strstr(n, "libnvidia-ml.so.1") ? COPY : (char *)n; }\n'
    )
    copy = tmp_path / "libnvidia-ml.so.1"
    shutil.copy(library("libnvidia-ml.so.1"), copy)
    subprocess.run(
        ["cc", "-shared", "-fPIC", f'-DCOPY="{copy}"', "-o", tmp_path / "audit.so", tmp_path / "escape.c"], check=True
    )
    status, output, _ = doctor(tmp_path, "--json", LD_AUDIT=str(tmp_path / "audit.so"))
    escaped = findings(output)["libraries", "this Python"]
    assert status == 1
    assert f"libnvidia-ml.so.1, dlopen by soname: {copy}" in escaped["found"]
    assert "libcuda.so.1" not in escaped["found"]
    assert "LD_AUDIT" in escaped["remedy"]


def test_a_linked_file_is_linked(tmp_path: Path) -> None:
    """The file that is written byte by byte finds a library along its path, as a linker's output does."""
    (tmp_path / "answer.c").write_text("int answer(void) { return 42; }")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libanswer.so.1", "-o", "libanswer.so.1", "answer.c"],
        check=True,
        cwd=tmp_path,
    )
    linked = tmp_path / "linked"
    doctor_probe.linked_file(linked, "libanswer.so.1", str(tmp_path))
    assert doctor_probe.linked_program(linked, "libanswer.so.1") == str(tmp_path / "libanswer.so.1")
    assert doctor_probe.answers(str(linked), "answer") == str(tmp_path / "libanswer.so.1")
    assert ctypes.CDLL(str(linked)).answer() == 42
    assert doctor_probe.answers("libanswer.so.2", "answer").startswith("error: libanswer.so.2")


def host(root: Path, **files: str) -> dict[str, Finding]:
    """The findings on a made-up /proc and /dev, where the real ones cannot be had here."""
    proc = root / "proc"
    for name, text in {"self/mounts": f"proc {proc} proc rw 0 0\n", **files}.items():
        path = root / name if name.startswith(("dev", "sys")) else proc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "dev" / "shm").mkdir(parents=True, exist_ok=True)
    return {finding.name: finding for finding in doctor_host.host_findings(proc, root)}


def test_a_real_driver_is_told_and_no_fault(tmp_path: Path) -> None:
    found = host(
        tmp_path,
        **{"driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n", "dev/nvidia0": ""},
    )["NVIDIA driver"]
    assert found.status is Status.NOTE
    assert "580.95.05" in found.found
    assert "/dev/nvidia0" in found.found
    assert "the virtual one wins" in found.found


@pytest.mark.parametrize(
    ("file", "text", "name", "status"),
    [
        ("sys/vm/overcommit_memory", "2\n", "overcommit", Status.BROKEN),
        ("sys/vm/overcommit_memory", "1\n", "overcommit", Status.OK),
        ("sys/kernel/yama/ptrace_scope", "1\n", "ptrace scope", Status.NOTE),
        ("self/status", "Name:\tx\nSeccomp:\t2\n", "seccomp", Status.NOTE),
    ],
)
def test_the_kernels_files_are_judged(tmp_path: Path, file: str, text: str, name: str, status: Status) -> None:
    root = tmp_path / ("proc" if file.startswith("sys/") else "")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)
    assert host(tmp_path, **({} if file.startswith("sys/") else {file: text}))[name].status is status


def test_control_group_limits_are_seen(tmp_path: Path) -> None:
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for name, text in (("cpu.max", "100000 100000"), ("memory.max", str(2 << 30)), ("pids.max", "100")):
        (group / name).write_text(text)
    found = host(tmp_path, **{"self/cgroup": "0::/\n"})
    assert (found["CPUs"].status, found["CPUs"].found) == (Status.WARNING, "1 usable")
    assert (found["memory"].status, found["memory"].found) == (Status.WARNING, "2.0 GiB")
    assert found["threads of the group"].status is Status.WARNING


def test_every_soname_has_a_symbol_to_ask_for() -> None:
    asked = doctor_libraries.installed_sonames()
    assert set(GPU_LIBRARIES) - set(asked) == {"libhyperlapse_preload.so"}
    assert {name.partition(".so")[0] + ".so" for name in asked} == set(doctor_libraries.SYMBOLS)


def test_a_fault_without_a_remedy_cannot_be_told() -> None:
    with pytest.raises(ValueError, match="without a remedy"):
        Finding("system", "x", Status.BROKEN, "gone")
