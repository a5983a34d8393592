"""What the scheduler of vLLM sends, as far as the integration reads it; no engine is needed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest


class Scheduler:
    """Builds SchedulerOutputs as model runner V2 gets them (0.23.0), and V1 (0.19.0) where a test says so."""

    @staticmethod
    def new(
        request_id: str, prompt: Sequence[int], *, prefill: int | None = None, computed: int = 0, **params: Any
    ) -> Any:
        """A new (or resumed) request. prefill: tokens to prefill when more than the prompt."""
        sampling = {
            "num_logprobs": None,
            "logprob_token_ids": None,
            "prompt_logprobs": None,
            "stop_token_ids": [],
            "all_stop_token_ids": set(),
            "allowed_token_ids": None,
            "bad_words_token_ids": None,
            "logit_bias": None,
            "ignore_eos": False,
            "min_tokens": 0,
            "max_tokens": 100,
            **params,
        }
        return SimpleNamespace(
            req_id=request_id,
            prompt_token_ids=list(prompt),
            prefill_token_ids=[0] * (len(prompt) if prefill is None else prefill),
            num_computed_tokens=computed,
            sampling_params=SimpleNamespace(**sampling),
        )

    @classmethod
    def new_v1(cls, request_id: str, prompt: Sequence[int], **params: Any) -> Any:
        """A new request of model runner V1, which is not told what to prefill."""
        request = cls.new(request_id, prompt, **params)
        request.prefill_token_ids = None
        return request

    @staticmethod
    def resumed_v1(request_id: str, tokens: int, output: int, scheduled: int, computed: int = 0) -> Any:
        """A SchedulerOutput in which V1 gets a preempted request back. tokens: all that the scheduler has of it; output:
        those beyond the prompt, with the ones that are still on the way.
        """
        made = Scheduler.output({request_id: scheduled}, cached={request_id: computed})
        made.scheduled_cached_reqs.resumed_req_ids = {request_id}
        made.scheduled_cached_reqs.all_token_ids = {request_id: [0] * tokens}
        made.scheduled_cached_reqs.num_output_tokens = [output]
        return made

    @staticmethod
    def output(
        scheduled: dict[str, int],
        new: Sequence[Any] = (),
        cached: dict[str, int] | None = None,
        finished: Sequence[str] = (),
        preempted: Sequence[str] = (),
    ) -> Any:
        """scheduled: tokens by request, in the scheduler's order; cached: computed tokens of requests already known."""
        cached = cached or {}
        return SimpleNamespace(
            scheduled_new_reqs=list(new),
            scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_computed_tokens=list(cached.values())),
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            finished_req_ids=set(finished),
            preempted_req_ids=set(preempted),
        )


@pytest.fixture
def scheduler() -> type[Scheduler]:
    return Scheduler
