"""Requests that cannot be answered on a virtual GPU, refused over HTTP before the engine sees them.

Why: scores are nothing but logits, so made-up ones would be worse than none; and a few parameters make vLLM's model
runner raise in the worker (V2 of 0.23.0 and 0.32.0: gpu/sample/logit_bias.py, bad_words.py), which ends the engine for
every other request; V1 has no such bounds. Everything else is answered: docs/features.md.

This must never refuse what the engine can answer: a word in a prompt is no field. So a body is parsed only when it may
hold one of the names at all, and only fields are looked at. Stop ids and bad words are counted as the model runner counts
them, after vLLM has added the model's own ends and made ids of words, by vLLM's own code: bounds of ours would refuse too
much or too little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hyperlapse.integrations.vllm.versions import configured_runner

REFUSED_ROUTES: Mapping[str, str] = dict.fromkeys(
    ("/generative_scoring", "/v1/score", "/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    "scores cannot be made on virtual GPUs: they are computed from logits, and no kernel runs. Ask /v1/completions with "
    "`logprobs` for made-up values",
)

LIMITS = {"allowed_token_ids": 1024, "logit_bias": 1024}
"""Most entries of each field that vLLM's model runner holds; more make it raise (gpu/sample/logit_bias.py)."""

STOP_TOKEN_IDS = 128
"""The same for `stop_token_ids` and the ids that end a text in this model together, when `min_tokens` is above 0."""

COUNTED = ("stop_token_ids", "bad_words")

REFUSED_FIELDS = {
    "prompt_logprob_token_ids": "it asks for logits of given ids, and no kernel runs. Ask for `prompt_logprobs`",
    "thinking_token_budget": "made-up text holds no thoughts that could end. Leave it out and give `max_tokens`",
}

_NAMES = tuple(name.encode() for name in (*LIMITS, *COUNTED, *REFUSED_FIELDS))
_OTHER_SPELLINGS = (b"\\u00", b"\0")  # of ASCII letters in JSON: escaped, or in UTF-16 and UTF-32


def refused(path: str, body: bytes, engine: Callable[[], Any]) -> str | None:
    """Why this request cannot be answered; None when it can. Bodies that are no JSON are the engine's.

    engine: gives vLLM's engine client (AsyncLLM); called only for a request that the model runner may not hold.
    """
    if path in REFUSED_ROUTES:
        return REFUSED_ROUTES[path]
    if not any(name in body for name in (*_NAMES, *_OTHER_SPELLINGS)):
        return None
    try:
        request = json.loads(body)
    except ValueError:
        return None
    if not isinstance(request, dict):
        return None
    nested = request.get("sampling_params")
    return _in_fields(request, engine) or (_in_fields(nested, engine) if isinstance(nested, dict) else None)


def _in_fields(fields: dict[str, Any], engine: Callable[[], Any]) -> str | None:
    for name, why in REFUSED_FIELDS.items():
        if fields.get(name) is not None:
            return f"`{name}` cannot be answered on virtual GPUs: {why}"
    for name, limit in LIMITS.items():
        value = fields.get(name)
        if isinstance(value, (list, dict)) and len(value) > limit and _is_bounded(engine()):
            return (
                f"`{name}` has {len(value)} entries: vLLM's model runner holds {limit} and ends the engine at more. Send "
                f"at most {limit}"
            )
    if fields.get("bad_words") or (fields.get("stop_token_ids") and fields.get("min_tokens")):
        return _beyond_the_runner(fields, engine())
    return None


def _is_bounded(engine: Any) -> bool:
    """Model runner V2 holds so many entries only; V1 any number."""
    return configured_runner(engine.vllm_config) == "V2"


def _beyond_the_runner(fields: dict[str, Any], engine: Any) -> str | None:
    """What the model runner of this engine would raise for."""
    if not _is_bounded(engine):
        return None
    from vllm import envs

    params = completed(fields, engine)
    if params is None:
        return None
    stops = len(params.all_stop_token_ids)
    if params.min_tokens > 0 and stops > STOP_TOKEN_IDS:
        own = stops - len(set(params.all_stop_token_ids) & set(_integers(fields.get("stop_token_ids") or [])))
        return (
            f"`stop_token_ids` and the {own} ids that end a text in this model are {stops}: with `min_tokens` vLLM's model "
            f"runner holds {STOP_TOKEN_IDS} and ends the engine at more. Send at most {STOP_TOKEN_IDS - own}, or no `min_tokens`"
        )
    sequences = params.bad_words_token_ids or []
    total = sum(len(ids) for ids in sequences)
    # settings since 0.32.0, constants of the same size in 0.23.0 (gpu/sample/bad_words.py)
    most = getattr(envs, "VLLM_MAX_NUM_BAD_WORDS", 128)
    most_ids = getattr(envs, "VLLM_MAX_BAD_WORDS_TOTAL_TOKENS", 1024)
    if len(sequences) > most or total > most_ids:
        return (
            f"`bad_words` are {len(sequences)} sequences of {total} ids together (a word is two where a space before it makes "
            f"another id): vLLM's model runner holds {most} sequences of {most_ids} ids and ends the engine at more. Send "
            "fewer or shorter words"
        )
    return None


def completed(fields: Mapping[str, Any], engine: Any) -> Any | None:
    """The sampling parameters as vLLM's input processor hands them on; None for what vLLM refuses itself, with its own
    words.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    ends, end, tokenizer = engine.input_processor.generation_config_fields, engine.renderer, engine.tokenizer
    try:
        params = SamplingParams(
            stop_token_ids=_integers(fields.get("stop_token_ids") or []),
            min_tokens=int(fields.get("min_tokens") or 0),
            bad_words=fields.get("bad_words"),
            max_tokens=None,  # else `min_tokens` would be compared with a default
        )
        params.update_from_generation_config(ends, end.get_eos_token_id())
        if tokenizer is not None:
            params.update_from_tokenizer(tokenizer)
    except (ValueError, TypeError, AttributeError, VLLMValidationError):  # of 0.32.0, which is no ValueError
        return None
    return params


def _integers(values: Any) -> list[int]:
    """As the API's models read them: "5" and 5.0 are 5."""
    return [int(value) for value in values]


def answer(why: str) -> bytes:
    """The body of the refusal, as the OpenAI API writes errors."""
    error = {"message": why, "type": "BadRequestError", "param": None, "code": 400}
    return json.dumps({"error": error}).encode()
