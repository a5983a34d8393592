"""What runs in every vLLM process before anything else of ours (entry point group `vllm.general_plugins`).

It sets defaults that processes started later inherit, and tells the run how much CPU time the engine's own imports
took: start-up is judged against that. It must be cheap, work when called again, and do nothing outside a run.
"""

from __future__ import annotations

import os
import sys
import time


def register() -> None:
    if not os.environ.get("HYPERLAPSE_RUN_DIR"):
        return
    from hyperlapse.integrations.vllm.command import ENVIRONMENT, check_version
    from hyperlapse.integrations.vllm.worker_common import tell_run

    check_version()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "serve" in sys.argv and "--worker-cls" not in " ".join(sys.argv):
        warn_of_foreign_worker("auto")
    tell_run(
        {
            "kind": "imports",
            "process": os.path.basename(sys.argv[0]) if sys.argv else "",  # noqa: PTH119 - argv need not be a path
            "cpu_ns": time.process_time_ns(),
            "modules": len(sys.modules),
        }
    )


def warn_of_foreign_worker(worker_class: str) -> None:
    """Says loudly that a server in a run has another worker than ours: its results mean nothing."""
    if not os.environ.get("HYPERLAPSE_RUN_DIR") or worker_class.startswith("hyperlapse."):
        return
    from hyperlapse.shim._core import core

    print(
        f"hyperlapse: WARNING: this vLLM server has the worker {worker_class!r}, not Hyperlapse's: sampled ids are garbage "
        "and attention is not priced. Start it as `vllm serve ...` directly under `hyperlapse run`, or add --worker-cls "
        "hyperlapse.integrations.vllm.step_worker.StepWorker --load-format dummy",
        file=sys.stderr,
        flush=True,
    )
    core().lib.hl_report_event(b"foreign-worker", worker_class.encode())
