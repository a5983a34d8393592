"""Which versions of vLLM are known, what of vLLM's insides the integration relies on, and what differs between versions.

Why: an engine that has changed must be told before it serves a wrong number. The installed engine is asked what it has
(a field, a parameter, an attribute) and not which number it carries, so a version between two known ones works, and one
that lacks something is refused by the name of what it lacks. What versions do differently is here and nowhere else.

vLLM has two model runners: V1, which alone works until 0.19, and V2. From 0.23 on VllmConfig decides between them (0.23 for
some dense models only, 0.32 for nearly everything, both by VLLM_USE_V2_MODEL_RUNNER), and the emulation follows it; what the
workers need to know of a runner is in runner_v1.py and runner_v2.py, which have the same functions.

Asking whether the engine fits must never import it: the sources are read as text, in milliseconds, by anyone who knows
where the package lies. Comparing version numbers was rejected: nightly builds and forks carry numbers that say nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

TESTED_VERSIONS = ("0.12.0", "0.15.1", "0.19.0", "0.23.0", "0.32.0")


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
        ("req_id", "prompt_token_ids", "num_computed_tokens", "sampling_params"),
    ),
    Need("v1/core/sched/output.py", "CachedRequestData", ("req_ids", "num_computed_tokens")),
    Need("v1/outputs.py", "ModelRunnerOutput", ("req_ids", "req_id_to_index", "sampled_token_ids")),
    Need("v1/outputs.py", "AsyncModelRunnerOutput", ("get_output",)),
    Need("v1/worker/worker_base.py", "WorkerBase", ("vllm_config", "model_config", "cache_config")),
    Need(
        "v1/worker/gpu_worker.py",
        "Worker",
        ("init_device", "determine_available_memory", "compile_or_warm_up_model", "execute_model", "sample_tokens"),
    ),
    Need("v1/engine/core.py", "EngineCore.__init__", ("vllm_config", "executor_class", "log_stats")),
    Need("v1/metrics/loggers.py", "StatLoggerBase", ("record", "log_engine_initialized")),
    Need("v1/metrics/loggers.py", "load_stat_logger_plugin_factories"),
    Need("config/vllm.py", "VllmConfig", ("compute_hash",)),
)

_DECIDES = Need("config/vllm.py", "VllmConfig", ("use_v2_model_runner",))

RUNNER_NEEDS = {
    "V1": (
        Need("v1/core/sched/output.py", "SchedulerOutput", ("num_common_prefix_blocks",)),
        Need("v1/core/sched/output.py", "CachedRequestData", ("resumed_req_ids", "all_token_ids", "num_output_tokens")),
        Need("v1/worker/gpu_model_runner.py", "GPUModelRunner", ("cudagraph_dispatcher", "model_memory_usage")),
        Need("v1/cudagraph_dispatcher.py", "CudagraphDispatcher", ("compilation_config",)),
        Need(
            "v1/cudagraph_dispatcher.py", "CudagraphDispatcher.dispatch", ("num_tokens", "uniform_decode", "has_lora")
        ),
    ),
    "V2": (
        Need("v1/core/sched/output.py", "NewRequestData", ("prefill_token_ids",)),
        Need("v1/worker/worker_base.py", "CompilationTimes", ("language_model", "encoder")),
        Need(
            "v1/worker/gpu/async_utils.py", "AsyncOutput", ("copy_event", "sampled_token_ids", "num_sampled_tokens_np")
        ),
        Need("v1/worker/gpu/cudagraph_utils.py", "CudaGraphManager", ("_candidates",)),
        Need("v1/worker/gpu/cudagraph_utils.py", "CudaGraphManager.dispatch", ("num_reqs", "num_tokens")),
        Need(
            "v1/worker/gpu/cudagraph_utils.py",
            "BatchExecutionDescriptor",
            ("cg_mode", "num_tokens", "num_reqs", "uniform_token_count"),
        ),
        _DECIDES,
    ),
}
"""What only one of the model runners must have."""


def runner_in(package: Path) -> str:
    """The newest model runner, V1 or V2, that the vLLM in this folder has as more than an experiment."""
    return "V1" if _DECIDES.missing(package) else "V2"


def missing_in(package: Path) -> list[str]:
    """What the integration needs and the vLLM in this folder (`site-packages/vllm`) lacks; empty when it fits."""
    needs = (*NEEDS, *RUNNER_NEEDS[runner_in(package)])
    return list(dict.fromkeys(name for need in needs for name in need.missing(package)))


def installed_version() -> str | None:
    """VLLM's version in this environment, without importing it; None when it is not installed."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def installed_package() -> Path | None:
    """The folder of vLLM's sources in this environment, without importing it; None when it is not installed."""
    spec = importlib.util.find_spec("vllm")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


