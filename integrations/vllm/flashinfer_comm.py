"""FlashInfer's all-reduce (and its fusion with the norm behind it) is declined, as on a host whose GPUs no switch joins.

Why: its kernels are compiled by nvcc for the topology that they find, over multicast memory that a library with a CUDA
runtime of its own sets up. vLLM (0.23 and later) asks for a workspace when it starts, and takes its own all-reduce, torch's
or NCCL's when there is none: so the workspace is refused, in the words of a card that lacks multicast, and the run counts
that the card might have taken another kernel.

It must never refuse where vLLM would not go on without it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

_EVENT = (
    b"FlashInfer's all-reduce is declined, and the engine takes its own kernel or NCCL's: a card with NVSwitch may be faster. "
    b"VLLM_ALLREDUCE_USE_FLASHINFER=0 on the card makes both the same"
)


def decline_all_reduce() -> None:
    """In this process, where FlashInfer has an all-reduce; calling it again changes nothing."""
    if importlib.util.find_spec("flashinfer.comm") is None:
        return
    from flashinfer import comm

    if not hasattr(comm, "create_allreduce_fusion_workspace") or getattr(comm, "_hyperlapse", False):
        return

    def create(*_: Any, backend: str = "", **__: Any) -> Any:
        from hyperlapse.shim._core import core

        core().lib.hl_report_event(b"flashinfer-all-reduce", _EVENT)
        raise RuntimeError(f"FlashInfer's all-reduce ({backend}) needs multicast memory, which is not emulated")

    comm.create_allreduce_fusion_workspace = create
    comm._hyperlapse = True
