"""Makes a profile: the real worker under the real engine core, as far as memory is measured, in a process of its own.

Why: what the engine asks its worker at start-up, and in which order, differs between versions; so the engine core itself
asks, and the worker writes down what it answered. Warming up and capturing graphs are left out: they come after.

With a cold compile cache compilation happens inside the measured region and takes memory (0.54 GiB for Qwen3-14B on an
H100: inductor times candidates of fused kernels on tensors of the largest batch). What is wanted is said in the
environment (compile_cache.py): for `warm` a cold result is thrown away and made again, for `cold` all caches of the
compilers are empty folders of this process's own, and the real compiler fills them. Each result is made in a fork of
this process, which has imported everything and never touched the device: the second one then costs no imports, and sees
what a freshly started server sees. Measuring twice in one process was rejected: what the first one leaves allocated
(cuBLAS workspaces) is then counted elsewhere.

This must never keep a number of the other state of the cache, and never answer for the engine what it did not ask.

    python -m hyperlapse.integrations.vllm.profiling --config FILE --result FILE    (run by the workers)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from vllm.v1.worker.gpu_worker import Worker

from hyperlapse.integrations.vllm.compile_cache import COLD, compile_cache
from hyperlapse.integrations.vllm.kernel_worker import KernelWorker
from hyperlapse.integrations.vllm.profile import encode_spec, say
from hyperlapse.integrations.vllm.versions import (
    compilation_times,
    compiled_something,
    configured_runner,
    prefills_are_uniform,
)


class ProfilingWorker(KernelWorker):
    """The stock worker, which keeps what it answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layouts: list[str] = []
        self._available_bytes: int | None = None
        self._cold = False

    def init_device(self) -> None:
        Worker.init_device(self)  # KernelWorker's would ask for the profile that is being made

    def load_model(self, **options: Any) -> None:
        say("profiling: loading the model")
        super().load_model(**options)

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Asked for by versions that choose a layout at start-up."""
        self._layouts = super().get_supported_kv_cache_layouts()
        return self._layouts

    def determine_available_memory(self) -> int:
        say("profiling: compiling, unless the cache is warm, and measuring the memory")
        self._available_bytes = int(Worker.determine_available_memory(self))
        self._cold = compiled_something()
        return self._available_bytes

    def has_measured(self) -> bool:
        return self._available_bytes is not None

    def compile_or_warm_up_model(self) -> Any:
        return compilation_times()

    def _attention_backends(self) -> list[str]:
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        return sorted({each.get_attn_backend().get_name() for each in layers if hasattr(each, "get_attn_backend")})

    def findings(self) -> dict[str, Any]:
        """What the engine was told, and what no one asks for."""
        graphs = self._runner.graph_table(self.model_runner)
        return {
            "cold": self._cold,
            "available_bytes": self._available_bytes,
            "weights_bytes": int(self.model_runner.model_memory_usage),
            "activation_bytes": int(getattr(self, "peak_activation_memory", 0)),
            "block_size": self.cache_config.block_size,
            "layouts": list(self._layouts),
            "specs": {layer: encode_spec(spec) for layer, spec in self.get_kv_cache_spec().items()},
            "tasks": list(self.get_supported_tasks()),
            "attention": self._attention_backends(),
            "graphs": graphs.to_json(),
            "uniform_prefills": prefills_are_uniform(configured_runner(self.vllm_config)),
        }


def make(config_file: Path) -> dict[str, Any]:
    """Boots the engine core on the profiling worker. In a process that has not touched the device before."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    vllm_config = pickle.loads(config_file.read_bytes())
    executor = Executor.get_class(vllm_config)(vllm_config)
    refused = ""
    try:
        EngineCore(vllm_config, lambda _config: executor, log_stats=False)
    except ValueError as error:
        if not all(executor.collective_rpc("has_measured")):
            raise
        # what was measured is too little; the engine that asked will say so in its own words
        refused = str(error)
        say(f"profiling: the engine refuses what was found: {refused}")
    every = executor.collective_rpc("findings")
    found = every[0]
    if vllm_config.parallel_config.world_size > 1:
        # workers in processes of their own hold the devices' memory until they have ended: whoever comes next needs it
        executor.shutdown()
    cold = any(each.pop("cold") for each in every)
    found["available_bytes"] = min(each["available_bytes"] for each in every)
    return {"cold": cold, "profile": {**found, "refused": refused}}


def make_in_fork(config_file: Path, result_file: Path) -> dict[str, Any]:
    """What `make` returns, or its error, from a child of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if torch.cuda._is_in_bad_fork():
                # the imports of 0.12 use the device, and a fork of a process that has cannot: start afresh
                arguments = ["--config", str(config_file), "--result", str(result_file), "--once"]
                os.execv(sys.executable, [sys.executable, "-m", __spec__.name, *arguments])
            result_file.write_text(json.dumps(_made_or_error(config_file)), encoding="utf-8")
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # nothing of the parent's may be run at exit
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        return {
            "error_type": "ChildProcessError",
            "error": f"its process ended with {os.waitstatus_to_exitcode(status)}",
        }
    result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    return result


def _made_or_error(config_file: Path) -> dict[str, Any]:
    try:
        return make(config_file)
    except Exception as error:
        traceback.print_exc()
        return {"error_type": type(error).__name__, "error": str(error)}


def _import_ahead() -> None:
    """What every start of a model imports late, so that both forks have it. None of it touches the device."""
    for name in ("vllm.v1.engine.core", "torch._dynamo", "torch._inductor.compile_fx"):
        importlib.import_module(name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hyperlapse.integrations.vllm.profiling", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a pickled VllmConfig")
    parser.add_argument("--result", type=Path, required=True, help="where to write what was found, as JSON")
    parser.add_argument("--once", action="store_true", help="in this process, with the compile cache as it is")
    options = parser.parse_args(arguments)
    if options.once:
        options.result.write_text(json.dumps(_made_or_error(options.config)), encoding="utf-8")
        return 0
    _import_ahead()
    result = make_in_fork(options.config, options.result)
    if compile_cache() == COLD:
        if "error" not in result and not result["cold"]:
            say("profiling: nothing was compiled, so a cold compile cache makes no difference")
    elif result.get("cold"):
        say("profiling: again, with the compile cache that is warm now")
        result = make_in_fork(options.config, options.result)
        if result.get("cold"):
            result = {
                "error_type": "RuntimeError",
                "error": "the compile cache stays cold, so the memory that the model needs cannot be measured as a "
                "warmed-up server has it: is vLLM's cache directory (VLLM_CACHE_ROOT) writable, "
                "VLLM_DISABLE_COMPILE_CACHE unset?",
            }
    options.result.write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
