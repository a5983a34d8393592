"""Which CUDA graph a step runs in, and how many tokens it is padded to, without a model runner.

Why: the step worker has no model and no captured graphs, but its batches must be padded as the real runner pads them.
The profile holds the candidates that vLLM's own `CudaGraphManager` made for this configuration; what is left is to pick
the first that fits, which this module does. A test compares it with the engine's own answer for every size.

It must never invent a candidate: an empty table means that everything runs without graphs. Importing the manager into
the step worker was rejected: it pulls in the attention backends, seconds of start-up for eight lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hyperlapse.integrations.vllm.versions import graph_candidates


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

    @classmethod
    def of_manager(cls, manager: Any) -> GraphTable:
        """From vLLM's CudaGraphManager; None where the runner has none (no graphs)."""
        return cls(
            [
                [
                    Candidate(graph_name(desc.cg_mode), desc.num_tokens, desc.num_reqs, desc.uniform_token_count)
                    for desc in candidates
                ]
                for candidates in (graph_candidates(manager) if manager is not None else ())
            ]
        )


def graph_name(mode: Any) -> str:
    """VLLM's CUDAGraphMode of one batch (FULL, PIECEWISE, NONE) as the annotation writes it."""
    return str(mode.name).lower()
