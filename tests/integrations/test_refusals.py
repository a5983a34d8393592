"""What is refused before the engine sees it, and nothing else. What needs the engine's own counting is compared with the
engine in tests/engines/test_vllm_refusals.py.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from hyperlapse.integrations.vllm import refusals
from hyperlapse.integrations.vllm.refusals import LIMITS, REFUSED_FIELDS, REFUSED_ROUTES, answer

ROUTE = "/v1/completions"


class CountedError(Exception):
    """The engine was asked for."""


def counting() -> Any:
    raise CountedError


def the_engine(*, runner_v2: bool = True) -> Any:
    return SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=runner_v2))


def refused(path: str, body: bytes) -> str | None:
    return refusals.refused(path, body, the_engine)


@pytest.mark.parametrize("path", REFUSED_ROUTES)
def test_scores(path: str) -> None:
    why = refused(path, b"")
    assert why is not None
    assert "logits" in json.loads(answer(why))["error"]["message"]


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
@pytest.mark.parametrize("nested", [False, True])
def test_more_than_the_model_runner_holds(name: str, limit: int, nested: bool) -> None:
    def asked(count: int) -> bytes:
        fields = {name: list(range(count))}
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
        b'{"stop_token_ids": [], "min_tokens": 9, "bad_words": []}',
        b'{"stop": ["a"], "min_tokens": 9}',
        b'{"logprobs": 5, "response_format": {"type": "json_object"}}',
    ],
)
def test_what_the_engine_can_answer(body: bytes) -> None:
    assert refused(ROUTE, body) is None


@pytest.mark.parametrize(
    "fields",
    [{"bad_words": ["a"]}, {"stop_token_ids": [1], "min_tokens": 1}, {"stop_token_ids": ["1"], "min_tokens": "1"}],
)
def test_what_the_engine_must_count(fields: dict[str, Any]) -> None:
    for given in (fields, {"sampling_params": fields}):
        with pytest.raises(CountedError):
            refusals.refused(ROUTE, json.dumps(given).encode(), counting)


@pytest.mark.parametrize("name", [*LIMITS, *REFUSED_FIELDS])
def test_no_other_spelling_of_a_name_passes(name: str) -> None:
    text = json.dumps({name: list(range(2000))})
    escaped = text.replace("_", "\\u005f")
    assert name not in escaped
    for body in (escaped.encode(), text.encode("utf-16"), text.encode("utf-16-le"), text.encode("utf-32")):
        assert refused(ROUTE, body) is not None


def test_model_runner_v1_has_no_such_bounds() -> None:
    def refused(path: str, body: bytes) -> str | None:
        return refusals.refused(path, body, lambda: the_engine(runner_v2=False))

    for fields in (
        {name: list(range(2000)) for name in LIMITS},
        {"bad_words": ["a"]},
        {"stop_token_ids": [1], "min_tokens": 1},
    ):
        assert refused(ROUTE, json.dumps(fields).encode()) is None
    for name in REFUSED_FIELDS:
        assert refused(ROUTE, json.dumps({name: 3}).encode()) is not None
