"""What vLLM's own memory profiling found, kept between starts.

Why: the step worker has no model, yet the engine must compute its block count from what the real worker would have
measured. So the real worker is run once per configuration, in a process of its own, under vLLM's own executor: load,
profile, attention backend, graph candidates. What it found is kept as JSON in the user's cache directory, and the
engine computes its block count from it as always.

With a cold compile cache compilation happens inside the measured region and takes memory (about 0.6 GiB for Qwen3-14B),
so a profile made cold is made again, in a fresh process, and only the warm one is kept. The kernel worker makes sure of
a profile before it starts for the same reason: both details then see a warm cache, and the same number of blocks.

This must never guess: no profile, no server. The key holds everything that decides the result; the resolved
configuration is used and not the flags, so that every way to give the same configuration finds the same file.

    python -m hyperlapse.integrations.vllm.profile --config FILE --result FILE    (run by the workers)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from hyperlapse.integrations.vllm.dispatch import GraphTable
from hyperlapse.shim.models import cache_directory

PROFILE_VERSION = 1
"""Raise it whenever a profile would be made differently: older ones are then not found."""

_PROFILING = "HYPERLAPSE_VLLM_PROFILING"


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the step worker answers instead of the stock one.

    available_bytes: memory for the KV cache (negative when the model does not fit); block_size: what the attention
    backend asked for, in tokens; specs: layer name -> encoded KVCacheSpec; tasks: what the model can do; graphs: the
    CUDA-graph candidates. weights_bytes, activation_bytes and other_bytes are for the report only.
    """

    key: str
    made_from: dict[str, Any]
    available_bytes: int
    weights_bytes: int
    activation_bytes: int
    other_bytes: int
    block_size: int
    specs: dict[str, dict[str, Any]]
    tasks: list[str]
    graphs: list[dict[str, Any]]

    def graph_table(self) -> GraphTable:
        return GraphTable.from_json(self.graphs)

    def kv_cache_specs(self) -> dict[str, Any]:
        """Layer name -> vLLM's KVCacheSpec."""
        return {layer: _decode_spec(encoded) for layer, encoded in self.specs.items()}


class ProfileError(RuntimeError):
    """The stock worker could not be profiled; its own message is in the text."""


def profile_directory() -> Path:
    return cache_directory() / "vllm-profiles"


def facts_of(vllm_config: Any, device_facts: bytes) -> dict[str, Any]:
    """Everything that decides what profiling finds, from the resolved configuration. device_facts: the device's facts
    as the run published them.
    """
    import vllm
    from torch import __version__ as torch_version
    from vllm import envs

    model, cache, scheduler, parallel = (
        vllm_config.model_config,
        vllm_config.cache_config,
        vllm_config.scheduler_config,
        vllm_config.parallel_config,
    )
    environment = json.dumps(envs.compile_factors(), sort_keys=True, default=str)
    return {
        "profile_version": PROFILE_VERSION,
        "vllm": vllm.__version__,
        "torch": torch_version,
        "hyperlapse": metadata.version("hyperlapse"),
        "libraries": _libraries_digest(),
        "model": _digest(model.hf_config.to_json_string()),
        "configuration": vllm_config.compute_hash(),
        "environment": _digest(environment),
        "device": hashlib.sha256(device_facts).hexdigest()[:16],
        "dtype": str(model.dtype),
        "max_model_len": model.max_model_len,
        "enforce_eager": model.enforce_eager,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "kv_cache_memory_bytes": cache.kv_cache_memory_bytes,
        "cache_dtype": cache.cache_dtype,
        "block_size": cache.block_size if cache.user_specified_block_size else None,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "cudagraph_mode": str(vllm_config.compilation_config.cudagraph_mode),
        "cudagraph_capture_sizes": vllm_config.compilation_config.cudagraph_capture_sizes,
    }


