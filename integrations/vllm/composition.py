"""What a step computes: from the scheduler's output to a batch composition, and what its requests are about.

Why: device time depends on which sequences a step holds, and only the engine's scheduler knows. Both workers use this
module, so that both details price the same batch. It keeps of each request only what its later steps need.

It must never decide anything the scheduler decides, and never import the engine: it reads attributes of vLLM's
SchedulerOutput, so that its rules can be tested without one.

The grammar of the text is documented in docs/batch-composition.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from hyperlapse.integrations.vllm.constraints import Constraints
from hyperlapse.integrations.vllm.versions import asked_logprobs


@dataclass(frozen=True, slots=True)
class Step:
    """One step, fewest tokens first, as model runner V2 sorts its batch (the price is the same in any order).

    new[i] tokens are computed for request_ids[i] over context[i] tokens that are already in its KV cache; samples[i]
    says whether its sampled token counts (false for a prefill chunk that is not the last).
    """

    request_ids: list[str]
    new: list[int]
    context: list[int]
    samples: list[bool]

    @property
    def tokens(self) -> int:
        return sum(self.new)

    def uniform_tokens(self, prefills_too: bool) -> int | None:
        """Tokens of every request when all have the same number, else None: what vLLM picks graphs for decoding by.
        prefills_too: for any batch (versions.prefills_are_uniform), not only where each has one token over context.
        """
        if self.new[0] != self.new[-1]:  # sorted: first and last are the extremes
            return None
        return self.new[0] if prefills_too or (self.new[0] == 1 and all(self.context)) else None

    def text(self, graph: str, padded_tokens: int, prompt_rows: int = 0) -> bytes:
        """The annotation. graph: full, piecewise or none; rows are those that logits are computed for: one of each
        request, because vLLM samples unfinished prefill chunks too and drops the result, and prompt_rows for
        log-probabilities of prompts.
        """
        parts: list[str] = []
        previous: tuple[int, int] | None = None
        count = 0
        for pair in zip(self.new, self.context, strict=True):
            if pair == previous:
                count += 1
                continue
            if previous is not None:
                parts.append(_folded(previous, count))
            previous, count = pair, 1
        if previous is not None:
            parts.append(_folded(previous, count))
        rows = min(len(self.new) + prompt_rows, max(padded_tokens, self.tokens))
        head = f"v1 graph={graph} tokens={padded_tokens} rows={rows} seqs="
        return (head + ",".join(parts)).encode("ascii")


def _folded(pair: tuple[int, int], count: int) -> str:
    return f"{pair[0]}:{pair[1]}" if count == 1 else f"{pair[0]}:{pair[1]}x{count}"


@dataclass(slots=True)
class SequenceState:
    """What a request's later steps need to know of it.

    prefill_tokens: tokens to compute before the first id that counts; prompt_tokens: those of the prompt; last_token: its
    last id; twin: its number among the requests with the same prompt that live at the same time (the choices of n > 1);
    logprobs, prompt_logprobs: how many are asked for (None: none, -1: all); logprob_ids: ids whose log-probabilities are
    asked for; prompt: its ids, kept only where prompt_logprobs needs them.
    """

    prefill_tokens: int
    prompt_hash: int
    twin: int
    prompt_tokens: int
    last_token: int | None = None
    constraints: Constraints = field(default_factory=Constraints)
    logprobs: int | None = None
    logprob_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    prompt: Sequence[int] = ()
    _given: dict[int, int] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.prompt_hash + self.twin * 0x27D4EB2F

    def scores_prompt(self, before: int) -> bool:
        """True when log-probabilities of the prompt are computed in a step that begins after so many tokens. A request
        that was preempted after its prompt has given them before.
        """
        return (
            self.prompt_logprobs is not None
            and before < self.prompt_tokens
            and self.prefill_tokens == self.prompt_tokens
        )

    def remember(self, position: int, token: int) -> None:
        """Keeps an id that was given, for requests that forbid sequences of ids."""
        if self.constraints.phrases:
            self._given[position] = token

    def history(self, position: int) -> list[int]:
        """The ids given before this position, without gaps, as far as they were kept."""
        return [self._given[at] for at in range(self.prompt_tokens, position) if at in self._given]


class Sequences:
    """The requests that the scheduler has sent to this worker and not yet taken back."""

    __slots__ = ("_known", "_preempted", "_twins", "scored")

    def __init__(self) -> None:
        self._known: dict[str, SequenceState] = {}
        self._preempted: dict[str, SequenceState] = {}  # they come back, and go on where they were
        self._twins: dict[int, set[int]] = {}  # prompt hash -> numbers in use
        self.scored: set[str] = set()  # the requests that ask for log-probabilities

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, request_id: str) -> SequenceState:
        return self._known[request_id]

    def update(self, output: Any) -> None:
        """Applies a SchedulerOutput: what finished or was preempted goes, what is new (or resumed) comes.

        Model runner V2 gets a resumed request as a new one, whose `prefill_token_ids` are the prompt and everything
        that was generated before the preemption; V1 gets it among those that it knows.
        """
        for request_id in output.finished_req_ids:
            self._forget(request_id)
        for request_id in output.preempted_req_ids or ():
            if request_id in self._known:
                self._preempted[request_id] = self._known.pop(request_id)
        for request in output.scheduled_new_reqs:
            state = self._preempted.pop(request.req_id, None)
            if state is None:
                self._forget(request.req_id)
                state = self._new_state(request)
            state.prefill_tokens = _tokens_to_prefill(request)
            self._known[request.req_id] = state
        self._resume(output.scheduled_cached_reqs)

    def _resume(self, cached: Any) -> None:
        """What model runner V1 computes again of a preempted request: its prompt, and its output as far as the scheduler
        has it (_update_states in vllm/v1/worker/gpu_model_runner.py).
        """
        for request_id in getattr(cached, "resumed_req_ids", ()):
            state = self._preempted.pop(request_id, None)
            if state is not None:
                self._known[request_id] = state
            given = cached.num_output_tokens[cached.req_ids.index(request_id)]
            known = self._known[request_id]
            known.prefill_tokens = known.prompt_tokens + min(given, len(cached.all_token_ids[request_id]))

    def _new_state(self, request: Any) -> SequenceState:
        prompt: Sequence[int] = request.prompt_token_ids or ()
        params = request.sampling_params
        prompt_hash = _hash(prompt)
        state = SequenceState(
            prefill_tokens=_tokens_to_prefill(request),
            prompt_hash=prompt_hash,
            twin=self._next_twin(prompt_hash),
            prompt_tokens=len(prompt),
            last_token=prompt[-1] if prompt else None,
            constraints=Constraints.of_params(params),
        )
        if params is not None:
            state.logprobs = asked_logprobs(params)
            state.logprob_ids = tuple(getattr(params, "logprob_token_ids", None) or ())
            if params.prompt_logprobs is not None:
                state.prompt_logprobs, state.prompt = params.prompt_logprobs, tuple(prompt)
            if state.logprobs is not None or state.prompt_logprobs is not None:
                self.scored.add(request.req_id)
        return state

    def _next_twin(self, prompt_hash: int) -> int:
        used = self._twins.setdefault(prompt_hash, set())
        twin = next(number for number in range(len(used) + 1) if number not in used)
        used.add(twin)
        return twin

    def _forget(self, request_id: str) -> None:
        sequence = self._known.pop(request_id, None) or self._preempted.pop(request_id, None)
        self.scored.discard(request_id)
        if sequence is not None:
            used = self._twins[sequence.prompt_hash]
            used.discard(sequence.twin)
            if not used:
                del self._twins[sequence.prompt_hash]

    def prompt_logit_rows(self, step: Step) -> int:
        """Rows of logits that the stock runner computes besides those it samples from: all of a step, when one of its
        requests wants log-probabilities of its prompt.
        """
        if not self.scored:
            return 0
        pairs = zip(step.request_ids, step.context, strict=True)
        return step.tokens if any(self._known[request_id].scores_prompt(before) for request_id, before in pairs) else 0

    def compose(self, output: Any) -> Step:
        """The step's sequences. The scheduler has sent each of them before (or in this output)."""
        context: dict[str, int] = {request.req_id: request.num_computed_tokens for request in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        context.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        scheduled: Mapping[str, int] = output.num_scheduled_tokens
        request_ids = sorted(scheduled, key=scheduled.__getitem__)
        new = [scheduled[request_id] for request_id in request_ids]
        contexts = [context[request_id] for request_id in request_ids]
        known = self._known
        samples = [
            before + count >= known[request_id].prefill_tokens
            for request_id, count, before in zip(request_ids, new, contexts, strict=True)
        ]
        return Step(request_ids, new, contexts, samples)


def _tokens_to_prefill(request: Any) -> int:
    """Of a NewRequestData; model runner V1 is told the prompt alone."""
    prefill = getattr(request, "prefill_token_ids", None)
    return len(request.prompt_token_ids or () if prefill is None else prefill)


def _hash(prompt: Sequence[int]) -> int:
    """Of the prompt and not of the request's id: load generators make random ids, and two runs must agree."""
    return crc32(array("q", prompt).tobytes()) if prompt else 0
