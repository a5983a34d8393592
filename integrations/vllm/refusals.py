"""Requests that ask for values which nobody computes on a virtual GPU, refused over HTTP before the engine sees them.

Why: log-probabilities, grammars and beam search need real logits. vLLM has no flag that turns all of them off, and an
error in the worker would end the engine for every other request.

This must never refuse what the engine can answer: a word in a prompt is no field. So a body is parsed only when it holds
one of the names at all, and only fields are looked at.
"""

from __future__ import annotations

import json
from typing import Any

_NAMES = (
    b"logprobs", b"response_format", b"structured_outputs", b"guided_", b"tool_choice", b"beam_search", b"format",
)  # fmt: skip

REFUSED_ROUTES = {"/generative_scoring": "scoring", "/v1/score": "scoring", "/score": "scoring"}


def refused(path: str, body: bytes) -> str | None:
    """What of this request cannot be answered; None when all of it can. Bodies that are no JSON are the engine's."""
    if path in REFUSED_ROUTES:
        return REFUSED_ROUTES[path]
    if not any(name in body for name in _NAMES):
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
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        value = fields.get(name)
        # 0 asks for the sampled token's own, so only null and false ask for none
        if value is not None and value is not False:
            return f"log-probabilities (`{name}`)"
    if fields.get("use_beam_search"):
        return "beam search (`use_beam_search`)"
    if fields.get("structured_outputs"):
        return "structured output (`structured_outputs`)"
    for name, value in fields.items():
        if name.startswith("guided_") and value:
            return f"structured output (`{name}`)"
    choice = fields.get("tool_choice")
    if isinstance(choice, dict) or choice == "required":
        return "structured output (`tool_choice` forces a tool)"
    text = fields.get("text")
    formats = (fields.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    for value in formats:
        if isinstance(value, dict) and value.get("type", "text") != "text":
            return f"structured output (response format `{value['type']}`)"
    return None


def answer(what: str) -> bytes:
    """The body of the refusal, as the OpenAI API writes errors."""
    message = f"{what} cannot be answered on virtual GPUs: no kernel runs, so there are no logits"
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return json.dumps({"error": error}).encode()