def _libraries_digest() -> str:
    """Of our C libraries: another ledger or allocator may find another number."""
    from hyperlapse.shim._core import CORE_LIBRARY, library

    digest = hashlib.sha256()
    for path in sorted(library(CORE_LIBRARY).parent.glob("*.so*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def profile_path(facts: dict[str, Any]) -> Path:
    key = _digest(json.dumps(facts, sort_keys=True))
    return profile_directory() / f"{key}.json"


def load_profile(path: Path) -> EngineProfile | None:
    """The profile in this file; None when there is none or when it is not one of ours (it is then made again)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return EngineProfile(**{field.name: values[field.name] for field in fields(EngineProfile)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ensure_profile(vllm_config: Any, device_facts: bytes) -> tuple[EngineProfile, bool]:
    """(profile, cached): the profile of this configuration, made now when there is none. Raises ProfileError."""
    facts = facts_of(vllm_config, device_facts)
    path = profile_path(facts)
    found = load_profile(path)
    if found is not None:
        return found, True
    print(
        "hyperlapse: profiling the model once for this configuration (kept in " + str(path) + ")",
        file=sys.stderr,
        flush=True,
    )
    result = _run_worker(vllm_config)
    if result["cold"]:
        print("hyperlapse: the compile cache was cold: profiling again with a warm one", file=sys.stderr, flush=True)
        result = _run_worker(vllm_config)
        if result["cold"]:
            raise ProfileError(
                "the compile cache stays cold, so the memory that the model needs cannot be measured as a warmed-up "
                "server has it: is vLLM's cache directory (VLLM_CACHE_ROOT) writable, VLLM_DISABLE_COMPILE_CACHE unset?"
            )
    profile = EngineProfile(key=path.stem, made_from=facts, **result["profile"])
    if not result["fits"]:
        return profile, False  # nothing to keep: the engine will say from available_bytes what does not fit
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(asdict(profile), file, indent=1)
    Path(file.name).replace(path)
    return profile, False


def is_profiling() -> bool:
    """True in the process that makes a profile: its worker must not ask for one."""
    return os.environ.get(_PROFILING) == "1"


def _run_worker(vllm_config: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="hyperlapse-profile-") as directory:
        config_file, result_file = Path(directory, "config.pickle"), Path(directory, "result.json")
        with _worker_class(vllm_config, "hyperlapse.integrations.vllm.kernel_worker.KernelWorker"):
            config_file.write_bytes(pickle.dumps(vllm_config))
        command = [sys.executable, "-m", "hyperlapse.integrations.vllm.profile"]
        status = subprocess.run(
            [*command, "--config", str(config_file), "--result", str(result_file)],
            env={**os.environ, _PROFILING: "1"},
            check=False,
        ).returncode
        if not result_file.is_file():
            raise ProfileError(f"profiling the model ended with status {status}; its messages are above")
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    if "error" in result:
        if result["error_type"] == "OutOfMemoryError":
            import torch

            raise torch.OutOfMemoryError(result["error"])
        raise ProfileError(f"profiling the model failed: {result['error_type']}: {result['error']}")
    return result


@contextlib.contextmanager
def _worker_class(vllm_config: Any, name: str) -> Iterator[None]:
    """The configuration names this worker class for as long as it is being copied."""
    before = vllm_config.parallel_config.worker_cls
    vllm_config.parallel_config.worker_cls = name
    try:
        yield
    finally:
        vllm_config.parallel_config.worker_cls = before


def _encode_spec(spec: Any) -> dict[str, Any]:
    """A KVCacheSpec (a dataclass) as JSON: its class and its fields; dtypes and enumerations by name."""
    import torch

    values: dict[str, Any] = {}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, torch.dtype):
            value = {"dtype": str(value).removeprefix("torch.")}
        elif isinstance(value, Enum):
            value = {"enum": type(value).__name__, "member": value.name}
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            raise ProfileError(
                f"KV-cache spec {type(spec).__name__} has a field {field.name} of type {type(value).__name__}, "
                "which the step detail does not support yet: use --detail kernel"
            )
        values[field.name] = value
    return {"class": type(spec).__name__, "fields": values}


def _decode_spec(encoded: dict[str, Any]) -> Any:
    import torch
    from vllm.v1 import kv_cache_interface

    def decoded(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "dtype" in value:
            return getattr(torch, value["dtype"])
        return getattr(kv_cache_interface, value["enum"])[value["member"]]

    values = {name: decoded(value) for name, value in encoded["fields"].items()}
    return getattr(kv_cache_interface, encoded["class"])(**values)


def compiled_something() -> bool:
    """True when this process found a cold compile cache and filled it."""
    from vllm.compilation.counter import compilation_counter as counter

    # counted only when something was compiled and stored (`num_inductor_compiles` also counts what was found)
    return bool(
        counter.num_cache_entries_updated or counter.num_compiled_artifacts_saved or counter.num_aot_artifacts_saved
    )


def _make(config_file: Path) -> dict[str, Any]:
    """Boots the stock worker under vLLM's own executor and asks what the engine would ask. In its own process."""
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.executor import Executor

    vllm_config = pickle.loads(config_file.read_bytes())
    executor = Executor.get_class(vllm_config)(vllm_config)
    try:
        register_all_kvcache_specs(vllm_config)
        specs = executor.get_kv_cache_specs()
        started = time.monotonic()
        available = executor.determine_available_memory()
        seconds = time.monotonic() - started
        cold = compiled_something()
        block_size = vllm_config.cache_config.block_size
        worker = executor.driver_worker.worker
        graphs, fits = GraphTable([]), True
        try:
            configs = get_kv_cache_configs(vllm_config, specs, available)
        except ValueError:
            fits = False  # the engine asks itself the same and says so in its own words
        else:
            executor.collective_rpc("initialize_from_config", args=(configs,))
            graphs = GraphTable.of_manager(worker.model_runner.cudagraph_manager)
        return {
            "cold": cold,
            "fits": fits,
            "seconds": seconds,
            "profile": {
                "available_bytes": int(min(available)),
                "weights_bytes": int(worker.model_runner.model_memory_usage),
                "activation_bytes": int(getattr(worker, "peak_activation_memory", 0)),
                "other_bytes": int(getattr(worker, "non_torch_memory", 0)),
                "block_size": block_size,
                "specs": {layer: _encode_spec(spec) for layer, spec in specs[0].items()},
                "tasks": list(executor.supported_tasks),
                "graphs": graphs.to_json(),
            },
        }
    finally:
        executor.shutdown()


def main(arguments: list[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m hyperlapse.integrations.vllm.profile", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a pickled VllmConfig")
    parser.add_argument("--result", type=Path, required=True, help="where to write what was found, as JSON")
    options = parser.parse_args(arguments)
    try:
        result = _make(options.config)
    except Exception as error:
        import traceback

        traceback.print_exc()
        result = {"error_type": type(error).__name__, "error": str(error)}
    options.result.write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    raise SystemExit(main())
