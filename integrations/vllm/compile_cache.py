"""In which state the compilers' caches are when the engine measures its memory: the run says so, the profile makes it so.

Why: the engine compiles its model inside the region whose memory it measures. A first start with empty caches times
candidates of fused kernels on tensors of the largest batch, so its peak is higher and its KV cache smaller than at any
later start (Qwen3-14B, vLLM 0.23.0, a real H100: 17,815 blocks, then 18,038). `warm`: a server that was started before.
`cold`: a server at its very first start; the real compiler runs once, with every cache empty, and makes its own
allocations on the virtual device.

It must never empty a cache of the user's: cold caches are folders of their own, which go when the profile is made.
"""

from __future__ import annotations

import os
from pathlib import Path

from hyperlapse.shim.environment import COMPILE_CACHE_VARIABLE, COMPILE_CACHES

WARM, COLD = COMPILE_CACHES


def compile_cache() -> str:
    """The state that this run asks for. Raises ValueError for one that there is not."""
    state = os.environ.get(COMPILE_CACHE_VARIABLE) or WARM
    if state not in COMPILE_CACHES:
        raise ValueError(f"HYPERLAPSE_COMPILE_CACHE is {state!r}: choose one of {', '.join(COMPILE_CACHES)}")
    return state


def cold_environment(folder: Path) -> dict[str, str]:
    """What makes every compiler's cache an empty folder below this one: vLLM's own, and those that torch and Triton keep
    beside it (vLLM puts some of theirs below its own, which differs by version).
    """
    return {
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
