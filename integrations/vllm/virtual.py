"""The step worker's stream on the virtual timeline.

Why: one place that speaks to the core library, so that the worker is plain Python and its tests need no library.
It must never wait except in `wait`: a launch returns at once, priced or not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

from hyperlapse.shim.step_log import StepLog

_LAUNCH_STEP = 6  # HL_LAUNCH_STEP in csrc/core/price.h


@dataclass(frozen=True, slots=True)
class Peers:
    """Workers that make each step together. group: their number in the run, the same for each of them; ranks: how many."""

    group: int
    ranks: int

    @classmethod
    def of(cls, vllm_config: Any) -> Peers | None:
        """Those of a tensor-parallel group; None where a step has one GPU."""
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size == 1:
            return None
        # replicas of a dense model think that they are alone (rank 0 of 1), but keep their index
        replica = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
        name = f"{vllm_config.instance_id}|{replica}"
        return cls(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"), parallel.tensor_parallel_size)


class StepTimeline(Protocol):
    """Where a step worker puts its steps."""

    def launch(self, text: bytes, tokens: int, *, awaited: bool = True) -> int:
        """Puts one step on the stream; the event that is recorded behind it, 0 where nobody awaits it."""

    def wait(self, event: int) -> None:
        """Returns at the virtual instant of the event, which is then no longer valid."""


class CoreTimeline:
    """A stream of the core library's timeline. device: the virtual device's ordinal in the run; model_key: the name
    under which the predictor finds the model; log: where each step is written when it has ended, if anywhere; peers: the
    workers that make each step together, None for one alone: a step then begins when the last of them has launched it, and
    ends for all.
    """

    def __init__(self, device: int, model_key: str, log: StepLog | None = None, peers: Peers | None = None) -> None:
        from hyperlapse.shim._core import core

        binding = core()
        self._lib: Any = binding.lib
        self._ffi: Any = binding.ffi
        self._stream = self._lib.hl_timeline_stream_create(device, True)
        if not self._stream:
            raise RuntimeError(f"no stream left on virtual device {device}, or no such device in this run")
        self._name = self._ffi.new("char[]", model_key.encode())  # the core keeps the pointer: it lives with us
        self._step = self._ffi.new("hl_launch *")
        self._step.kind = _LAUNCH_STEP
        self._step.device = device
        self._step.name = self._name
        self._free: list[int] = []
        self._log = log
        self._logged: dict[int, tuple[int, bytes]] = {}  # by event: when the step was launched, and its batch
        self._instant: Any = self._ffi.new("int64_t *")
        self._peers, self._steps = peers, 0

    def launch(self, text: bytes, tokens: int, *, awaited: bool = True) -> int:
        lib = self._lib
        if lib.hl_annotate(text, len(text), tokens) != 0:
            raise RuntimeError(f"the batch composition does not fit the annotation: {len(text)} bytes for one step")
        if self._peers is None:
            lib.hl_timeline_launch(self._stream, self._step)
        else:
            lib.hl_timeline_rendezvous(self._stream, self._peers.group, self._steps, self._peers.ranks, self._step)
        self._steps += 1
        lib.hl_annotate(self._ffi.NULL, 0, 0)
        if not awaited:
            return 0
        event: int = self._free.pop() if self._free else lib.hl_timeline_event_create()
        if not event:
            raise RuntimeError("no event left in the shared segment")
        lib.hl_timeline_record(event, self._stream)
        if self._log is not None:
            self._logged[event] = lib.hl_clock_now_ns(), text
        return event

    def wait(self, event: int) -> None:
        self._lib.hl_timeline_event_wait(event)
        if self._log is not None:
            launch_ns, batch = self._logged.pop(event)
            self._lib.hl_timeline_event_instant_ns(event, self._instant)
            self._log.add(launch_ns, self._instant[0], batch)
        self._free.append(event)
