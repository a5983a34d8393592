"""Values of the virtual sampler in vLLM's output types.

Why: both workers hand the same values to the engine, and only here are its types known (vllm/v1/outputs.py, 0.12.0 to
0.32.0: LogprobsLists of numpy arrays for sampled ids, LogprobsTensors for prompts).
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from hyperlapse.integrations.vllm.logprobs import Rows
from hyperlapse.integrations.vllm.sampler import Sampled


def fill(output: Any, sampled: Sampled) -> None:
    """Gives a ModelRunnerOutput the ids and the log-probabilities that its requests ask for, in the order of its rows."""
    if output.req_ids != sampled.request_ids:
        sampled = sampled.in_order(output.req_ids)
    output.sampled_token_ids = sampled.ids
    if sampled.scores is not None:
        output.logprobs = LogprobsLists(sampled.scores.ids, sampled.scores.values, sampled.scores.ranks)
    if sampled.prompts:
        output.prompt_logprobs_dict = {request_id: _tensors(rows) for request_id, rows in sampled.prompts.items()}
    # 0.32.0's scores of given ids (`prompt_logprob_token_ids`, refused over HTTP): nobody has written them
    for scores in getattr(output, "prompt_token_id_logprobs_dict", {}).values():
        scores.fill_(float("nan"))


def _tensors(rows: Rows) -> Any:
    return LogprobsTensors(torch.from_numpy(rows.ids), torch.from_numpy(rows.values), torch.from_numpy(rows.ranks))
