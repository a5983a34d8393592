"""Between HTTP and vLLM's API server, as ASGI middleware (`vllm serve --middleware`).

Why: the way of a request through HTTP parsing, tokenisation and the engine client, and of a token back, takes host
time that the frozen clock does not see; and a request for values that nobody computes must be refused before the engine
fails on it (refusals.py). Pure ASGI and no Starlette base class: that would add a task per request and change the order
in which the event loop runs things.

It must never change a message that it lets through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hyperlapse.integrations.vllm.host_time import DelayLine, HostTime, charger
from hyperlapse.integrations.vllm.refusals import REFUSED_ROUTES, answer, refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

INFERENCE_ROUTES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/inference/v1/generate",
    "/invocations",
    *REFUSED_ROUTES,
)


class ChargeHostTime:
    """Refuses what cannot be answered; charges a request when it has arrived, and each chunk before it is sent."""

    def __init__(self, app: Application) -> None:
        self.app = app
        host_time = HostTime.load()
        self._charge_request = charger(host_time.api_request_ns)
        self._delay = DelayLine.of(host_time.api_request_delay_ns)
        self._charge_token = charger(host_time.api_token_ns)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        if path not in INFERENCE_ROUTES:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        what = refused(path, body, lambda: scope["app"].state.engine_client)
        if what is not None:
            await _refuse(send, what)
            return
        if self._charge_request is not None:
            self._charge_request()
        if self._delay is not None:
            await self._delay.wait()
        await self.app(scope, _again(messages, receive), self._charged(send))

    def _charged(self, send: Send) -> Send:
        charge_token = self._charge_token
        if charge_token is None:
            return send

        async def charged_send(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                charge_token()
            await send(message)

        return charged_send


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    """The messages of the request's body, and the body."""
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages, b"".join(message.get("body", b"") for message in messages)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Gives out the messages once more, then what comes after them."""
    kept = iter(messages)

    async def receive_again() -> Message:
        for message in kept:
            return message
        return await receive()

    return receive_again


async def _refuse(send: Send, what: str) -> None:
    body = answer(what)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
