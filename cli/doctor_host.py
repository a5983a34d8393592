"""What `hyperlapse doctor` looks at on the host: the system, its limits, a container's walls, a real NVIDIA driver.

Each check reads and judges; none changes anything. Facts come from the kernel's own files, so that a container is seen as
the processes in it see it. A limit is judged only where a run is known to need more; else it is told as a note.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hyperlapse.cli.diagnosis import Finding, Status

GIB = 1 << 30
MIB = 1 << 20
GLIBC_LEAST = (2, 34)
SHARED_MEMORY_LEAST = 8 * MIB
SHARED_MEMORY_WANTED = 256 * MIB  # shim.launcher says the same when it runs out
MEMORY_LEAST = 8 * GIB
DISK_LEAST = 1 * GIB
PROCESSES_LEAST = 512
FILES_LEAST = 1024
_SETTLE_LIMIT_S = 30.0


def host_findings(proc: Path = Path("/proc"), root: Path = Path("/")) -> Iterator[Finding]:
    """Everything about this machine. `proc` and `root`: where to read, for tests."""
    yield _system()
    yield _glibc()
    yield _python()
    yield _compiler()
    yield _surroundings(os.environ)
    yield _loopback()
    yield from _process_states(proc)
    yield _hidepid(proc)
    yield _ptrace(proc)
    yield _seccomp(proc)
    yield _namespaces(proc)
    yield from _shared_memory(root / "dev" / "shm")
    yield from _left_over(root / "dev" / "shm")
    yield from _limits()
    yield _overcommit(proc)
    yield from _control_groups(proc, root / "sys" / "fs" / "cgroup")
    yield from _disks()
    yield from _real_driver(proc, root / "dev")


def _system() -> Finding:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
    right = platform.system() == "Linux" and platform.machine() == "x86_64"
    return Finding(
        "system", "kernel", Status.OK if right else Status.BROKEN, found, "" if right else "use x86-64 Linux with glibc"
    )


def _glibc() -> Finding:
    with contextlib.suppress(ValueError, OSError):
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
        version = tuple(int(part) for part in text.removeprefix("glibc ").split(".")[:2])
        new = version >= GLIBC_LEAST
        least = ".".join(map(str, GLIBC_LEAST))
        remedy = "" if new else f"use a distribution with glibc {least} or newer (Debian 12, Ubuntu 22.04, RHEL 9)"
        return Finding("system", "glibc", Status.OK if new else Status.BROKEN, text, remedy)
    return Finding("system", "glibc", Status.BROKEN, "another C library", "use a distribution with glibc, not musl")


def _python() -> Finding:
    return Finding("system", "Python", Status.OK, f"{platform.python_version()} at {sys.executable}")


def _compiler() -> Finding:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [name for name, there in (("a C compiler", compiler), ("Python.h", header.is_file())) if not there]
    if not missing:
        return Finding("system", "compiler", Status.OK, f"{compiler}, {header}")
    return Finding(
        "system",
        "compiler",
        Status.WARNING,
        f"no {' and no '.join(missing)}",
        "Triton compiles its launcher when an engine starts: apt-get install gcc python3-dev (or your Python's headers)",
    )


def _surroundings(environ: os._Environ[str]) -> Finding:
    if environ.get("HYPERLAPSE_RUN_DIR"):
        return Finding(
            "system", "environment", Status.BROKEN, "this is a program of a run", "start the doctor outside of any run"
        )
    names = ("LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    given = [f"{name}={environ[name]}" for name in names if name in environ]
    if environ.get("CUDA_VISIBLE_DEVICES") == "":
        remedy = "unset CUDA_VISIBLE_DEVICES: empty, it hides the virtual GPUs too"
        return Finding("system", "environment", Status.WARNING, ", ".join(given), remedy)
    return Finding(
        "system", "environment", Status.NOTE if given else Status.OK, ", ".join(given) or "nothing in the way"
    )


def _loopback() -> Finding:
    """Server and client of a benchmark meet at 127.0.0.1; a network namespace of one's own has it switched off at first."""
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return Finding("system", "loopback", Status.BROKEN, f"127.0.0.1: {error}", "ip link set lo up")
    return Finding("system", "loopback", Status.OK, "127.0.0.1 answers")


