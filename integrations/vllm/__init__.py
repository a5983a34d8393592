"""vLLM on virtual GPUs.

Why: the shim answers every CUDA call, but three things only the engine knows: which sequences a step computes, which
ids a sampler that does not run would have written, and what its own memory profiling found last time. This package
tells them, through vLLM's own extension points:

    entry point `vllm.general_plugins`       plugin.py        in every process, start-up defaults
    entry point `vllm.stat_logger_plugins`   statistics.py    in the API server, engine statistics
    `--worker-cls`                           kernel_worker.py, step_worker.py
    entry point `vllm.platform_plugins`      virtual_platform.py, the worker of programs that make their own LLM()
    `--middleware`                           middleware.py    host time of the API server

Of vLLM's own code nothing is replaced. Of two libraries of kernels under it parts are, because these kernels would be
compiled with nvcc or fetched from the network, and never run: FlashInfer's loaders of compiled and downloaded modules
(flashinfer_modules.py, flashinfer_attention.py) and its all-reduce, which is declined (flashinfer_comm.py), and DeepGEMM's
products, whose Python module vLLM may bring along (deep_gemm_kernels.py). Until 0.19 a rank without process groups is
given its place in them as data (`versions.tell_place`).

It must never touch scheduling, KV-cache management, admission, preemption or the output path: they are what is being
measured. Patching vLLM at import time, as the prototypes did, was rejected: it breaks silently with the next version.

Importing this package imports neither vLLM nor torch, so that the launcher can ask for a command line.
"""

from __future__ import annotations

from hyperlapse.integrations.vllm.command import ServeCommand, adapt_command, serve_args
from hyperlapse.integrations.vllm.versions import TESTED_VERSIONS, check_version, installed_version

__all__ = [
    "TESTED_VERSIONS",
    "ServeCommand",
    "adapt_command",
    "check_version",
    "installed_version",
    "register",
    "serve_args",
]


def register() -> None:
    """VLLM calls this in each of its processes (entry point group `vllm.general_plugins`)."""
    from hyperlapse.integrations.vllm.plugin import register as register_plugin

    register_plugin()
