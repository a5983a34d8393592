"""What is refused before the engine sees it, and nothing else."""

from __future__ import annotations

import json

import pytest

from hyperlapse.integrations.vllm.refusals import LIMITS, REFUSED_FIELDS, REFUSED_ROUTES, answer, refused

ROUTE = "/v1/completions"


@pytest.mark.parametrize("path", REFUSED_ROUTES)
def test_scores(path: str) -> None:
    why = refused(path, b"")
    assert why is not None
    assert "logits" in json.loads(answer(why))["error"]["message"]


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
@pytest.mark.parametrize("nested", [False, True])
def test_more_than_the_model_runner_holds(name: str, limit: int, nested: bool) -> None:
    def asked(count: int) -> bytes:
        fields = {name: list(range(count)), "min_tokens": 1}
        return json.dumps({"sampling_params": fields} if nested else fields).encode()

    assert refused(ROUTE, asked(limit)) is None
    why = refused(ROUTE, asked(limit + 1))
    assert why is not None
    assert name in why
    assert str(limit) in why


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_fields(name: str) -> None:
    why = refused(ROUTE, json.dumps({name: 3}).encode())
    assert why is not None
    assert name in why
    assert refused(ROUTE, json.dumps({name: None}).encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'{"prompt": "allowed_token_ids"}',
        b'{"logit_bias": null}',
        b'{"stop_token_ids": %s}' % json.dumps(list(range(500))).encode(),
        b'{"logprobs": 5, "response_format": {"type": "json_object"}}',
    ],
)
def test_what_the_engine_can_answer(body: bytes) -> None:
    assert refused(ROUTE, body) is None
