"""The engine's own statistics, written into the run directory (entry point group `vllm.stat_logger_plugins`).

Why: polling /metrics would put requests on the virtual clock that are not part of the workload. vLLM calls a stat
logger in the API server with every batch of outputs, whether we listen or not.

Each record is one line of engine-<pid>.jsonl, written at once: a few bytes into shared memory cost less than a buffer
that a signal could lose. Times are virtual nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from hyperlapse.integrations.vllm.plugin import warn_of_foreign_worker
from hyperlapse.integrations.vllm.versions import configured_runner, waiting_requests


class RunStatistics(StatLoggerBase):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """One per engine of this API server; outside a run it does nothing."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._config = vllm_config
        self._engine = engine_index
        self._preemptions = 0
        warn_of_foreign_worker(vllm_config.parallel_config.worker_cls)
        directory = os.environ.get("HYPERLAPSE_RUN_DIR")
        self._file = -1
        if directory:
            path = Path(directory, f"engine-{os.getpid()}.jsonl")
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def log_engine_initialized(self) -> None:
        import vllm

        cache, scheduler = self._config.cache_config, self._config.scheduler_config
        self._write(
            {
                "kind": "engine",
                "t_ns": time.monotonic_ns(),
                "engine": "vllm",
                "engine_version": vllm.__version__,
                "engine_index": self._engine,
                "kv_blocks": cache.num_gpu_blocks,
                "block_size": cache.block_size,
                "max_num_seqs": scheduler.max_num_seqs,
                "max_num_batched_tokens": scheduler.max_num_batched_tokens,
                "max_model_len": self._config.model_config.max_model_len,
                "async_scheduling": bool(scheduler.async_scheduling),
                "model_runner": configured_runner(self._config),
                "worker": self._config.parallel_config.worker_cls,
            }
        )

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,  # noqa: ARG002 - vLLM passes it by name
        engine_idx: int = 0,
    ) -> None:
        if self._file < 0:
            return
        record: dict[str, Any] = {"kind": "step", "t_ns": time.monotonic_ns(), "engine_index": engine_idx}
        if scheduler_stats is not None:
            record["running"] = scheduler_stats.num_running_reqs
            record["waiting"] = waiting_requests(scheduler_stats)
            record["kv_usage"] = round(scheduler_stats.kv_cache_usage, 6)
            prefix = scheduler_stats.prefix_cache_stats
            if prefix is not None and prefix.queries:
                record["prefix_queries"], record["prefix_hits"] = prefix.queries, prefix.hits
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs
            record["prompt_tokens"] = iteration_stats.num_prompt_tokens
            record["output_tokens"] = iteration_stats.num_generation_tokens
            finished = iteration_stats.finished_requests
            record["finished"] = len(finished)
            if finished:
                for phase in ("queued", "prefill", "decode"):
                    spent_s = sum(getattr(request, f"{phase}_time") for request in finished)
                    record[f"{phase}_ns"] = round(spent_s * 1e9)
        record["preemptions"] = self._preemptions
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        if self._file >= 0:
            os.write(self._file, (json.dumps(record, separators=(",", ":")) + "\n").encode())
