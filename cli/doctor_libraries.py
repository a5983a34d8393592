"""Does every NVIDIA library resolve to ours? Asked in real runs, by the launcher's Python and by each engine's.

The clock's self-test is here too: what a run must be able to do is tried in a run, not read from a list of versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hyperlapse.cli.diagnosis import Finding, Status
from hyperlapse.shim._core import library
from hyperlapse.shim.environment import CLOCK_LIBRARIES, GPU_LIBRARIES
from hyperlapse.shim.launcher import Mode, Run, RunError

GPU = "h100-sxm-80gb"
PROBE = Path(__file__).with_name("doctor_probe.py")
PROBE_LIMIT_S = 300
SLEEP_S = 3600
CLOCK_LIMIT_S = 60
SYMBOLS = {
    "libcudart.so": "cudaMalloc",
    "libcuda.so": "cuInit",
    "libcublas.so": "cublasCreate_v2",
    "libcublasLt.so": "cublasLtCreate",
    "libnccl.so": "ncclGetVersion",
    "libnvidia-ml.so": "nvmlInit_v2",
}
REINSTALL = "install hyperlapse again: pip install --force-reinstall --no-deps hyperlapse"


def installed_sonames() -> list[str]:
    """NVIDIA's sonames that this hyperlapse puts into a run."""
    return [soname for soname in GPU_LIBRARIES if soname.partition(".so")[0] + ".so" in SYMBOLS]


def library_findings() -> Iterator[Finding]:
    """Are all of our own files there, and for which CUDA?"""
    missing = [name for name in (*CLOCK_LIBRARIES, *GPU_LIBRARIES, "hyperlapse-keeper") if not library(name).exists()]
    folder = library(CLOCK_LIBRARIES[0]).parent
    runtimes = sorted(name.rpartition(".")[2] for name in GPU_LIBRARIES if name.startswith("libcudart.so."))
    yield Finding(
        "libraries", "installed files", Status.BROKEN if missing else Status.OK,
        f"missing in {folder}: {', '.join(missing)}" if missing
        else f"all in {folder}, for programs of CUDA {' and '.join(runtimes)}",
        REINSTALL if missing else "",
    )  # fmt: skip


def probe_findings(name: str, python: Path, folders: Sequence[Path], *, torch: bool) -> Iterator[Finding]:
    """Opens everything by every road in a run of `python`. folders: where real NVIDIA libraries may lie."""
    asked: dict[str, Any] = {
        "symbols": {soname: SYMBOLS[soname.partition(".so")[0] + ".so"] for soname in installed_sonames()},
        "folders": [str(folder) for folder in folders],
        "devices": True,
        "torch": torch,
        "children": True,
    }
    try:
        answer = _in_a_run([str(python), "-I", str(PROBE), json.dumps(asked)])
    except (RunError, RuntimeError, OSError) as error:
        yield Finding("libraries", name, Status.BROKEN, str(error), "see the message; then run the doctor again")
        return
    own = library(CLOCK_LIBRARIES[0]).parent.resolve()
    escaped, count = [], 0
    for where in (None, "a child process", "a child with an emptied environment"):
        part = answer if where is None else answer.get(where, {})
        if "error" in part:
            escaped.append(f"{where}: {part['error']}")
        for soname, roads in part.get("roads", {}).items():
            for road, file in roads.items():
                count += 1
                if Path(file).resolve().parent != own:
                    escaped.append(f"{soname}, {road}{f', in {where}' if where else ''}: {file}")
        for file in part.get("mapped", []):
            if Path(file).name.startswith(tuple(SYMBOLS)) and Path(file).resolve().parent != own:
                escaped.append(f"{file} is loaded{f' in {where}' if where else ''}")
    yield Finding(
        "libraries", name, Status.BROKEN if escaped else Status.OK,
        "; ".join(dict.fromkeys(escaped)) if escaped
        else f"{len(asked['symbols'])} libraries by {count} roads, child processes too: all ours",
        "a real library is loaded in a run, whose numbers would be wrong. Was it preloaded or linked statically? Take it "
        "out of LD_PRELOAD and LD_AUDIT; a setuid program or a container started inside the run cannot be one of its "
        "programs" if escaped else "",
    )  # fmt: skip
    yield _devices_finding(f"{name}: virtual GPU", answer.get("devices", {}))
    if torch:
        yield _devices_finding(f"{name}: torch", answer.get("torch", {}))


def _devices_finding(name: str, answer: dict[str, Any]) -> Finding:
    good = answer.get("count") == 1 and "H100" in str(answer.get("name")) and not any(answer.get("statuses", []))
    version = f", torch {answer['version']} for CUDA {answer['cuda']}" if "version" in answer else ""
    return Finding(
        "libraries", name, Status.OK if good else Status.BROKEN,
        f"{answer['name']}{version}" if good else json.dumps(answer),
        "" if good else "the virtual GPU does not answer: look at the lines above; is the address space limited (ulimit -v)?",
    )  # fmt: skip


def _in_a_run(command: Sequence[str]) -> dict[str, Any]:
    with Run(GPU) as run, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = run.spawn(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        try:
            status = process.wait(PROBE_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"no answer within {PROBE_LIMIT_S} s") from None
        output.seek(0)
        errors.seek(0)
        text = output.read().decode("utf-8", "replace")
        if status != 0:
            said = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise RunError(f"exit status {status}: {' / '.join(said[-3:])}")
    answer: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return answer


def clock_finding() -> Finding:
    """A program that sleeps an hour, on the frozen clock: the hour passes for it, and at once."""
    code = f"import time; began = time.monotonic_ns(); time.sleep({SLEEP_S}); print(time.monotonic_ns() - began)"
    began = time.monotonic()
    remedy = (
        "the clock cannot prove that everybody waits: look at 'run states' above; in gVisor and other sandboxes that make "
        "up /proc it does not work"
    )
    try:
        with Run() as run, tempfile.TemporaryFile() as output:
            run.set_mode(Mode.FROZEN)
            process = run.spawn([sys.executable, "-I", "-c", code], stdin=subprocess.DEVNULL, stdout=output)
            status = process.wait(CLOCK_LIMIT_S)
            jumps = run.statistics().jumps
            output.seek(0)
            text = output.read().decode().strip()
    except subprocess.TimeoutExpired:
        found = f"an hour of sleep did not pass within {CLOCK_LIMIT_S} real s"
        return Finding("clock", "self-test", Status.BROKEN, found, remedy)
    except (RunError, RuntimeError, OSError) as error:
        return Finding("clock", "self-test", Status.BROKEN, str(error), remedy)
    slept_ns = int(text) if status == 0 and text.isdecimal() else 0
    if not SLEEP_S * 10**9 <= slept_ns < (SLEEP_S + 1) * 10**9 or not jumps:
        found = f"an hour of sleep took {slept_ns / 1e9} virtual s (exit status {status}, {jumps} jumps)"
        return Finding("clock", "self-test", Status.BROKEN, found, remedy)
    took_s = time.monotonic() - began
    return Finding(
        "clock", "self-test", Status.OK, f"an hour of sleep passed in {took_s:.1f} real s, start and end included"
    )
