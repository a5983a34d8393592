"""The command line and environment of `vllm serve` on virtual GPUs.

Why: what a GPU-free host needs is said in vLLM's own flags and environment variables, so that the server that runs is
the stock one and anyone can read in its log what differs. A flag that the user gave is never overridden.

It must never import vLLM: the launcher has none. Setting the worker class from the plugin was rejected: no plugin of
the API server sees the configuration before vLLM resolves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperlapse.integrations.vllm.unsupported import refuse_flags

ENGINE = "vllm"

WORKERS = {
    "kernel": "hyperlapse.integrations.vllm.kernel_worker.KernelWorker",
    "step": "hyperlapse.integrations.vllm.step_worker.StepWorker",
}
DETAIL_VARIABLE = "HYPERLAPSE_DETAIL"
"""For programs that are no command of vLLM's but may make an engine of their own (virtual_platform.py)."""
MIDDLEWARE = "hyperlapse.integrations.vllm.middleware.ChargeHostTime"

ENVIRONMENT = {
    # no network at run time, whatever the model's name looks like
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # the GPU host that is emulated has FlashInfer's kernels (as vLLM's images have); without it vLLM looks for nvcc and the
    # network on this host, and what it finds decides the attention backend (vllm/utils/flashinfer.py)
    "VLLM_HAS_FLASHINFER_CUBIN": "1",
    # one tokenizer thread: each thread costs microseconds at every jump of the clock
    "TOKENIZERS_PARALLELISM": "false",
    # a library of quantised kernels (0.32) starts two more Pythons in every process that imports it, which compile ahead what
    # never runs
    "HUMMING_DISABLE_PARALLEL_BUILD": "1",
    # stock default of `vllm serve`, said here so that a user's environment cannot make the engine fork after CUDA
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """argv: the command; environment: what is set over the caller's; detail: kernel or step, and engine: its name; both
    empty for a command that is no engine's; tensor_parallel_size: as its flags ask for.
    """

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    detail: str = ""
    engine: str = ""
    tensor_parallel_size: int = 1


def serve_args(
    model_directory: Path | str,
    detail: str,
    *,
    executable: Sequence[str] = ("vllm",),
    served_model_name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    gpus: int = 1,
    extra: Sequence[str] = (),
) -> ServeCommand:
    """`vllm serve` for this model at this detail. executable: how to start vLLM's command line, e.g. the path of the
    engine environment's `vllm`; gpus: how many it has, which share each layer (tensor parallelism) but for what the user's
    flags divide among pipeline stages and replicas; extra: flags of the user, which win over ours. Raises ValueError for a
    number that cannot be divided so, and for flags that cannot be emulated.
    """
    tensor_parallel_size = gpus // _engines_and_stages(extra, gpus)
    argv = [*executable, "serve", str(model_directory), "--host", host, "--port", str(port)]
    if served_model_name is not None and not _has(extra, "--served-model-name"):
        argv += ["--served-model-name", served_model_name]
    if tensor_parallel_size != 1:
        argv += ["--tensor-parallel-size", str(tensor_parallel_size)]
    return adapt_command([*argv, *extra], detail)


def _engines_and_stages(flags: Sequence[str], gpus: int) -> int:
    """How many parts of one layer's GPUs there are: replicas times pipeline stages."""
    parts = 1
    for names in (("--data-parallel-size", "-dp"), ("--pipeline-parallel-size", "-pp")):
        size = _value_of(flags, *names)
        parts *= int(size) if size.isdecimal() and int(size) else 1
    if gpus % parts:
        raise ValueError(
            f"{gpus} GPUs cannot be divided among {parts} replicas and pipeline stages: give --gpus {parts} or more"
        )
    return parts


def adapt_command(argv: Sequence[str], detail: str) -> ServeCommand:
    """The same command with the worker of this detail and the defaults of a GPU-free host, when it is `vllm serve`;
    any other command unchanged, with the detail in its environment. Raises ValueError for an unknown detail and for flags
    that cannot be emulated.
    """
    if detail not in WORKERS:
        raise ValueError(f"unknown detail {detail!r}: choose one of {', '.join(WORKERS)}")
    given = list(argv)
    flags = _serve_flags(given)
    if flags is None:
        return ServeCommand(given, {DETAIL_VARIABLE: detail})
    refuse_flags(flags, detail)
    added: list[str] = []
    if not _has(flags, "--worker-cls"):
        added += ["--worker-cls", WORKERS[detail]]
    if not _has(flags, "--load-format"):
        added += ["--load-format", "dummy"]
    added += ["--middleware", MIDDLEWARE]
    size = _value_of(flags, "--tensor-parallel-size", "-tp")
    return ServeCommand(
        [*given, *added], dict(ENVIRONMENT), detail, ENGINE, int(size) if size.isdecimal() and int(size) else 1
    )


def _serve_flags(argv: Sequence[str]) -> Sequence[str] | None:
    """What follows `vllm serve` or one of its other names; None for any other program.

    Known: `vllm serve`, `python vllm serve`, `python -m vllm.entrypoints.cli.main serve` and `python -m
    vllm.entrypoints.openai.api_server`, each also behind env, nice, ionice, taskset, timeout, setsid or nohup. A server
    that is started in another way has the stock worker, which the plugin warns of.
    """
    for index, word in enumerate(argv):
        if index and not _may_precede(argv[:index]):
            return None
        rest = argv[index + 1 :]
        name = Path(word).name
        if name == "vllm":
            return rest[1:] if rest[:1] == ["serve"] else None
        if name.startswith("python"):
            return _python_serve_flags(rest)
    return None


def _python_serve_flags(words: Sequence[str]) -> Sequence[str] | None:
    words = list(words)
    while words and words[0].startswith("-") and words[0] not in {"-m", "-c"}:
        words = words[2:] if words[0] in {"-X", "-W"} else words[1:]
    if words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]:
        return words[2:]
    if words[:3] == ["-m", "vllm.entrypoints.cli.main", "serve"]:
        return words[3:]
    if len(words) > 1 and Path(words[0]).name == "vllm" and words[1] == "serve":
        return words[2:]
    return None


def _may_precede(words: Sequence[str]) -> bool:
    """True for a wrapper and its own arguments (flags, NAME=VALUE, numbers and what a flag takes)."""
    return Path(words[0]).name in {"env", "nice", "ionice", "taskset", "timeout", "setsid", "nohup", "stdbuf", "chrt"}


def _has(flags: Sequence[str], *names: str) -> bool:
    """VLLM takes --load-format, --load_format and --load-format=dummy alike."""
    wanted = {name.replace("_", "-") for name in names}
    return any(flag.partition("=")[0].replace("_", "-") in wanted for flag in flags)


def _value_of(flags: Sequence[str], *names: str) -> str:
    """What the last of these flags was given; empty where there is none."""
    found = ""
    for index, flag in enumerate(flags):
        name, given, value = flag.partition("=")
        if name.replace("_", "-") in names:
            found = value if given else "".join(flags[index + 1 : index + 2])
    return found
