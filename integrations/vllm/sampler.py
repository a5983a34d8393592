"""The virtual sampler: what a step's sampler would have written, for both details.

Why: no kernel runs, so nobody computes logits; but the ids of a step decide what the engine does next, and a client that
asks for log-probabilities or structured output needs an answer. Both workers ask this module, so that both give the same
ids for the same requests.

It must be a function of what the request says (prompt, parameters, position) and of the grammar's mask, never of time,
order or request ids: two runs must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperlapse.integrations.vllm import grammar, logprobs
from hyperlapse.integrations.vllm.composition import Sequences, SequenceState, Step
from hyperlapse.integrations.vllm.vocabulary import Vocabulary, mix

_ALTERNATIVES = 0x2545F491


def masks_of(grammar_output: Any) -> dict[str, Any]:
    """Request id -> its row of the bitmask, from vLLM's GrammarOutput (or None)."""
    if grammar_output is None:
        return {}
    return dict(zip(grammar_output.structured_output_request_ids, grammar_output.grammar_bitmask, strict=True))


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step gives. request_ids: the requests in the order of the rows; ids: one for each request whose token counts,
    none for the others; scores: a row of log-probabilities for each request, when one of them asks; prompts: by request, a
    row for each token of its prompt but the first, when its prompt ends in this step.
    """

    request_ids: list[str]
    ids: list[list[int]]
    scores: logprobs.Rows | None = None
    prompts: Mapping[str, logprobs.Rows] = field(default_factory=dict)

    def in_order(self, request_ids: Sequence[str]) -> Sampled:
        """The same with the rows of these requests, which must be all of them. Raises KeyError for another one."""
        rows = {request_id: row for row, request_id in enumerate(self.request_ids)}
        order = [rows[request_id] for request_id in request_ids]
        scores = self.scores
        if scores is not None:
            scores = logprobs.Rows(scores.ids[order], scores.values[order], scores.ranks[order])
        return Sampled(list(request_ids), [self.ids[row] for row in order], scores, self.prompts)


class VirtualSampler:
    """Samples for the sequences of one worker."""

    __slots__ = ("_vocabulary",)

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def sample(self, step: Step, sequences: Sequences, grammar_output: Any = None) -> Sampled:
        """grammar_output: vLLM's GrammarOutput for this step, or None."""
        ids = self._ids(step, sequences, masks_of(grammar_output))
        if not sequences.scored:
            return Sampled(step.request_ids, ids)
        return Sampled(step.request_ids, ids, self._scores(step, sequences, ids), self._prompts(step, sequences))

    def _ids(self, step: Step, sequences: Sequences, masks: Mapping[str, Any]) -> list[list[int]]:
        rows: list[list[int]] = []
        for request_id, count, before, counts in zip(
            step.request_ids, step.new, step.context, step.samples, strict=True
        ):
            if not counts:
                rows.append([])
                continue
            state = sequences[request_id]
            token = self._token(state, before + count, masks.get(request_id))
            state.remember(before + count, token)
            rows.append([token])
        return rows

    def _token(self, state: SequenceState, position: int, mask: Any) -> int:
        vocabulary, constraints = self._vocabulary, state.constraints
        produced = position - state.prompt_tokens
        if produced < len(constraints.trace):
            return constraints.trace[produced]
        if mask is not None and not grammar.is_full(mask):
            return grammar.choose(
                vocabulary,
                constraints,
                mask,
                seed=state.seed,
                position=position,
                produced=produced,
                history=state.history(position),
            )
        pool: Sequence[int] = constraints.only or (
            vocabulary.pool_after(state.last_token) if produced == 0 else vocabulary.words
        )
        start = mix(state.seed, position) % len(pool)
        if not constraints.shapes:
            token = pool[start]
            if token not in constraints.stops:
                return token
        never = constraints.stops | vocabulary.stops | constraints.forbidden(state.history(position))
        for step in range(len(pool)):
            token = pool[(start + step) % len(pool)]
            if token not in never:
                return token
        return pool[start]  # all that may be chosen ends the request, or is banned: the request asked for it

    def _scores(self, step: Step, sequences: Sequences, ids: Sequence[Sequence[int]]) -> logprobs.Rows | None:
        states = [sequences[request_id] for request_id in step.request_ids]
        asked = [state.logprobs for state in states if state.logprobs is not None]
        if not asked:
            return None
        size = self._vocabulary.size
        count = size if -1 in asked else max(asked)
        taken = [row[0] if row else 0 for row in ids]
        starts = [
            mix(state.seed ^ _ALTERNATIVES, before + new)
            for state, before, new in zip(states, step.context, step.new, strict=True)
        ]
        rows = logprobs.top_rows(taken, starts, count, self._vocabulary.words, size)
        for index, state in enumerate(states):
            if state.logprob_ids:
                row, values = logprobs.rows_of(taken[index], state.logprob_ids, state.seed, size)
                rows.ids[index, : len(row)], rows.values[index, : len(row)] = row, values
        return rows

    def _prompts(self, step: Step, sequences: Sequences) -> dict[str, logprobs.Rows]:
        found: dict[str, logprobs.Rows] = {}
        for request_id, count, before in zip(step.request_ids, step.new, step.context, strict=True):
            state = sequences[request_id]
            if state.scores_prompt(before) and state.prompt_tokens <= before + count and state.prompt_tokens > 1:
                found[request_id] = self._prompt_rows(state, state.prompt_logprobs or 0)
        return found

    def _prompt_rows(self, state: SequenceState, wanted: int) -> logprobs.Rows:
        """The first token has no row: nothing stands before it."""
        size = self._vocabulary.size
        count = size if wanted == -1 else wanted
        starts = [mix(state.seed ^ _ALTERNATIVES, position) for position in range(1, len(state.prompt))]
        return logprobs.top_rows(state.prompt[1:], starts, count, self._vocabulary.words, size)
