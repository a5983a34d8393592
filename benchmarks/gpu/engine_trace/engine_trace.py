"""Records what a stock vLLM server does on a real GPU, as one JSON line for each thing that happened.

Loaded as a `vllm.general_plugins` entry point; does nothing unless ENGINE_TRACE names a folder, into which every process
writes trace.PID.jsonl. Written for vLLM 0.23.0 with its model runner V2; a method that a version does not have is noted
in the trace ("note") and left alone, so that a record that is missing says why.

It wraps methods and changes nothing that they do. Each step gets three CUDA events, which cost it under 10 us of host time;
their times are read when they have long passed, so no step waits for the trace.

Records (host instants are perf_counter nanoseconds):

    ["proc", pid, argv, now, wall_clock]
    ["base", now]                               the event that device times count from
    ["exec", step, begin, end, cpu_ns, batch, joined]   batch: [new tokens, tokens before them, sequences] of each group
    ["gpu", step, before_ms, forward_ms, after_ms]      device times of the step's three events
    ["sample", step, begin, end, cpu_ns]
    ["mem", stage, free, total, reserved, allocated, allocated_most, reserved_most]     bytes; the last four are torch's
    ["kv", bytes, parts]                        what the worker leaves for the KV cache, and how it came to that
    ["phase", name, begin, end]
    ["schedule" | "update" | "step" | "add" | "output", begin, end, cpu_ns, ...]
    ["note", text]
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "ENGINE_TRACE"
FLUSH_S = 2.0
_STAGES = (
    "init_device",
    "load_model",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
)
_KV_PARTS = (
    "non_torch_memory",
    "peak_activation_memory",
    "cudagraph_memory_estimate",
    "requested_memory",
    "available_kv_cache_memory_bytes",
)

now_ns = time.perf_counter_ns


class Trace:
    """The file of this process. Lines are kept and written by a thread of their own."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"trace.{os.getpid()}.jsonl"
        self._lines: list[tuple[object, ...]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._keep_writing, name="engine-trace", daemon=True).start()
        atexit.register(self.write)

    def add(self, *record: object) -> None:
        self._lines.append(record)

    def write(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            if lines:
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line, separators=(",", ":"), default=str) + "\n" for line in lines)

    def _keep_writing(self) -> None:
        while True:
            time.sleep(FLUSH_S)
            self.write()


