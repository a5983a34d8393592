"""Host time: what the CPU side takes, charged where it is spent.

Why: under the frozen clock Python costs nothing, but on a real host an engine's step and a request's way through the
API server take time. The constants come from the launcher as a JSON file (environment variable HYPERLAPSE_HOST_TIME);
a missing file or key is 0. This module must never guess one.

A charge is *wait until now + cost* by the thread that spends it, with the interpreter's lock given up, as a thread that
computes would give it up every few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

ENVIRONMENT_VARIABLE = "HYPERLAPSE_HOST_TIME"

_WAIT_HOST_TIME = 11  # HL_WAIT_HOST_TIME in csrc/core/clock.h: what the no-progress report says of the thread


@dataclass(frozen=True, slots=True)
class HostTime:
    """engine_step_ns: by the engine's main thread before each step's first launch; api_request_ns: by the API server's
    event loop when a POST to an inference route arrives; api_request_delay_ns: then too, but by other threads than the
    event loop (tokenizer, engine client), so that the request waits and the loop goes on; api_token_ns: by the event
    loop before each streamed chunk is written.
    """

    engine_step_ns: int = 0
    api_request_ns: int = 0
    api_request_delay_ns: int = 0
    api_token_ns: int = 0

    @classmethod
    def load(cls) -> HostTime:
        """From the file that HYPERLAPSE_HOST_TIME names. Raises ValueError for an unknown name or for
        a value that is no duration.
        """
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        if not name:
            return cls()
        given = json.loads(Path(name).read_text(encoding="utf-8"))
        values: dict[str, int] = {}
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"{name}: unknown host-time constant {', '.join(sorted(unknown))}")
        for field in fields(cls):
            value = given.get(field.name, 0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}: {field.name} must be a whole number of nanoseconds >= 0, is {value!r}")
            values[field.name] = value
        return cls(**values)


def charger(cost_ns: int) -> Callable[[], None] | None:
    """A function that charges cost_ns to the calling thread; None when there is nothing to charge (or no run)."""
    if cost_ns <= 0 or not os.environ.get("HYPERLAPSE_RUN_DIR"):
        return None
    from hyperlapse.shim._core import core

    lib = core().lib

    def charge() -> None:
        lib.hl_clock_wait_until(lib.hl_clock_now_ns() + cost_ns, _WAIT_HOST_TIME)

    return charge


class DelayLine:
    """Holds coroutines back for a fixed virtual time without holding up their event loop.

    One thread waits for one deadline after the other: the time is the same for all, so the first in is the first out.
    asyncio's own timers were rejected: uvloop rounds them to whole milliseconds.
    """

    def __init__(self, cost_ns: int) -> None:
        from hyperlapse.shim._core import core

        self._lib = core().lib
        self._cost_ns = cost_ns
        self._waiting: queue.SimpleQueue[tuple[int, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="hyperlapse-delay", daemon=True).start()

    @classmethod
    def of(cls, cost_ns: int) -> DelayLine | None:
        """None when there is nothing to charge (or no run)."""
        return cls(cost_ns) if cost_ns > 0 and os.environ.get("HYPERLAPSE_RUN_DIR") else None

    async def wait(self) -> None:
        """Returns when the delay has passed on the virtual clock."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put((self._lib.hl_clock_now_ns() + self._cost_ns, future))
        await future

    def _serve(self) -> None:
        while True:
            deadline_ns, future = self._waiting.get()
            self._lib.hl_clock_wait_until(deadline_ns, _WAIT_HOST_TIME)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                future.get_loop().call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():  # cancelled: the client has gone
        future.set_result(None)
