"""What a step computes: from the scheduler's output to a batch composition, and the ids its sampler would have written.

Why: device time depends on which sequences a step holds, and only the engine's scheduler knows. Both workers use this
module, so that both details price the same batch. It keeps of each request only what its later steps need.

It must never decide anything the scheduler decides, and never import the engine: it reads attributes of vLLM's
SchedulerOutput (0.23.0, as sent to model runner V2), so that its rules can be tested without one.

The grammar of the text is documented in docs/batch-composition.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Where made-up token ids come from: `low` <= id < `high`, and never one of `stops`.

    From an eighth to a half of the vocabulary: in byte-pair vocabularies the lowest ids are bytes and control tokens,
    the highest special tokens and padding.
    """

    low: int
    high: int
    stops: frozenset[int]

    @classmethod
    def of_vocabulary(cls, vocabulary_size: int, stops: Iterable[int]) -> TokenRange:
        return cls(vocabulary_size // 8, max(vocabulary_size // 2, vocabulary_size // 8 + 1), frozenset(stops))

    def token(self, seed: int, position: int, stops: frozenset[int] = frozenset()) -> int:
        """The id at this position of the sequence: a hash, so that no two positions share a pattern by accident."""
        mixed = (seed * 0x9E3779B1 + position * 0x85EBCA6B) & _MASK
        mixed ^= mixed >> 15
        mixed = (mixed * 0x2C1B3C6D) & _MASK
        mixed ^= mixed >> 12
        span = self.high - self.low
        token = self.low + mixed % span
        for _ in range(span):
            if token not in stops and token not in self.stops:
                return token
            token = self.low + (token - self.low + 1) % span
        raise ValueError(f"every id between {self.low} and {self.high} is a stop id of the request")


@dataclass(frozen=True, slots=True)
class Step:
    """One step in the engine's order (fewest tokens first, as model runner V2 sorts its batch).

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

    def uniform_tokens(self) -> int | None:
        """Tokens of every request when all have the same number, else None (vLLM's `get_uniform_token_count`)."""
        return self.new[0] if self.new[0] == self.new[-1] else None  # sorted: first and last are the extremes

    def text(self, graph: str, padded_tokens: int) -> bytes:
        """The annotation. graph: full, piecewise or none; rows are those that logits are computed for: all of them,
        because vLLM samples unfinished prefill chunks too and drops the result.
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
        head = f"v1 graph={graph} tokens={padded_tokens} rows={len(self.new)} seqs="
        return (head + ",".join(parts)).encode("ascii")


def _folded(pair: tuple[int, int], count: int) -> str:
    return f"{pair[0]}:{pair[1]}" if count == 1 else f"{pair[0]}:{pair[1]}x{count}"


class UnsupportedRequestError(RuntimeError):
    """A request that asks for values which kernels that do not run cannot give."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    """twin: its number among the requests with the same prompt that live at the same time (the choices of n > 1)."""

    prefill_tokens: int
    prompt_hash: int
    twin: int
    stops: frozenset[int]

    @property
    def seed(self) -> int:
        return self.prompt_hash + self.twin * 0x27D4EB2F


class Sequences:
    """The requests that the scheduler has sent to this worker and not yet taken back."""

    __slots__ = ("_known", "_preempted", "_tokens", "_twins")

    def __init__(self, tokens: TokenRange) -> None:
        self._tokens = tokens
        self._known: dict[str, _Sequence] = {}
        self._preempted: dict[str, _Sequence] = {}  # they come back, and go on where they were
        self._twins: dict[int, set[int]] = {}  # prompt hash -> numbers in use

    def __len__(self) -> int:
        return len(self._known)

    def update(self, output: Any) -> None:
        """Applies a SchedulerOutput: what finished or was preempted goes, what is new (or resumed) comes.

        Model runner V2 gets a resumed request as a new one, whose `prefill_token_ids` are the prompt and everything
        that was generated before the preemption.
        """
        for request_id in output.finished_req_ids:
            self._forget(request_id)
        for request_id in output.preempted_req_ids or ():
            if request_id in self._known:
                self._preempted[request_id] = self._known.pop(request_id)
        for request in output.scheduled_new_reqs:
            if request.prefill_token_ids is None:
                raise UnsupportedRequestError(
                    f"request {request.req_id} came without prefill_token_ids: the integration needs vLLM's model "
                    "runner V2 (do not set VLLM_USE_V2_MODEL_RUNNER=0)"
                )
            before = self._preempted.pop(request.req_id, None)
            if before is None:
                self._forget(request.req_id)
                prompt_hash = _hash(request.prompt_token_ids)
                twin = self._next_twin(prompt_hash)
            else:
                prompt_hash, twin = before.prompt_hash, before.twin
            self._known[request.req_id] = _Sequence(
                len(request.prefill_token_ids), prompt_hash, twin, _stops(request.sampling_params)
            )

    def _next_twin(self, prompt_hash: int) -> int:
        used = self._twins.setdefault(prompt_hash, set())
        twin = next(number for number in range(len(used) + 1) if number not in used)
        used.add(twin)
        return twin

    def _forget(self, request_id: str) -> None:
        sequence = self._known.pop(request_id, None) or self._preempted.pop(request_id, None)
        if sequence is not None:
            used = self._twins[sequence.prompt_hash]
            used.discard(sequence.twin)
            if not used:
                del self._twins[sequence.prompt_hash]

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

    def sampled(self, step: Step) -> list[list[int]]:
        """One made-up id for each request whose token counts, none for the others."""
        token = self._tokens.token
        known = self._known
        rows: list[list[int]] = []
        for request_id, count, before, counts in zip(
            step.request_ids, step.new, step.context, step.samples, strict=True
        ):
            sequence = known[request_id]
            rows.append([token(sequence.seed, before + count, sequence.stops)] if counts else [])
        return rows


def _hash(prompt: Sequence[int] | None) -> int:
    """Of the prompt and not of the request's id: load generators make random ids, and two runs must agree."""
    return crc32(array("q", prompt).tobytes()) if prompt else 0


def _stops(sampling_params: Any) -> frozenset[int]:
    if sampling_params is None:
        return frozenset()
    return frozenset(sampling_params.all_stop_token_ids) | frozenset(sampling_params.stop_token_ids or ())
