"""The environment that makes a program a participant: what is preloaded, and in which order.

Owning the sonames was chosen over owning ``dlsym`` (wrapping it deadlocked MKL in other projects). All of ours are preloaded,
because a loaded library answers a later ``dlopen`` of its soname whatever RPATH the caller has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hyperlapse.shim._core import library

RUN_DIRECTORY_VARIABLE = "HYPERLAPSE_RUN_DIR"
EXEMPT_VARIABLE = "HYPERLAPSE_EXEMPT"
UNSUPPORTED_VARIABLE = "HYPERLAPSE_UNSUPPORTED"
UNSUPPORTED_POLICIES = ("abort", "warn", "error")
"""What a program gets that makes a call without a virtual answer (csrc/bridge/unsupported.c), the default first."""

COMPILE_CACHE_VARIABLE = "HYPERLAPSE_COMPILE_CACHE"
COMPILE_CACHES = ("warm", "cold")
"""In which state an engine finds the compilers' caches when it measures its memory, the default first. An engine
integration makes it so.
"""

# The clock first: the CUDA libraries' own waits must find it. Each soname is named here, although the first library needs them
# all: what a program itself is linked with is looked for along its RPATH before the needs of a preloaded library are.
CLOCK_LIBRARIES = ("libhyperlapse_clock.so",)
GPU_LIBRARIES = (
    "libhyperlapse_preload.so",
    "libcudart.so.13",
    "libcuda.so.1",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcudart.so.12",
    "libcublasLt.so.12",
    "libcublas.so.12",
    "libnccl.so.2",
    "libnvidia-ml.so.1",
)

# Each thread of a participant costs about 3 µs at every jump, and kernels that never run need no CPU threads.
THREAD_CAPS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
}


def participant_environment(
    run_directory: Path, base: Mapping[str, str], *, virtual_gpus: bool = True
) -> dict[str, str]:
    """``base`` with all that makes a child a participant of the run in ``run_directory``.

    virtual_gpus: False leaves the NVIDIA libraries alone; the program only gets the virtual clock.

    Raises RuntimeError when a library was not built, or lies under a path that LD_PRELOAD cannot carry.
    """
    paths = [library(name) for name in CLOCK_LIBRARIES + (GPU_LIBRARIES if virtual_gpus else ())]
    for path in paths:
        if not path.exists():
            raise RuntimeError(f"{path} is missing: install the package with pip, which builds it")
        if any(c in str(path) for c in ": "):
            raise RuntimeError(
                f"LD_PRELOAD cannot carry the path {path}: install into a directory without blanks and colons"
            )
    environment = dict(base)
    directory = str(paths[0].parent)
    earlier = environment.get("LD_PRELOAD", "")
    environment["LD_PRELOAD"] = ":".join([*map(str, paths), *([earlier] if earlier else [])])
    search = environment.get("LD_LIBRARY_PATH", "")
    environment["LD_LIBRARY_PATH"] = f"{directory}:{search}" if search else directory
    environment[RUN_DIRECTORY_VARIABLE] = str(run_directory)
    if virtual_gpus:
        environment["TRITON_LIBCUDA_PATH"] = directory
    environment["UV_USE_IO_URING"] = "0"  # io_uring waits do not pass through libc
    for name, value in THREAD_CAPS.items():
        environment.setdefault(name, value)
    environment.pop(EXEMPT_VARIABLE, None)
    return environment


def service_environment(run_directory: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Environment of the launcher's own services: they read the run's memory and take no part in its time."""
    environment = {name: value for name, value in base.items() if name != "LD_PRELOAD"}
    environment[RUN_DIRECTORY_VARIABLE] = str(run_directory)
    environment[EXEMPT_VARIABLE] = "1"
    return environment