@functools.cache
def model_runner() -> str:
    """The newest model runner that the installed version is emulated with, V1 or V2; V2 where none is installed."""
    package = installed_package()
    return "V2" if package is None else runner_in(package)


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
    package = installed_package()
    assert package is not None
    warning = verdict(version, package)
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


def runner(vllm_config: Any) -> ModuleType:
    """runner_v1 or runner_v2, whose functions know the model runner of this configuration."""
    if configured_runner(vllm_config) == "V1":
        from hyperlapse.integrations.vllm import runner_v1

        return runner_v1
    from hyperlapse.integrations.vllm import runner_v2

    return runner_v2


def configured_runner(vllm_config: Any) -> str:
    """The model runner that this configuration runs on. Until 0.19 a variable alone decides."""
    decided = getattr(vllm_config, "use_v2_model_runner", None)
    if decided is None:
        from vllm import envs

        decided = envs.VLLM_USE_V2_MODEL_RUNNER
    return "V2" if decided else "V1"


def compilation_times() -> Any:
    """What compile_or_warm_up_model answers when nothing was compiled: since 0.23 an object, in 0.19 seconds; earlier
    versions do not look at it.
    """
    from vllm.v1.worker import worker_base

    times = getattr(worker_base, "CompilationTimes", None)
    return 0.0 if times is None else times(language_model=0.0, encoder=0.0)


def model_runner_output(request_ids: Sequence[str]) -> Any:
    """A ModelRunnerOutput of these rows without values. 0.12 has no defaults for most of its fields."""
    from vllm.v1.outputs import ModelRunnerOutput

    empty: dict[str, Any] = {"sampled_token_ids": [], "logprobs": None, "prompt_logprobs_dict": {}, "pooler_output": []}
    required = {
        field.name: empty[field.name]
        for field in dataclasses.fields(ModelRunnerOutput)
        if field.name in empty and field.default is field.default_factory is dataclasses.MISSING
    }
    rows = {request_id: row for row, request_id in enumerate(request_ids)}
    return ModelRunnerOutput(req_ids=list(request_ids), req_id_to_index=rows, **required)


def user_chose_block_size(cache_config: Any) -> bool:
    """False where the attention backend chooses after the model was loaded, which it does since 0.19; before, the size is
    settled when the worker gets its configuration.
    """
    return bool(getattr(cache_config, "user_specified_block_size", True))


def waiting_requests(scheduler_stats: Any) -> int:
    """Requests that wait; since 0.23 those that were passed over are counted apart."""
    return int(scheduler_stats.num_waiting_reqs) + int(getattr(scheduler_stats, "num_skipped_waiting_reqs", 0))


def asked_logprobs(params: Any) -> int | None:
    """Log-probabilities that a request wants of each sampled id (None: none). 0.32 counts those of given ids too."""
    found: int | None = params.num_logprobs if hasattr(params, "num_logprobs") else params.logprobs
    return found


def prefills_are_uniform(runner_name: str) -> bool:
    """Whether a batch of prompts with one token each may run in a graph that was captured for decoding: runner V1 and 0.23
    count tokens only, 0.32 wants context too (`get_uniform_decode_token_count`).
    """
    if runner_name == "V1":
        return True
    from vllm.v1.worker.gpu import cudagraph_utils

    return hasattr(cudagraph_utils, "get_uniform_token_count")


def compiled_something() -> bool:
    """True when this process found a cold compile cache and filled it."""
    from vllm.compilation.counter import compilation_counter as counter

    # counted only when something was compiled and stored (`num_inductor_compiles` also counts what was found);
    # versions until 0.15 store nothing ahead of time
    return bool(
        counter.num_cache_entries_updated
        or counter.num_compiled_artifacts_saved
        or getattr(counter, "num_aot_artifacts_saved", 0)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """A rank's place in a group of which nothing else is known: nobody talks to it."""

    world_size: int
    rank_in_group: int

    def destroy(self) -> None:
        """Asked for at the end of a process; there is nothing to end."""


def tell_place(vllm_config: Any, rank: int) -> None:
    """Where a rank that has no process groups (the step worker's) stands. Releases until 0.19 name the processes of ranks
    after their groups and end where there is none; later ones look first.
    """
    from vllm.v1.executor import multiproc_executor

    if hasattr(multiproc_executor, "model_parallel_is_initialized"):
        return
    from vllm.distributed import parallel_state

    parallel = vllm_config.parallel_config
    places = {
        "_TP": _Place(parallel.tensor_parallel_size, rank % parallel.tensor_parallel_size),
        "_DP": _Place(parallel.data_parallel_size, parallel.data_parallel_rank),
        **dict.fromkeys(("_PP", "_PCP", "_DCP", "_EP"), _Place(1, 0)),
    }
    for name, place in places.items():
        if getattr(parallel_state, name, place) is None:
            setattr(parallel_state, name, place)