def _process_states(proc: Path) -> Iterator[Finding]:
    """The time-keeper proves that everybody waits from these files of other processes of the same user."""
    with subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL) as child:
        try:
            folder, limit = proc / str(child.pid) / "task" / str(child.pid), time.monotonic() + _SETTLE_LIMIT_S
            while (state := _state(folder)) not in ("S", None) and time.monotonic() < limit:
                time.sleep(0.01)
            if state != "S":
                remedy = (
                    "mount the kernel's own /proc, for this user: without it no jump of the clock can be proved (gVisor "
                    "and other sandboxes make up a /proc of their own)"
                )
                yield Finding("clock", "run states", Status.BROKEN, f"{folder / 'stat'}: not readable", remedy)
            else:
                waits = _read(folder / "wchan") not in ("", "0")
                found = "wchan tells who waits" if waits else "without wchan, so that waiting is proved more slowly"
                yield Finding("clock", "run states", Status.OK if waits else Status.NOTE, f"/proc is readable; {found}")
            call = _read(folder / "syscall")
            yield Finding(
                "clock",
                "system calls",
                Status.OK if call else Status.WARNING,
                f"/proc/PID/syscall: {'readable' if call else 'not readable'}",
                ""
                if call
                else "a run that only waits for requests from outside may be taken for a deadlock: run with "
                "--no-progress 0, or allow ptrace between processes of one user (kernel.yama.ptrace_scope=0)",
            )
        finally:
            child.kill()


def _state(task: Path) -> str | None:
    text = _read(task / "stat")
    return text.rpartition(")")[2].split()[0] if text else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _hidepid(proc: Path) -> Finding:
    mounts = [line.split() for line in _read(proc / "self" / "mounts").splitlines()]
    options = [words[3] for words in mounts if len(words) > 3 and words[1] == "/proc" and words[2] == "proc"]
    if not options:
        return Finding("clock", "hidepid", Status.BROKEN, f"{proc} is not mounted", f"mount -t proc proc {proc}")
    hiding = re.search(r"hidepid=(?!0|off)\w+", options[-1])  # of mounts one over the other, the last is seen
    if hiding is None:
        return Finding("clock", "hidepid", Status.OK, "off")
    found = f"{hiding[0]}: other users' processes are hidden, those of a run are its own user's"
    return Finding("clock", "hidepid", Status.NOTE, found)


def _ptrace(proc: Path) -> Finding:
    scope = _read(proc / "sys" / "kernel" / "yama" / "ptrace_scope")
    return Finding("clock", "ptrace scope", Status.NOTE if scope not in ("", "0") else Status.OK, scope or "no Yama")


def _seccomp(proc: Path) -> Finding:
    modes = {"0": "none", "1": "strict", "2": "a filter (usual in containers)"}
    found = re.search(r"^Seccomp:\s*(\d)", _read(proc / "self" / "status"), re.MULTILINE)
    mode = found[1] if found else "0"
    return Finding("clock", "seccomp", Status.NOTE if mode != "0" else Status.OK, modes.get(mode, mode))


def _namespaces(proc: Path) -> Finding:
    inside = _read(proc / "self" / "uid_map").split() != ["0", "0", "4294967295"]
    where = "in a user namespace" if inside else "in the host's user namespace"
    return Finding("clock", "user namespaces", Status.NOTE if inside else Status.OK, f"{where}; none are needed")


def _shared_memory(folder: Path) -> Iterator[Finding]:
    remedy = "mount a tmpfs at /dev/shm (docker run --shm-size=2g; Kubernetes: an emptyDir with medium Memory)"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield Finding("memory", "/dev/shm", Status.BROKEN, "missing or read-only", remedy)
        return
    disk = shutil.disk_usage(folder)
    found = f"{disk.free / MIB:,.1f} of {disk.total / MIB:,.1f} MiB free"
    status = Status.OK if disk.free >= SHARED_MEMORY_WANTED else Status.WARNING
    status = status if disk.free >= SHARED_MEMORY_LEAST else Status.BROKEN
    yield Finding("memory", "/dev/shm", status, found, "" if status is Status.OK else remedy)


def _left_over(folder: Path) -> Iterator[Finding]:
    left = [path for path in folder.glob("hyperlapse-*") if not _is_used(path)] if folder.is_dir() else []
    if left:
        yield Finding(
            "memory", "left-over runs", Status.WARNING, f"{len(left)} folders of ended runs in {folder}",
            "rm -r " + " ".join(map(str, left[:5])),
        )  # fmt: skip


def _is_used(run: Path) -> bool:
    """A process of this user has a file of the run mapped, or names it on its command line (the time-keeper)."""
    for process in Path("/proc").glob("[0-9]*"):
        if str(run) in _read(process / "cmdline") or f" {run}/" in _read(process / "maps"):
            return True
    return False


