"""Which CUDA graph a step runs in, and how many tokens it is padded to, without a model runner.

Why: the step worker has no model and no captured graphs, but its batches must be padded as the real runner pads them.
The profile holds the candidates that vLLM's own dispatcher has for this configuration (`CudaGraphManager` in model runner
V2, `CudagraphDispatcher` in V1); what is left is to pick the first that fits, which this module does. Tests compare it
with the engine's own answer for every size.

It must never invent a candidate: an empty table means that everything runs without graphs. Importing the manager into
the step worker was rejected: it pulls in the attention backends, seconds of start-up for eight lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Candidate:
    """A captured graph. mode: full or piecewise; requests and uniform: None is any number (vLLM's descriptor)."""

    mode: str
    tokens: int
    requests: int | None
    uniform: int | None

    def fits(self, rows: int, tokens: int, uniform: int | None) -> bool:
        return (
            (self.uniform is None or self.uniform == uniform)
            and (self.requests is None or self.requests >= rows)
            and self.tokens >= tokens
        )


class GraphTable:
    """Candidates by token count, in the engine's order of preference."""

    __slots__ = ("_by_tokens",)

    def __init__(self, by_tokens: Sequence[Sequence[Candidate]]) -> None:
        self._by_tokens = tuple(tuple(candidates) for candidates in by_tokens)

    def dispatch(self, rows: int, tokens: int, uniform: int | None) -> tuple[str, int]:
        """(graph mode, padded tokens) of a step."""
        if 0 < tokens < len(self._by_tokens):
            for candidate in self._by_tokens[tokens]:
                if candidate.fits(rows, tokens, uniform):
                    return candidate.mode, candidate.tokens
        return "none", tokens

    def to_json(self) -> list[dict[str, Any]]:
        """Runs of equal lists: each entry holds for the token counts after the previous entry's `up_to`."""
        runs: list[dict[str, Any]] = []
        for tokens, candidates in enumerate(self._by_tokens):
            plain = [asdict(candidate) for candidate in candidates]
            if runs and runs[-1]["candidates"] == plain:
                runs[-1]["up_to"] = tokens
            else:
                runs.append({"up_to": tokens, "candidates": plain})
        return runs

    @classmethod
    def from_json(cls, runs: Sequence[dict[str, Any]]) -> GraphTable:
        by_tokens: list[tuple[Candidate, ...]] = []
        for run in runs:
            candidates = tuple(Candidate(**plain) for plain in run["candidates"])
            by_tokens.extend([candidates] * (run["up_to"] + 1 - len(by_tokens)))
        return cls(by_tokens)


def manager_table(manager: Any) -> GraphTable:
    """From the CudaGraphManager of model runner V2, whose candidates come by token count, the most preferred first. 0.32
    keeps them by (tokens, active LoRA adapters); LoRA and microbatches are refused elsewhere.
    """
    candidates = manager._candidates
    if isinstance(candidates, dict):
        longest = max((tokens for tokens, _ in candidates), default=-1)
        candidates = [
            [desc for desc in candidates.get((tokens, 0), ()) if desc.num_ubatches == 1]
            for tokens in range(longest + 1)
        ]
    return GraphTable(
        [
            [
                Candidate(graph_name(desc.cg_mode), desc.num_tokens, desc.num_reqs, desc.uniform_token_count)
                for desc in descs
            ]
            for descs in candidates
        ]
    )


def dispatcher_table(dispatcher: Any) -> GraphTable:
    """From the CudagraphDispatcher of model runner V1, asked for every size: it keeps no candidates."""
    by_tokens: list[list[Candidate]] = [[]]
    for tokens in range(1, (dispatcher.compilation_config.max_cudagraph_capture_size or 0) + 1):
        decode = dispatcher_graph(dispatcher, tokens, decode=True)
        mixed = dispatcher_graph(dispatcher, tokens, decode=False)
        found = [Candidate(*mixed, requests=None, uniform=None)]
        if decode != mixed:
            found.insert(0, Candidate(*decode, requests=None, uniform=1))
        by_tokens.append([candidate for candidate in found if candidate.mode != "none"])
    return GraphTable(by_tokens)


def dispatcher_graph(dispatcher: Any, tokens: int, *, decode: bool) -> tuple[str, int]:
    """(graph mode, padded tokens) that the dispatcher picks. decode: every sequence has one token."""
    mode, desc = dispatcher.dispatch(num_tokens=tokens, uniform_decode=decode, has_lora=False)
    return graph_name(mode), int(desc.num_tokens)


def graph_name(mode: Any) -> str:
    """VLLM's CUDAGraphMode of one batch (FULL, PIECEWISE, NONE) as the annotation writes it."""
    return str(mode.name).lower()
