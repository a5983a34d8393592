"""What a request's sampling parameters demand of its ids, as far as ids that nobody computed can honour it.

Why: `allowed_token_ids`, bans and forced ids decide what a client gets back whatever the logits are, so they hold here
too. Temperatures, penalties and small biases only shift probabilities; there are none, so they change nothing.

It must never import the engine: it reads attributes of vLLM's SamplingParams (0.23.0 and 0.32.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DECISIVE_BIAS = 100.0  # the OpenAI API: "values like -100 or 100 should result in a ban or exclusive selection"


@dataclass(frozen=True, slots=True)
class Constraints:
    """stops: ids that end the request; ignores_end: it goes on after them; min_tokens, max_tokens: of the output (0: no
    limit); only: ids to choose from (None: any); banned: ids never to choose; phrases: sequences of ids that must not
    come about; trace: the ids to give, one after the other (0.32.0's `trace_decode_token_ids`).
    """

    stops: frozenset[int] = frozenset()
    ignores_end: bool = False
    min_tokens: int = 0
    max_tokens: int = 0
    only: tuple[int, ...] | None = None
    banned: frozenset[int] = frozenset()
    phrases: tuple[tuple[int, ...], ...] = ()
    trace: tuple[int, ...] = ()

    @property
    def shapes(self) -> bool:
        """True when more than the stop ids decides which id may come next."""
        return self.only is not None or bool(self.banned or self.phrases)

    @classmethod
    def of_params(cls, params: Any) -> Constraints:
        if params is None:
            return cls()
        bias = params.logit_bias or {}
        forced = tuple(token for token, value in bias.items() if value >= _DECISIVE_BIAS)
        bad = [tuple(ids) for ids in params.bad_words_token_ids or ()]
        banned = {token for token, value in bias.items() if value <= -_DECISIVE_BIAS}
        allowed = params.allowed_token_ids
        return cls(
            stops=frozenset(params.all_stop_token_ids) | frozenset(params.stop_token_ids or ()),
            ignores_end=bool(params.ignore_eos),
            min_tokens=params.min_tokens,
            max_tokens=params.max_tokens or 0,
            only=forced or (tuple(allowed) if allowed else None),
            banned=frozenset(banned | {ids[0] for ids in bad if len(ids) == 1}),
            phrases=tuple(ids for ids in bad if len(ids) > 1),
            trace=tuple(getattr(params, "trace_decode_token_ids", None) or ()),
        )

    def forbidden(self, history: Sequence[int]) -> frozenset[int]:
        """The ids that may not follow these."""
        return self.banned | {
            phrase[-1]
            for phrase in self.phrases
            if len(history) >= len(phrase) - 1 and tuple(history[len(history) - len(phrase) + 1 :]) == phrase[:-1]
        }
