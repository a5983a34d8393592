"""What the driver and cuBLAS take of a card that nobody measured, derived from the one that was (an H100).

Why: an engine's block count depends on it, and only one card was measured part by part. Everything here follows from facts
of the device, so one formula serves every product, and each recorded block count of another card tests it.

* `first_kernel_bytes` and `stream_bytes` go with the threads that a device can hold at once (processors x threads of each),
  as the context does, for which the driver reserves memory of each thread.
* `cublas_bytes` is two of the workspaces that cuBLAS's documentation gives for the architecture, and 2 MiB.
* A kernel's code and the graphs are the measured card's.

That the first two go with the threads is a hypothesis, kept because of three (neither, the first, both) it is nearest to
the one recorded block count of another card (benchmarks/kv_blocks.py --recorded prints all three). It must never be
tuned to a count: nothing in it is free.
"""

from __future__ import annotations

from hyperlapse.shim import devices
from hyperlapse.shim.devices import DeviceFacts

MEASURED = "h100-sxm-80gb"
KIB, MIB = 1 << 10, 1 << 20

CUBLAS_WORKSPACE_BYTES = {9: 32 * MIB, 10: 32 * MIB, 12: 12 * MIB}
"""By compute capability's first number: the default that the cuBLAS documentation gives (cublasSetWorkspace: 32 MiB on
sm90 and sm100, 12 MiB on sm120), 4 MiB on every other.
"""
_OTHER_WORKSPACE_BYTES = 4 * MIB
_BESIDE_WORKSPACES_BYTES = 2 * MIB


def resident_threads(facts: DeviceFacts) -> int:
    """Threads that the device can hold at once."""
    return facts.multiprocessors * facts.max_threads_per_multiprocessor


def cublas_bytes(facts: DeviceFacts) -> int:
    workspace = CUBLAS_WORKSPACE_BYTES.get(facts.compute_major, _OTHER_WORKSPACE_BYTES)
    return 2 * workspace + _BESIDE_WORKSPACES_BYTES


def scaled_bytes(measured_bytes: int, facts: DeviceFacts) -> int:
    """A measured share that goes with the threads, on another device, in whole KiB."""
    base = devices.load(MEASURED).facts
    exact = measured_bytes * resident_threads(facts) / resident_threads(base)
    return round(exact / KIB) * KIB


def derived(facts: DeviceFacts) -> dict[str, int]:
    """The driver's figures of a device that was not measured, in bytes."""
    base = devices.load(MEASURED).facts
    return {
        "stream_bytes": scaled_bytes(base.stream_bytes, facts),
        "first_kernel_bytes": scaled_bytes(base.first_kernel_bytes, facts),
        "kernel_code_bytes": base.kernel_code_bytes,
        "cublas_bytes": cublas_bytes(facts),
        "graph_bytes": base.graph_bytes,
        "graph_node_bytes": base.graph_node_bytes,
    }
