"""Which id a virtual sampler takes when a grammar allows only some.

Why: structured output masks the logits of every step; an id outside of the mask would make the engine's own grammar
reject the answer. Any allowed id would do for the engine, but an answer must also come to an end: a JSON string accepts
words for ever. So an end is taken where the grammar allows one, and otherwise free text (more than half of the
vocabulary is allowed) is closed after a few words, choices are closed half of the time, and always in the second half of
`max_tokens`. A request that ignores the end of a sequence gets the opposite: an end only when nothing else is left.

It must never return an id outside of the mask, unless the mask is empty: then no id fits, the engine says so itself and
ends that request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperlapse.integrations.vllm.constraints import Constraints
from hyperlapse.integrations.vllm.vocabulary import Vocabulary, mix

_FREE_WORDS = 6  # free text is closed at each position with a chance of one in so many
_PROBES = 64
_LOOKED_AT = 4096  # allowed ids whose texts are looked at to avoid white space
_CLOSING = 0x517CC1B7


def is_full(mask: Any) -> bool:
    """True for a row that allows everything (vLLM fills these for requests that still think)."""
    return bool((mask == -1).all())


def allows(mask: Any, token: int) -> bool:
    """mask: one row of vLLM's packed bitmask (int32, bit i of word w is id 32 w + i)."""
    return token // 32 < len(mask) and bool(int(mask[token // 32]) >> (token % 32) & 1)


def allowed_ids(mask: Any, size: int) -> Any:
    """The allowed ids in order, as an array."""
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")[:size]
    return np.flatnonzero(bits)


def choose(
    vocabulary: Vocabulary,
    constraints: Constraints,
    mask: Any,
    *,
    seed: int,
    position: int,
    produced: int,
    history: Sequence[int] = (),
) -> int:
    """produced: how many ids the request has given before this one."""
    stops = vocabulary.stops | constraints.stops
    ids = allowed_ids(mask, vocabulary.size)
    allowed_stops = [token for token in sorted(stops) if allows(mask, token)]
    # other special ids are allowed inside of free text: to xgrammar of vLLM 0.23.0 their names are text like any other
    ends = [token for token in allowed_stops if vocabulary.end in (None, token)]
    others = ids[~np.isin(ids, sorted(stops))]
    if len(others) == 0:
        return next(iter([*ends, *allowed_stops, *sorted(stops)]), 0)
    if ends and not constraints.ignores_end and produced >= constraints.min_tokens:
        return ends[0]
    if constraints.shapes:
        fits = ~np.isin(others, sorted(constraints.forbidden(history)))
        if constraints.only is not None:
            fits &= np.isin(others, constraints.only)
        others = others[fits] if fits.any() else others
    draw = mix(seed, position)
    free = len(others) > vocabulary.size // 2
    if not constraints.ignores_end:
        late = 0 < constraints.max_tokens <= 2 * produced
        if late or mix(draw, _CLOSING) % (_FREE_WORDS if free else 2) == 0:
            closing = _closing(vocabulary, others, free)
            if closing is not None:
                return closing
    if free:
        words = vocabulary.words
        for step in range(min(_PROBES, len(words))):
            token = words[(draw + step) % len(words)]
            if _holds(others, token):
                return token
    return _with_text(vocabulary, others, draw)


def _closing(vocabulary: Vocabulary, others: Any, free: bool) -> int | None:
    """A character that ends what is open. In free text brackets are text, and only a quotation mark ends it."""
    for mark in '"' if free else '}]",':
        token = vocabulary.punctuation.get(mark)
        if token is not None and _holds(others, token):
            return token
    return None


def _holds(ids: Any, token: int) -> bool:
    """ids: in ascending order."""
    at = int(np.searchsorted(ids, token))
    return at < len(ids) and int(ids[at]) == token


def _with_text(vocabulary: Vocabulary, ids: Any, draw: int) -> int:
    """Not white space, if there is another: grammars of JSON allow any amount of it almost everywhere."""
    if len(ids) <= _LOOKED_AT:
        visible = [token for token in ids.tolist() if vocabulary.text_of(token).strip()]
        return visible[draw % len(visible)] if visible else int(ids[draw % len(ids)])
    for step in range(_PROBES):
        token = int(ids[(draw + step) % len(ids)])
        if vocabulary.text_of(token).strip():
            return token
    return int(ids[draw % len(ids)])