def _limits() -> Iterator[Finding]:
    def text(value: int) -> str:
        return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= FILES_LEAST
    yield Finding(
        "limits", "open files", Status.OK if enough else Status.WARNING, f"{text(soft)} (at most {text(hard)})",
        "" if enough else f"ulimit -n {FILES_LEAST} or more: each request in flight is a connection",
    )  # fmt: skip
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    enough = soft == resource.RLIM_INFINITY or soft >= PROCESSES_LEAST
    yield Finding(
        "limits", "processes", Status.OK if enough else Status.WARNING, text(soft),
        "" if enough else f"ulimit -u {PROCESSES_LEAST} or more: an engine has some hundred threads",
    )  # fmt: skip
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = soft == resource.RLIM_INFINITY
    yield Finding(
        "limits", "address space", Status.OK if free else Status.BROKEN, text(soft),
        "" if free else "ulimit -v unlimited: device memory is reserved as address space, 80 GB and more",
    )  # fmt: skip


def _overcommit(proc: Path) -> Finding:
    strict = _read(proc / "sys" / "vm" / "overcommit_memory") == "2"
    return Finding(
        "limits", "overcommit", Status.BROKEN if strict else Status.OK,
        "strict (vm.overcommit_memory=2)" if strict else "allowed",
        "sysctl vm.overcommit_memory=1: device memory is reserved but not used, and strict accounting refuses that"
        if strict else "",
    )  # fmt: skip


def _control_groups(proc: Path, groups: Path) -> Iterator[Finding]:
    """Limits of the control group, version 2 and version 1; in a container its own group is at the root."""
    own = next(
        (line.split(":")[2] for line in _read(proc / "self" / "cgroup").splitlines() if line.startswith("0::")), "/"
    )
    folders = [groups / own.strip("/"), groups]

    def first(*names: str) -> str:
        return next((text for folder in folders for name in names if (text := _read(folder / name))), "")

    cpus = float(len(os.sched_getaffinity(0)))
    quota = first("cpu.max", "cpu/cpu.cfs_quota_us")
    amount = quota.split()[0] if quota else "max"
    if amount not in ("max", "-1"):
        period = quota.split()[1] if " " in quota else first("cpu/cpu.cfs_period_us") or "100000"
        cpus = min(cpus, int(amount) / int(period))
    status = Status.OK if cpus >= 2 else Status.WARNING
    remedy = (
        "" if status is Status.OK else "give it 2 CPUs: results are the same with fewer, but take several times longer"
    )
    yield Finding("limits", "CPUs", status, f"{cpus:g} usable", remedy)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [int(text) for text in [first("memory.max", "memory/memory.limit_in_bytes")] if text.isdecimal()]
    enough = min(limits) >= MEMORY_LEAST
    yield Finding(
        "limits", "memory", Status.OK if enough else Status.WARNING, f"{min(limits) / GIB:.1f} GiB",
        "" if enough else f"give it {MEMORY_LEAST // GIB} GiB: an engine's own processes need about 6",
    )  # fmt: skip
    pids = first("pids.max", "pids/pids.max")
    few = pids.isdecimal() and int(pids) < PROCESSES_LEAST
    yield Finding(
        "limits", "threads of the group", Status.WARNING if few else Status.OK, pids or "no limit",
        f"docker run --pids-limit={PROCESSES_LEAST} or more" if few else "",
    )  # fmt: skip


def _disks() -> Iterator[Finding]:
    home = Path(os.environ.get("HOME") or "/")
    for name, variable, default in (
        ("cache", "XDG_CACHE_HOME", home / ".cache"),
        ("results", "XDG_STATE_HOME", home / ".local" / "state"),
        ("temporary files", "TMPDIR", Path(tempfile.gettempdir())),
    ):
        folder = Path(os.environ.get(variable) or default)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        good = writable and free >= DISK_LEAST
        found = f"{folder}: {free / GIB:.1f} GiB free" if writable else f"{folder}: not writable"
        remedy = "" if good else f"free {DISK_LEAST // GIB} GiB there, or choose another folder with {variable}"
        yield Finding("disk", name, Status.OK if good else Status.BROKEN, found, remedy)


def _real_driver(proc: Path, devices: Path) -> Iterator[Finding]:
    """A real driver is no harm: the virtual one is found first, which the libraries' own checks prove."""
    version = _read(proc / "driver" / "nvidia" / "version").splitlines()
    nodes = sorted(path.name for path in devices.glob("nvidia*"))
    library = ctypes.util.find_library("cuda")
    signs = [*version[:1], *([f"/dev/{', /dev/'.join(nodes[:4])}"] if nodes else []), *([library] if library else [])]
    if not signs:
        yield Finding("driver", "NVIDIA driver", Status.OK, "none on this host, and none is needed")
        return
    yield Finding(
        "driver", "NVIDIA driver", Status.NOTE,
        f"this host has one ({'; '.join(signs)}); in a run the virtual one wins, as the checks of the libraries show",
    )  # fmt: skip
