"""Requests that cannot be answered on a virtual GPU, refused over HTTP before the engine sees them.

Why: scores are nothing but logits, so made-up ones would be worse than none; and a few parameters make vLLM's model
runner raise in the worker (0.23.0 and 0.32.0: gpu/sample/logit_bias.py, bad_words.py), which ends the engine for every
other request. Everything else is answered: docs/features.md.

This must never refuse what the engine can answer: a word in a prompt is no field. So a body is parsed only when it holds
one of the names at all, and only fields are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

REFUSED_ROUTES: Mapping[str, str] = dict.fromkeys(
    ("/generative_scoring", "/v1/score", "/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    "scores cannot be made on virtual GPUs: they are computed from logits, and no kernel runs. Ask /v1/completions with "
    "`logprobs` for made-up values",
)

LIMITS = {"allowed_token_ids": 1024, "logit_bias": 1024, "bad_words": 128, "stop_token_ids": 128}
"""Most entries of each field that vLLM's model runner holds; more make it raise (of bad words it also limits the tokens)."""


REFUSED_FIELDS = {
    "prompt_logprob_token_ids": "it asks for logits of given ids, and no kernel runs. Ask for `prompt_logprobs`",
    "thinking_token_budget": "made-up text holds no thoughts that could end. Leave it out and give `max_tokens`",
}


def refused(path: str, body: bytes) -> str | None:
    """Why this request cannot be answered; None when it can. Bodies that are no JSON are the engine's."""
    if path in REFUSED_ROUTES:
        return REFUSED_ROUTES[path]
    if not any(name.encode() in body for name in (*LIMITS, *REFUSED_FIELDS)):
        return None
    try:
        request = json.loads(body)
    except ValueError:
        return None
    if not isinstance(request, dict):
        return None
    nested = request.get("sampling_params")
    return _in_fields(request) or (_in_fields(nested) if isinstance(nested, dict) else None)


def _in_fields(fields: dict[str, Any]) -> str | None:
    for name, why in REFUSED_FIELDS.items():
        if fields.get(name) is not None:
            return f"`{name}` cannot be answered on virtual GPUs: {why}"
    for name, limit in LIMITS.items():
        value = fields.get(name)
        if name == "stop_token_ids" and not fields.get("min_tokens"):
            continue  # only then they are given to the sampler
        if isinstance(value, (list, dict)) and len(value) > limit:
            return (
                f"`{name}` has {len(value)} entries: vLLM's model runner holds {limit} and ends the engine at more. Send "
                f"at most {limit}"
            )
    return None


def answer(why: str) -> bytes:
    """The body of the refusal, as the OpenAI API writes errors."""
    error = {"message": why, "type": "BadRequestError", "param": None, "code": 400}
    return json.dumps({"error": error}).encode()
