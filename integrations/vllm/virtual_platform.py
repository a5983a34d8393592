"""The worker of a program that makes its own `LLM()` in a run, through vLLM's platform plugins.

Why: `vllm serve` is told its worker on its command line, a Python script is not; on the stock worker sampled ids are
garbage and attention has no price. vLLM asks its platform to resolve the worker class. So for programs that
`hyperlapse run` could not adapt the platform is vLLM's own CUDA platform, with this one answer of ours.

It must never answer anything else. Changing the default of EngineArgs was rejected: that would be a patch, and other ways
to make a configuration go round it.
"""

from __future__ import annotations

import os
from typing import Any

from vllm.platforms.cuda import CudaPlatform

from hyperlapse.integrations.vllm.command import DETAIL_VARIABLE, WORKERS


class VirtualPlatform(CudaPlatform):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """VLLM's CUDA platform, on virtual devices."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        parallel, load = vllm_config.parallel_config, vllm_config.load_config
        if parallel.worker_cls == "auto":
            parallel.worker_cls = WORKERS[os.environ[DETAIL_VARIABLE]]
        if load.load_format == "auto":
            load.load_format = "dummy"
        super().check_and_update_config(vllm_config)
