"""What the workers need to know of vLLM's model runner V2 (vllm/v1/worker/gpu/): since 0.23 for some models, since 0.32
for nearly all.

Why: graphs, their dispatcher and the result of a step differ between the two model runners; runner_v1.py has the same
functions for the other. It must never reach into the runner where its result or its dispatcher tells as much.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.gpu.async_utils import AsyncOutput
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from hyperlapse.integrations.vllm.composition import Step
from hyperlapse.integrations.vllm.dispatch import GraphTable, graph_name, manager_table
from hyperlapse.integrations.vllm.outputs import fill
from hyperlapse.integrations.vllm.sampler import Sampled
from hyperlapse.integrations.vllm.versions import prefills_are_uniform


class SampledOutput(AsyncModelRunnerOutput):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """The stock runner's output with the values that its sampler kernels would have written."""

    def __init__(self, output: Any, sampled: Sampled, ended: Callable[[], None]) -> None:
        self._output = output
        self._sampled = sampled
        self._ended = ended

    def get_output(self) -> Any:
        output = self._output
        output.copy_event.synchronize()  # the copies are done: what is written now stays
        self._ended()
        for row, ids in enumerate(self._sampled.ids):
            output.num_sampled_tokens_np[row] = len(ids)
            output.sampled_token_ids[row, : len(ids)] = ids
        result = output.get_output()
        give(result, self._sampled)
        return result


def later(output: Any, sampled: Sampled, ended: Callable[[], None]) -> Any | None:
    """The step's result with these values, where the engine fetches it later; None where it has it already."""
    return SampledOutput(output, sampled, ended) if isinstance(output, AsyncOutput) else None


def give(output: Any, sampled: Sampled) -> None:
    """Puts these values into the ModelRunnerOutput of a step that has ended."""
    fill(output, sampled)


def graph_table(model_runner: Any) -> GraphTable:
    """The graphs of a model runner; it has no manager where it has no graphs."""
    manager = model_runner.cudagraph_manager
    return manager_table(manager) if manager is not None else GraphTable([])


def graph_of(model_runner: Any, step: Step) -> tuple[str, int]:
    """(graph mode, padded tokens): what the runner's manager answers for this step. It has no state that this changes."""
    manager, tokens = model_runner.cudagraph_manager, step.tokens
    if manager is None:
        return "none", tokens
    desc = dispatch(manager, len(step.new), tokens, step.uniform_tokens(prefills_are_uniform("V2")))
    return graph_name(desc.cg_mode), desc.num_tokens


@functools.cache
def _dispatches_by_lora() -> bool:
    return "num_active_loras" in inspect.signature(CudaGraphManager.dispatch).parameters


def dispatch(manager: Any, rows: int, tokens: int, uniform: int | None) -> Any:
    """The descriptor that the engine's CudaGraphManager picks for this batch."""
    more = (0,) if _dispatches_by_lora() else ()
    return manager.dispatch(rows, tokens, uniform, *more)
