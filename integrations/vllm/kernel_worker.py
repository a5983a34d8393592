"""The worker of `detail=kernel`: the stock GPU worker, told apart in two places.

Why: every launch of the real forward pass is intercepted and priced by the shim, but an attention kernel's price
depends on the batch, which no launch carries, and the sampler's result decides what the engine does next, though no
sampler runs. So this worker (a) annotates the launches of a step with its batch composition, padded size and graph mode
from the engine's own dispatcher, and (b) gives the sampled ids and their counts the values that a sampler could have
written: one valid id a sequence, none for an unfinished prefill chunk.

It must never skip or reorder anything the stock worker does. Writing into the device buffers from a hook inside the
model runner was rejected: wrapping the result that the worker returns needs less knowledge of the runner (runner_v1.py,
runner_v2.py).
"""

from __future__ import annotations

import functools
import gc
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from hyperlapse.integrations.vllm.compile_cache import COLD, compile_cache
from hyperlapse.integrations.vllm.composition import Sequences, Step
from hyperlapse.integrations.vllm.deep_gemm_kernels import install as install_deep_gemm_kernels
from hyperlapse.integrations.vllm.flashinfer_modules import install as install_flashinfer_modules
from hyperlapse.integrations.vllm.host_time import HostTime, charger
from hyperlapse.integrations.vllm.profile import EngineProfile, ensure_profile, profile_directory, say
from hyperlapse.integrations.vllm.unsupported import refuse_configuration
from hyperlapse.integrations.vllm.versions import check_version, compiled_something, runner
from hyperlapse.integrations.vllm.worker_common import (
    cascade_watch,
    device_facts,
    model_key,
    sampler_of,
    tell_run,
    virtual_device,
)
from hyperlapse.shim.step_log import StepLog


class KernelWorker(Worker):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """The stock worker on a virtual device. One per virtual device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_version()
        refuse_configuration(self.vllm_config, "kernel")
        install_flashinfer_modules()
        if self.model_config.quantization is not None:
            install_deep_gemm_kernels()
        self._runner = runner(self.vllm_config)
        self._tell_of_cascade = cascade_watch(self.vllm_config)
        self._charge_step = charger(HostTime.load().engine_step_ns)
        self._sequences, self._sampler = Sequences(), sampler_of(self.vllm_config)
        self._profile: EngineProfile | None = None
        self._pending: Step | None = None
        self._warming_up = False
        self._log: StepLog | None = None
        self._launched: tuple[int, bytes] = 0, b""
        from hyperlapse.shim._core import core

        binding = core()
        self._lib: Any = binding.lib
        self._null: Any = binding.ffi.NULL

    def init_device(self) -> None:
        # before this process takes any device memory: the profiling process must see an empty device
        profile, cached = ensure_profile(self.vllm_config, device_facts(virtual_device(self.local_rank)))
        self._profile = profile
        tell_run(
            {
                "kind": "worker",
                "detail": "kernel",
                "profile": "cached" if cached else "profiled",
                "profile_key": profile.key,
                "compile_cache": compile_cache(),
                "available_bytes": profile.available_bytes,
                "attention": profile.attention,
            }
        )
        # start-up collects garbage several times over, and a million objects of imported modules are none (vLLM freezes
        # them too, when it is ready); no tensor exists yet that this could keep
        gc.freeze()
        super().init_device()

    def determine_available_memory(self) -> int:
        found: int = super().determine_available_memory()
        profile = self._profile
        # the profile holds the least of all ranks, which is what the engine takes
        if profile is None or found == profile.available_bytes or (self.rank and found > profile.available_bytes):
            return found
        if compile_cache() == COLD:
            # this start finds at least some of what an earlier one compiled; with all caches empty the real compiler's
            # allocations were measured when the profile was made
            say(
                "the KV cache is sized as at a first start, with a cold compile cache, as the profile found it "
                f"({profile.available_bytes} bytes; {found} with the caches as they are)"
            )
            return profile.available_bytes
        if compiled_something():
            # the compile cache has been emptied since the profile was made; compiling takes memory while it is measured
            say(
                "WARNING: the compile cache was cold: the KV cache is sized as with a warm one, as the profile found it"
            )
            return profile.available_bytes
        differs = (
            f"memory profiling found {found} bytes for the KV cache, the kept profile has {profile.available_bytes}: the "
            f"step detail has another number of blocks. Delete {profile_directory() / profile.key}.json to have it made again"
        )
        say(f"WARNING: {differs}")
        self._lib.hl_report_event(b"memory-profile", differs.encode())
        return found

    def compile_or_warm_up_model(self) -> Any:
        self._warming_up = True
        try:
            return super().compile_or_warm_up_model()
        finally:
            self._warming_up = False
            device = virtual_device(self.local_rank)
            self._log = StepLog.of_run(device, detail="kernel", model_key=model_key(self.vllm_config))

    def execute_model(self, scheduler_output: Any) -> Any:
        self._sequences.update(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens == 0:
            return super().execute_model(scheduler_output)
        step = self._sequences.compose(scheduler_output)
        if self._charge_step is not None and not self._warming_up:
            self._charge_step()
        if self._tell_of_cascade is not None:
            self._tell_of_cascade(scheduler_output)
        self._annotate(step)
        self._pending = step
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        step, self._pending = self._pending, None
        try:
            output = super().sample_tokens(grammar_output)
        finally:
            self._lib.hl_annotate(self._null, 0, 0)
        if output is None or step is None:
            return output
        sampled = self._sampler.sample(step, self._sequences, grammar_output)
        result = self._runner.later(output, sampled, functools.partial(self._log_step, *self._launched))
        if result is not None:
            return result
        self._log_step(*self._launched)
        self._runner.give(output, sampled)
        return output

    def _annotate(self, step: Step) -> None:
        """Asks the engine's dispatcher what the model runner will ask it next."""
        graph, padded = self._runner.graph_of(self.model_runner, step)
        text = step.text(graph, padded)
        if self._lib.hl_annotate(text, len(text), padded) != 0:
            raise RuntimeError(f"the batch composition does not fit the annotation: {len(text)} bytes for one step")
        if self._log is not None:
            self._launched = self._lib.hl_clock_now_ns(), text

    def _log_step(self, launch_ns: int, batch: bytes) -> None:
        """The step's sampled ids are on the host."""
        if self._log is not None:
            self._log.add(launch_ns, self._lib.hl_clock_now_ns(), batch)
