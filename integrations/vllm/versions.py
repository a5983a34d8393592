"""Which versions of vLLM are known, what of vLLM's insides the integration relies on, and what differs between versions.

Why: an engine that has changed must be told before it serves a wrong number. The installed engine is asked what it has
(a field, a parameter, an attribute) and not which number it carries, so a version between two known ones works, and one
that lacks something is refused by the name of what it lacks. What versions do differently is here and nowhere else.

Asking whether the engine fits must never import it: the sources are read as text, in milliseconds, by anyone who knows
where the package lies. Comparing version numbers was rejected: nightly builds and forks carry numbers that say nothing.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

TESTED_VERSIONS = ("0.23.0", "0.32.0")


class UnsupportedVersionError(RuntimeError):
    """The installed vLLM lacks something that the integration needs; the text names it."""


@dataclass(frozen=True, slots=True)
class Need:
    """A name that the integration uses. file: below vLLM's package; name: a class or a function (`Class.method`);
    parts: fields, methods or attributes of the class, or parameters of the function.
    """

    file: str
    name: str
    parts: tuple[str, ...] = ()

    def missing(self, package: Path) -> list[str]:
        path = package / self.file
        if not path.is_file():
            return [f"vllm/{self.file}"]
        scope: ast.AST | None = ast.parse(path.read_text(encoding="utf-8"))
        for part in self.name.split("."):
            scope = next((node for node in _definitions(scope) if node.name == part), None)
            if scope is None:
                return [f"{self.name} in vllm/{self.file}"]
        found = _parts(scope)
        return [f"{self.name}.{part} in vllm/{self.file}" for part in self.parts if part not in found]


NEEDS = (
    Need(
        "v1/core/sched/output.py",
        "SchedulerOutput",
        (
            "scheduled_new_reqs",
            "scheduled_cached_reqs",
            "num_scheduled_tokens",
            "total_num_scheduled_tokens",
            "finished_req_ids",
            "preempted_req_ids",
        ),
    ),
    Need(
        "v1/core/sched/output.py",
        "NewRequestData",
        ("req_id", "prompt_token_ids", "prefill_token_ids", "num_computed_tokens", "sampling_params"),
    ),
    Need("v1/core/sched/output.py", "CachedRequestData", ("req_ids", "num_computed_tokens")),
    Need("v1/outputs.py", "ModelRunnerOutput", ("req_ids", "req_id_to_index", "sampled_token_ids")),
    Need("v1/outputs.py", "AsyncModelRunnerOutput", ("get_output",)),
    Need("v1/worker/worker_base.py", "WorkerBase", ("vllm_config", "model_config", "cache_config")),
    Need("v1/worker/worker_base.py", "CompilationTimes", ("language_model", "encoder")),
    Need(
        "v1/worker/gpu_worker.py",
        "Worker",
        ("init_device", "determine_available_memory", "compile_or_warm_up_model", "execute_model", "sample_tokens"),
    ),
    Need("v1/worker/gpu/async_utils.py", "AsyncOutput", ("copy_event", "sampled_token_ids", "num_sampled_tokens_np")),
    Need("v1/worker/gpu/cudagraph_utils.py", "CudaGraphManager", ("_candidates",)),
    Need("v1/worker/gpu/cudagraph_utils.py", "CudaGraphManager.dispatch", ("num_reqs", "num_tokens")),
    Need(
        "v1/worker/gpu/cudagraph_utils.py",
        "BatchExecutionDescriptor",
        ("cg_mode", "num_tokens", "num_reqs", "uniform_token_count"),
    ),
    Need("v1/engine/core.py", "EngineCore.__init__", ("vllm_config", "executor_class", "log_stats")),
    Need("v1/metrics/loggers.py", "StatLoggerBase", ("record", "log_engine_initialized")),
    Need("config/vllm.py", "VllmConfig", ("use_v2_model_runner", "compute_hash")),
)


def missing_in(package: Path) -> list[str]:
    """What the integration needs and the vLLM in this folder (`site-packages/vllm`) lacks; empty when it fits."""
    return list(dict.fromkeys(name for need in NEEDS for name in need.missing(package)))


def installed_version() -> str | None:
    """VLLM's version in this environment, without importing it; None when it is not installed."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def check_version() -> str:
    """The engine's version. Raises RuntimeError without one and UnsupportedVersionError for one that cannot work; says once
    a server, where the user sees it, that a version was never tested.
    """
    version = installed_version()
    if version is None:
        raise RuntimeError("vLLM is not installed in this environment: pip install 'hyperlapse[vllm]'")
    if version.partition("+")[0] in TESTED_VERSIONS:
        return version
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    warning = verdict(version, Path(spec.origin).parent)
    if multiprocessing.parent_process() is None:
        print(f"hyperlapse: WARNING: {warning}", file=sys.stderr, flush=True)
    return version


def verdict(version: str, package: Path) -> str:
    """The warning for a version that was never tested; empty for one that was. package: the folder of its sources.
    Raises UnsupportedVersionError.
    """
    if version.partition("+")[0] in TESTED_VERSIONS:
        return ""
    tested = ", ".join(TESTED_VERSIONS)
    missing = missing_in(package)
    if missing:
        raise UnsupportedVersionError(
            f"vLLM {version} does not fit this version of Hyperlapse, which needs {'; '.join(missing)}. Tested are "
            f"{tested}: take one of these, or a version of Hyperlapse that knows this one"
        )
    return (
        f"vLLM {version} was never tested with this version of Hyperlapse (tested: {tested}). All that the integration "
        "needs is there; do not trust the results before you have compared block counts and latencies of both details"
    )


def _definitions(scope: ast.AST | None) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in getattr(scope, "body", ()):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def _parts(scope: ast.AST | None) -> set[str]:
    """Parameters of a function; of a class what it declares or defines, and what its methods set on self."""
    if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = scope.args
        return {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    found = {node.name for node in _definitions(scope)}
    for node in ast.walk(scope) if scope is not None else ():
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name):
                found.add(target.id)
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                found.add(target.attr)
    return found


# ----- what differs; each asks the engine that is imported -----


def prefills_are_uniform() -> bool:
    """Whether a batch of prompts with one token each may run in a graph that was captured for decoding: 0.23 counts
    tokens only, 0.32 wants context too (`get_uniform_decode_token_count`).
    """
    from vllm.v1.worker.gpu import cudagraph_utils

    return hasattr(cudagraph_utils, "get_uniform_token_count")


def graph_candidates(manager: Any) -> list[list[Any]]:
    """CudaGraphManager's descriptors by token count, most preferred first. 0.32 keeps them by (tokens, active LoRA
    adapters); LoRA and microbatches are refused elsewhere.
    """
    candidates = manager._candidates
    if not isinstance(candidates, dict):
        return list(candidates)
    longest = max((tokens for tokens, _ in candidates), default=-1)
    return [
        [desc for desc in candidates.get((tokens, 0), ()) if desc.num_ubatches == 1] for tokens in range(longest + 1)
    ]


@functools.cache
def _dispatches_by_lora() -> bool:
    import inspect

    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    return "num_active_loras" in inspect.signature(CudaGraphManager.dispatch).parameters


def dispatch(manager: Any, rows: int, tokens: int, uniform: int | None) -> Any:
    """The descriptor that the engine's CudaGraphManager picks for this batch."""
    more = (0,) if _dispatches_by_lora() else ()
    return manager.dispatch(rows, tokens, uniform, *more)
