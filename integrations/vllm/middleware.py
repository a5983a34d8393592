"""Host time of the API server, charged as ASGI middleware (`vllm serve --middleware`).

Why: the way of a request through HTTP parsing, tokenisation and the engine client, and of a token back, takes host
time that the frozen clock does not see. Pure ASGI and no Starlette base class: that would add a task per request and
change the order in which the event loop runs things.

It must never read or change a message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hyperlapse.integrations.vllm.host_time import DelayLine, HostTime, charger

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

INFERENCE_ROUTES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/inference/v1/generate",
)


class ChargeHostTime:
    """Charges a request when a POST to an inference route arrives, and each chunk before it is sent (HostTime)."""

    def __init__(self, app: Application) -> None:
        self.app = app
        host_time = HostTime.load()
        self._charge_request = charger(host_time.api_request_ns)
        self._delay = DelayLine.of(host_time.api_request_delay_ns)
        self._charge_token = charger(host_time.api_token_ns)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not self._is_inference(scope["path"]):
            await self.app(scope, receive, send)
            return
        if self._charge_request is not None:
            self._charge_request()
        if self._delay is not None:
            await self._delay.wait()
        charge_token = self._charge_token
        if charge_token is None:
            await self.app(scope, receive, send)
            return

        async def charged_send(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                charge_token()
            await send(message)

        await self.app(scope, receive, charged_send)

    @staticmethod
    def _is_inference(path: str) -> bool:
        return path.rstrip("/") in INFERENCE_ROUTES