def wrapped(trace: Trace, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a method by make(method)."""
    inner = getattr(owner, name, None)
    if inner is None:
        trace.add("note", f"{owner.__module__}.{owner.__name__} has no {name} in this version: not recorded")
        return
    setattr(owner, name, functools.wraps(inner)(make(inner)))


def timed(trace: Trace, owner: type, name: str, kind: str) -> None:
    """Records begin, end and CPU time of each call of a method."""

    def make(inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any, **kwargs: Any) -> Any:
            begin_ns, cpu_ns = now_ns(), time.thread_time_ns()
            try:
                return inner(*args, **kwargs)
            finally:
                trace.add(kind, begin_ns, now_ns(), time.thread_time_ns() - cpu_ns)

        return outer

    wrapped(trace, owner, name, make)


def groups(scheduled: Any) -> list[list[int]]:
    """[new tokens, tokens before them, sequences] of a scheduler output, sorted."""
    before = {request.req_id: request.num_computed_tokens for request in scheduled.scheduled_new_reqs}
    running = scheduled.scheduled_cached_reqs
    before.update(zip(running.req_ids, running.num_computed_tokens, strict=True))
    counts: dict[tuple[int, int], int] = {}
    for request, new in scheduled.num_scheduled_tokens.items():
        group = (new, before.get(request, -1))
        counts[group] = counts.get(group, 0) + 1
    return [[*group, count] for group, count in sorted(counts.items())]


class Steps:
    """The model runner's steps: their batches when they are launched, their device times when they have passed."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._base: Any = None
        self._count = 0
        self._open: tuple[int, Any, Any] | None = None
        self._waiting: deque[tuple[int, Any, Any, Any]] = deque()

    @staticmethod
    def _mark() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def execute(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Around execute_model(scheduler output, ...)."""
        import torch

        def outer(runner: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("dummy_run") or (len(args) > 1 and args[1]) or not scheduled.num_scheduled_tokens:
                return inner(runner, scheduled, *args, **kwargs)
            if self._base is None:
                self._base = self._mark()
                self._base.synchronize()
                self._trace.add("base", now_ns())
            self._count += 1
            begin_ns, cpu_ns = now_ns(), time.thread_time_ns()
            before = self._mark()
            with torch.profiler.record_function(f"step:{self._count}"):
                result = inner(runner, scheduled, *args, **kwargs)
            self._open = (self._count, before, self._mark())
            joined = [request.req_id for request in scheduled.scheduled_new_reqs]
            cpu_ns = time.thread_time_ns() - cpu_ns
            self._trace.add("exec", self._count, begin_ns, now_ns(), cpu_ns, groups(scheduled), joined)
            return result

        return outer

    def sample(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Around sample_tokens, which ends a step."""
        import torch

        def outer(runner: Any, *args: Any, **kwargs: Any) -> Any:
            opened, self._open = self._open, None
            begin_ns, cpu_ns = now_ns(), time.thread_time_ns()
            with torch.profiler.record_function(f"sample:{opened[0] if opened else 0}"):
                result = inner(runner, *args, **kwargs)
            if opened:
                self._waiting.append((*opened, self._mark()))
                self._trace.add("sample", opened[0], begin_ns, now_ns(), time.thread_time_ns() - cpu_ns)
                self._read()
            return result

        return outer

    def _read(self) -> None:
        while self._waiting and self._waiting[0][-1].query():
            step, *events = self._waiting.popleft()
            self._trace.add("gpu", step, *(self._base.elapsed_time(event) for event in events))


def record_stage(trace: Trace, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Memory after one of the worker's start-up stages, and what it leaves for the KV cache."""

    def make(inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(worker: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            begin_ns = now_ns()
            result = inner(worker, *args, **kwargs)
            trace.add("phase", name, begin_ns, now_ns())
            free, total = torch.cuda.mem_get_info()
            kept = torch.cuda.memory_stats()
            keys = (
                "reserved_bytes.all.current",
                "allocated_bytes.all.current",
                "allocated_bytes.all.peak",
                "reserved_bytes.all.peak",
            )
            trace.add("mem", f"after {name}", free, total, *(kept.get(key, 0) for key in keys))
            if name == "determine_available_memory":
                trace.add("kv", result, {part: getattr(worker, part, None) for part in _KV_PARTS})
            trace.write()
            return result

        return outer

    return make


def record_engine(trace: Trace) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    timed(trace, Scheduler, "schedule", "schedule")
    timed(trace, Scheduler, "update_from_output", "update")
    timed(trace, EngineCore, "step_with_batch_queue", "step")
    timed(trace, EngineCore, "add_request", "add")
    timed(trace, OutputProcessor, "process_outputs", "output")
    steps = Steps(trace)
    wrapped(trace, GPUModelRunner, "execute_model", steps.execute)
    wrapped(trace, GPUModelRunner, "sample_tokens", steps.sample)
    for name in _STAGES:
        wrapped(trace, Worker, name, record_stage(trace, name))


_trace: Trace | None = None


def register() -> None:
    """The entry point; vLLM calls it in every process, in some more than once."""
    global _trace
    folder = os.environ.get(FOLDER_VARIABLE)
    if _trace is not None or not folder:
        return
    _trace = Trace(Path(folder))
    _trace.add("proc", os.getpid(), sys.argv, now_ns(), time.time_ns())
    try:
        record_engine(_trace)
    except ImportError as error:
        _trace.add("note", f"this version of vLLM has other modules: {error!r}; steps are not recorded")
        print(f"engine_trace: {error!r}: this vLLM cannot be recorded (written for 0.23.0)", file=sys.stderr)
    _trace.write()
