"""What the workers need to know of vLLM's model runner V1 (vllm/v1/worker/gpu_model_runner.py): the only one until 0.19,
0.23's for mixtures of experts and quantised models, and 0.32's with VLLM_USE_V2_MODEL_RUNNER=0.

Why: graphs, their dispatcher and the result of a step differ between the two model runners; runner_v2.py has the same
functions for the other. It must never reach into the runner where its result or its dispatcher tells as much.

Rows of a step are in the order of the runner's persistent batch, which only its result tells. Which rows hold an id that
counts is known to both sides: a difference is an error, and not an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput

from hyperlapse.integrations.vllm.composition import Step
from hyperlapse.integrations.vllm.dispatch import GraphTable, dispatcher_graph, dispatcher_table
from hyperlapse.integrations.vllm.outputs import fill
from hyperlapse.integrations.vllm.sampler import Sampled


class SampledOutput(AsyncModelRunnerOutput):  # type: ignore[misc]  # vLLM is not installed where mypy runs
    """The stock runner's output with the values that its sampler kernels would have written."""

    def __init__(self, output: Any, sampled: Sampled, ended: Callable[[], None]) -> None:
        self._output = output
        self._sampled = sampled
        self._ended = ended

    def get_output(self) -> Any:
        result = self._output.get_output()
        self._ended()
        give(result, self._sampled)
        return result


def later(output: Any, sampled: Sampled, ended: Callable[[], None]) -> Any | None:
    """The step's result with these values, where the engine fetches it later; None where it has it already."""
    return SampledOutput(output, sampled, ended) if isinstance(output, AsyncModelRunnerOutput) else None


def give(output: Any, sampled: Sampled) -> None:
    """Puts these values into the ModelRunnerOutput of a step that has ended. Raises RuntimeError where the runner thinks
    otherwise about which rows hold an id that counts.
    """
    values = sampled.in_order(output.req_ids)
    for request_id, stock, ours in zip(output.req_ids, output.sampled_token_ids, values.ids, strict=True):
        if bool(stock) != bool(ours):
            raise RuntimeError(
                f"request {request_id} has {len(stock)} ids in this step for vLLM's model runner, and {len(ours)} for "
                "Hyperlapse: please report it, with the flags and the requests"
            )
    fill(output, values)


def graph_table(model_runner: Any) -> GraphTable:
    """The graphs of a model runner."""
    return dispatcher_table(model_runner.cudagraph_dispatcher)


def graph_of(model_runner: Any, step: Step) -> tuple[str, int]:
    """(graph mode, padded tokens): what the runner's dispatcher answers for this step. It has no state that this changes."""
    return dispatcher_graph(
        model_runner.cudagraph_dispatcher, step.tokens, decode=step.uniform_tokens(prefills_too=True) == 1
    )
