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
    from hyperlapse.integrations.vllm.command import DETAIL_VARIABLE, ENVIRONMENT, MIDDLEWARE
    from hyperlapse.integrations.vllm.versions import check_version
    from hyperlapse.integrations.vllm.worker_common import tell_run

    check_version()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if DETAIL_VARIABLE in os.environ and sys.argv[1:2] == ["serve"]:
        print(
            "hyperlapse: WARNING: `vllm serve` was not started directly under `hyperlapse run`: it has Hyperlapse's worker, "
            f"but not its middleware (no host time, no refusal of what cannot be answered): add --middleware {MIDDLEWARE}",
            file=sys.stderr,
            flush=True,
        )
    tell_run(
        {
            "kind": "imports",
            "process": os.path.basename(sys.argv[0]) if sys.argv else "",  # noqa: PTH119 - argv need not be a path
            "cpu_ns": time.process_time_ns(),
            "modules": len(sys.modules),
        }
    )


def platform() -> str | None:
    """Entry point group `vllm.platform_plugins`: the platform for programs that make their own engine in a run; None,
    and vLLM finds its own, for everybody else.
    """
    from hyperlapse.integrations.vllm.command import DETAIL_VARIABLE

    if not (os.environ.get("HYPERLAPSE_RUN_DIR") and os.environ.get(DETAIL_VARIABLE)):
        return None
    from hyperlapse.shim._core import core

    if not core().lib.hl_device_facts_of(0):
        return None  # a run without devices: only its clock is virtual
    return "hyperlapse.integrations.vllm.virtual_platform.VirtualPlatform"


def warn_of_foreign_worker(worker_class: str) -> None:
    """Says loudly that a server in a run has another worker than ours: its results mean nothing."""
    if not os.environ.get("HYPERLAPSE_RUN_DIR") or worker_class.startswith("hyperlapse."):
        return
    from hyperlapse.shim._core import core

    print(
        f"hyperlapse: WARNING: this vLLM server has the worker {worker_class!r}, not Hyperlapse's: sampled ids are garbage "
        "and attention is not priced. Leave --worker-cls out",
        file=sys.stderr,
        flush=True,
    )
    core().lib.hl_report_event(b"foreign-worker", worker_class.encode())
