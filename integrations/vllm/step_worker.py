"""The worker of `detail=step`: one launch a step, priced from the batch composition, and no model.

Why: nine tenths of the engine's time go into Python that launches kernels which do not exist. This worker answers the
engine as the stock one does, with the same output types at the same calls, and puts one launch on a stream instead of
a forward pass. Scheduler, KV-cache manager, engine loop and output path stay the engine's.

It must never import a model, an attention backend or Triton, nor touch CUDA or torch.distributed: they cost seconds of
start-up, and each of their threads costs microseconds at every jump of the clock. What the real worker would have found
out (KV-cache specs, available memory, block size, CUDA graphs) comes from a profile that the real worker made.

Follows vllm/v1/worker/gpu_worker.py and its model runners (gpu/model_runner.py, gpu_model_runner.py): `execute_model`
returns None, `sample_tokens` returns an AsyncModelRunnerOutput whose `get_output` waits for the device (or the result
itself without async scheduling).
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerBase

from hyperlapse.integrations.vllm.compile_cache import compile_cache
from hyperlapse.integrations.vllm.composition import Sequences, Step
from hyperlapse.integrations.vllm.host_time import HostTime, charger
from hyperlapse.integrations.vllm.outputs import fill
from hyperlapse.integrations.vllm.profile import EngineProfile, ensure_profile
from hyperlapse.integrations.vllm.unsupported import UnsupportedConfigurationError, refuse_configuration
from hyperlapse.integrations.vllm.versions import (
    check_version,
    compilation_times,
    model_runner_output,
    tell_place,
    user_chose_block_size,
)
from hyperlapse.integrations.vllm.virtual import CoreTimeline, Peers, StepTimeline
from hyperlapse.integrations.vllm.worker_common import (
    cascade_watch,
    device_facts,
    model_key,
    sampler_of,
    tell_run,
    virtual_device,
)
from hyperlapse.shim.step_log import StepLog


class StepOutput(AsyncModelRunnerOutput):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """The result of a step that may still be running."""

    def __init__(self, output: Any, timeline: StepTimeline, event: int) -> None:
        self._output = output
        self._timeline = timeline
        self._event = event

    def get_output(self) -> Any:
        self._timeline.wait(self._event)
        return self._output


class StepWorker(WorkerBase):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """A worker without a model. One per virtual device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_version()
        self._charge_step = charger(HostTime.load().engine_step_ns)
        self._tell_of_cascade = cascade_watch(self.vllm_config)
        self._pending: tuple[Step, int] | None = None

    # ----- start-up -----

    def init_device(self) -> None:
        refuse_configuration(self.vllm_config, "step")
        self.device = torch.device(
            "cuda", self.local_rank
        )  # what the thread that fetches results of a rank makes current
        tell_place(self.vllm_config, self.rank)
        self._virtual_device = virtual_device(self.local_rank)
        self._profile, cached = ensure_profile(self.vllm_config, device_facts(self._virtual_device))
        self._tell_profile(self._profile, cached)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:  # noqa: ARG002 - vLLM's signature
        cache = self.cache_config
        if not user_chose_block_size(cache):
            # the attention backend's choice; the executor asks the backends of loaded layers next, and there are none
            cache.block_size = self._profile.block_size
        self._sequences, self._sampler = Sequences(), sampler_of(self.vllm_config)
        key = model_key(self.vllm_config)
        log = StepLog.of_run(self._virtual_device, detail="step", model_key=key)
        self._timeline: StepTimeline = CoreTimeline(self._virtual_device, key, log, Peers.of(self.vllm_config))
        self._async = bool(self.scheduler_config.async_scheduling)

    def _tell_profile(self, profile: EngineProfile, cached: bool) -> None:
        tell_run(
            {
                "kind": "worker",
                "detail": "step",
                "profile": "cached" if cached else "profiled",
                "profile_key": profile.key,
                "compile_cache": compile_cache(),
                "available_bytes": profile.available_bytes,
                "attention": profile.attention,
                "weights_bytes": profile.weights_bytes,
                "activation_bytes": profile.activation_bytes,
            }
        )

    def get_kv_cache_spec(self) -> dict[str, Any]:
        return self._profile.kv_cache_specs()

    def determine_available_memory(self) -> int:
        return self._profile.available_bytes

    def update_max_model_len(self, max_model_len: int) -> None:
        self.model_config.max_model_len = max_model_len

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Asked for by versions that choose a layout at start-up."""
        return list(self._profile.layouts)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        self._graphs = self._profile.graph_table()
        self.cache_config.num_gpu_blocks = kv_cache_config.num_blocks
        if self.cache_config.block_size != self._profile.block_size:
            # seen in the source of 0.19.0: where no layer is loaded the executor takes 16 over what load_model chose
            raise UnsupportedConfigurationError(
                f"the attention backend wants KV-cache blocks of {self._profile.block_size} tokens, and this version of vLLM "
                f"takes {self.cache_config.block_size} with --detail step: give --block-size {self._profile.block_size}"
            )

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None:
        """Asked for until 0.15."""
        self.cache_config.num_gpu_blocks = num_gpu_blocks
        self.cache_config.num_cpu_blocks = num_cpu_blocks

    def compile_or_warm_up_model(self) -> Any:
        return compilation_times()

    def get_supported_tasks(self) -> tuple[str, ...]:
        return tuple(self._profile.tasks)

    # ----- every step -----

    def execute_model(self, scheduler_output: Any) -> Any:
        sequences = self._sequences
        sequences.update(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens == 0:
            return EMPTY_MODEL_RUNNER_OUTPUT
        step = sequences.compose(scheduler_output)
        if self._tell_of_cascade is not None:
            self._tell_of_cascade(scheduler_output)
        graph, tokens = self._graphs.dispatch(
            len(step.new),
            scheduler_output.total_num_scheduled_tokens,
            step.uniform_tokens(self._profile.uniform_prefills),
        )
        if self._charge_step is not None:
            self._charge_step()
        text = step.text(graph, tokens, sequences.prompt_logit_rows(step))
        self._pending = step, self._timeline.launch(text, tokens, awaited=self.is_driver_worker)
        return None

    def sample_tokens(self, grammar_output: Any) -> Any:
        if self._pending is None:
            return None  # as the stock runner: the engine then raises what execute_model failed with
        step, event = self._pending
        self._pending = None
        if not self.is_driver_worker:
            return None  # the engine takes the first rank's result; vLLM's other ranks return theirs to nobody
        output = model_runner_output(step.request_ids)
        fill(output, self._sampler.sample(step, self._sequences, grammar_output))
        result = StepOutput(output, self._timeline, event)
        return result if self._async else result.get_output()

    def take_draft_token_ids(self) -> None:
        return None

    def execute_dummy_batch(self) -> None:
        raise NotImplementedError("data parallelism is not supported with --detail step yet: use --detail kernel")

    # ----- control -----

    def check_health(self) -> None:
        return None

    def reset_mm_cache(self) -> None:
        return None

    def reset_encoder_cache(self) -> None:
        return None

    def get_kv_connector_handshake_metadata(self) -> None:
        return None

    def synchronize_device(self) -> None:
        return None

    def shutdown(self) -> None:
        return None
