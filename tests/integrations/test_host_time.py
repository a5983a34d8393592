"""Host-time constants, and the middleware that charges two of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyperlapse.integrations.vllm import middleware
from hyperlapse.integrations.vllm.host_time import DelayLine, HostTime, charger


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_absent_file_and_absent_keys_are_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERLAPSE_HOST_TIME", raising=False)
    assert HostTime.load() == HostTime(0, 0, 0, 0)
    monkeypatch.setenv("HYPERLAPSE_HOST_TIME", "")
    assert HostTime.load() == HostTime(0, 0, 0, 0)
    monkeypatch.setenv("HYPERLAPSE_HOST_TIME", write(tmp_path / "h", {"api_request_ns": 9_000_000}))
    assert HostTime.load() == HostTime(api_request_ns=9_000_000)


def test_an_unknown_constant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERLAPSE_HOST_TIME", write(tmp_path / "h", {"api_requests_ns": 1}))
    with pytest.raises(ValueError, match="api_requests_ns"):
        HostTime.load()


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, None])
def test_what_is_no_duration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setenv("HYPERLAPSE_HOST_TIME", write(tmp_path / "h", {"engine_step_ns": value}))
    with pytest.raises(ValueError, match="engine_step_ns"):
        HostTime.load()


def test_nothing_is_charged_outside_a_run_or_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HYPERLAPSE_RUN_DIR", raising=False)
    assert charger(5) is None
    monkeypatch.setenv("HYPERLAPSE_RUN_DIR", str(tmp_path))
    assert charger(0) is None


class App:
    """Streams three chunks and ends with an empty body, as a Starlette streaming response does."""

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in (b"a", b"b", b"c"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
def charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    costs = {"api_request_ns": 1, "api_token_ns": 2}
    monkeypatch.setenv("HYPERLAPSE_HOST_TIME", write(tmp_path / "h", costs))
    log: list[str] = []
    names = {1: "request", 2: "token"}
    monkeypatch.setattr(middleware, "charger", lambda cost: lambda: log.append(names[cost]))
    return log


def call(scope: dict[str, Any], log: list[str], *bodies: bytes, app: Any = None) -> int:
    """The status of the answer; `log` gets the bodies that were sent."""
    parts = list(bodies) or [b"{}"]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        if "status" in message:
            statuses.append(message["status"])
        if message.get("body"):
            log.append(message["body"].decode())

    asyncio.run(middleware.ChargeHostTime(app or App())(scope, receive, send))  # type: ignore[arg-type]
    return statuses[0]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions/", "/v1/responses"])
def test_a_request_is_charged_once_and_each_chunk_before_it_is_sent(charged: list[str], path: str) -> None:
    call({"type": "http", "method": "POST", "path": path}, charged)
    assert charged == ["request", "token", "a", "token", "b", "token", "c"]


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "http", "method": "GET", "path": "/metrics"},
        {"type": "http", "method": "POST", "path": "/tokenize"},
        {"type": "lifespan", "method": "", "path": ""},
    ],
)
def test_everything_else_passes_free_of_charge(charged: list[str], scope: dict[str, Any]) -> None:
    call(scope, charged)
    assert charged == ["a", "b", "c"]


def test_delay_line_holds_each_back_for_its_time_and_not_the_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the real clock, which is what a process outside a run has."""
    assert DelayLine.of(0) is None
    monkeypatch.delenv("HYPERLAPSE_RUN_DIR", raising=False)
    assert DelayLine.of(5) is None
    line = DelayLine(30_000_000)
    order: list[str] = []

    async def request(name: str) -> None:
        order.append(f"{name} in")
        await line.wait()
        order.append(f"{name} out")

    async def main() -> None:
        async with asyncio.timeout(10):
            tasks = [asyncio.create_task(request(name)) for name in "abc"]
            gone = asyncio.create_task(line.wait())
            await asyncio.sleep(0)
            gone.cancel()
            order.append("loop")
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == ["a in", "b in", "c in", "loop", "a out", "b out", "c out"]


def test_the_app_gets_every_part_of_the_body_and_what_comes_after() -> None:
    got: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        got.extend([await receive(), await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    call({"type": "http", "method": "POST", "path": "/v1/completions"}, [], b"{", b"}", app=app)
    assert [message.get("body") for message in got] == [b"{", b"}", None]
    assert got[2]["type"] == "http.disconnect"


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/generative_scoring", {}), ("/v1/completions", {"allowed_token_ids": list(range(1025))})],
)
def test_what_cannot_be_answered_is_refused_before_the_engine_sees_it(path: str, fields: dict[str, Any]) -> None:
    log: list[str] = []
    body = json.dumps({"prompt": "x", **fields}).encode()
    engine = SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=True))
    server = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
    assert call({"type": "http", "method": "POST", "path": path, "app": server}, log, body) == 400
    assert json.loads(log[0])["error"]["code"] == 400


def test_everything_else_is_let_through() -> None:
    for body in (b'{"logprobs": 5}', b"logit_bias {"):
        assert call({"type": "http", "method": "POST", "path": "/v1/completions"}, [], body) == 200
