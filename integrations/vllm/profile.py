"""What vLLM's own memory profiling found, kept between starts.

Why: the step worker has no model, yet the engine must compute its block count from what the real worker would have
measured. So the real worker is run once per configuration, in a process of its own (profiling.py). What it found is kept
as JSON in the user's cache directory, and the engine computes its block count from it as always. The kernel worker makes
sure of a profile before it starts, too: both details then see the compile cache in the same state (compile_cache.py), and
the same number of blocks.

This must never guess: no profile, no server. The key holds everything that decides the result; the resolved
configuration is used and not the flags, so that every way to give the same configuration finds the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from hyperlapse.integrations.vllm.compile_cache import COLD, cold_environment, compile_cache
from hyperlapse.integrations.vllm.dispatch import GraphTable
from hyperlapse.integrations.vllm.versions import user_chose_block_size
from hyperlapse.shim.models import cache_directory

PROFILE_SEMANTICS = 6
"""Raise it whenever a profile holds something else or would be made differently: older ones are then not found."""

PROFILING_WORKER = "hyperlapse.integrations.vllm.profiling.ProfilingWorker"


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the step worker answers instead of the stock one.

    available_bytes: memory for the KV cache (negative when the model does not fit); block_size: what the attention
    backend asked for, in tokens; layouts: the KV-cache layouts that the backends can read, most preferred first (empty
    where the version asks for none); specs: layer name -> encoded KVCacheSpec; tasks: what the model can do; graphs: the
    CUDA-graph candidates; uniform_prefills: versions.prefills_are_uniform; refused: why the engine did not accept what
    was found, empty when it did. attention (names of the backends that the engine chose), weights_bytes and
    activation_bytes are for the report only.
    """

    key: str
    made_from: dict[str, Any]
    available_bytes: int
    weights_bytes: int
    activation_bytes: int
    block_size: int
    layouts: list[str]
    specs: dict[str, dict[str, Any]]
    tasks: list[str]
    attention: list[str]
    graphs: list[dict[str, Any]]
    uniform_prefills: bool
    refused: str = ""

    def graph_table(self) -> GraphTable:
        if self.refused:
            raise ProfileError(f"the engine refused what profiling the model found: {self.refused}")
        return GraphTable.from_json(self.graphs)

    def kv_cache_specs(self) -> dict[str, Any]:
        """Layer name -> vLLM's KVCacheSpec."""
        return {layer: decode_spec(encoded) for layer, encoded in self.specs.items()}


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
    return {
        "semantics": PROFILE_SEMANTICS,
        "memory": memory_digest(),
        "compile_cache": compile_cache(),
        "vllm": vllm.__version__,
        "torch": torch_version,
        "model": _digest(model.hf_config.to_json_string()),
        "configuration": vllm_config.compute_hash(),
        "environment": _digest(json.dumps(envs.compile_factors(), sort_keys=True, default=str)),
        "device": hashlib.sha256(device_facts).hexdigest()[:16],
        "dtype": str(model.dtype),
        "max_model_len": model.max_model_len,
        "enforce_eager": model.enforce_eager,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "kv_cache_memory_bytes": cache.kv_cache_memory_bytes,
        "cache_dtype": cache.cache_dtype,
        "block_size": cache.block_size if user_chose_block_size(cache) else None,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "cudagraph_mode": str(vllm_config.compilation_config.cudagraph_mode),
        "cudagraph_capture_sizes": vllm_config.compilation_config.cudagraph_capture_sizes,
    }


def memory_digest() -> str:
    """Of the C sources that decide how much memory an engine finds, as the build wrote it beside the libraries."""
    from hyperlapse.shim._core import CORE_LIBRARY, library

    return (library(CORE_LIBRARY).parent / "memory-sources.sha256").read_text(encoding="ascii").strip()


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # servers that start together, and the workers of one: the first makes it
        found = load_profile(path)
        if found is not None:
            return found, True
        say(f"profiling the model once for this configuration (kept in {path})")
        profile = EngineProfile(key=path.stem, made_from=facts, **_profiled(vllm_config))
        if not profile.refused:  # else the engine will say from available_bytes what does not fit
            keep_profile(profile)
        return profile, False


def keep_profile(profile: EngineProfile) -> None:
    path = profile_directory() / f"{profile.key}.json"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(asdict(profile), file, indent=1)
    Path(file.name).replace(path)


def say(text: str) -> None:
    """One line for the user, who sees those of the server's log that begin like this."""
    print(f"hyperlapse: {text}", file=sys.stderr, flush=True)


def _profiled(vllm_config: Any) -> dict[str, Any]:
    """What profiling.py found in its own process."""
    with tempfile.TemporaryDirectory(prefix="hyperlapse-profile-") as directory:
        config_file, result_file = Path(directory, "config.pickle"), Path(directory, "result.json")
        with _worker_class(vllm_config, PROFILING_WORKER):
            config_file.write_bytes(pickle.dumps(vllm_config))
        command = [sys.executable, "-m", "hyperlapse.integrations.vllm.profiling"]
        caches = cold_environment(Path(directory)) if compile_cache() == COLD else {}
        status = subprocess.run(
            [*command, "--config", str(config_file), "--result", str(result_file)],
            check=False,
            env={**os.environ, **caches},
        ).returncode
        if not result_file.is_file():
            raise ProfileError(f"profiling the model ended with status {status}; its messages are above")
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    if "error" in result:
        if result["error_type"] == "OutOfMemoryError":
            import torch

            raise torch.OutOfMemoryError(result["error"])
        raise ProfileError(f"profiling the model failed: {result['error_type']}: {result['error']}")
    found: dict[str, Any] = result["profile"]
    return found


@contextlib.contextmanager
def _worker_class(vllm_config: Any, name: str) -> Iterator[None]:
    """The configuration names this worker class for as long as it is being copied."""
    before = vllm_config.parallel_config.worker_cls
    vllm_config.parallel_config.worker_cls = name
    try:
        yield
    finally:
        vllm_config.parallel_config.worker_cls = before


def encode_spec(spec: Any) -> dict[str, Any]:
    """A KVCacheSpec (a dataclass) as JSON: its class and its fields; dtypes and enumerations by name."""
    import torch

    values: dict[str, Any] = {}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, torch.dtype):
            value = {"dtype": str(value).removeprefix("torch.")}
        elif isinstance(value, Enum):
            value = {"enum": type(value).__name__, "member": value.name}
        elif type(value).__name__ == "MultipleOf":  # since 0.32: tokens of a kernel block
            value = {"multiple_of": value.base}
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            raise ProfileError(
                f"KV-cache spec {type(spec).__name__} has a field {field.name} of type {type(value).__name__}, "
                "which the step detail does not support yet: use --detail kernel"
            )
        values[field.name] = value
    return {"class": type(spec).__name__, "fields": values}


def decode_spec(encoded: dict[str, Any]) -> Any:
    import torch
    from vllm.v1 import kv_cache_interface

    def decoded(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "dtype" in value:
            return getattr(torch, value["dtype"])
        if "multiple_of" in value:
            from vllm.v1.attention.backend import MultipleOf

            return MultipleOf(value["multiple_of"])
        return getattr(kv_cache_interface, value["enum"])[value["member"]]

    values = {name: decoded(value) for name, value in encoded["fields"].items()}
    return getattr(kv_cache_interface, encoded["class"])(**values)
