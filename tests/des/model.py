"""A discrete-event model of vLLM's engine loop (0.23 to 0.32) with async scheduling: when does each token come?

Why: the standing causality test. A serving engine whose steps take a known time has token instants that follow from
the arrivals alone, so every violation of causality on the virtual clock (a jump past a thread that was about to run)
shows as a request that is one step late. The model must stay independent of the project: it imports nothing of ours
and knows the engine only by reading its source (`EngineCore.step_with_batch_queue`, `Scheduler.schedule`,
`AsyncMicrobatchTokenizer`). Rejected: comparing with a recorded run, which has noise and hides one late step.

What it leaves out, because the workloads of the test do not reach it: KV-cache limits and preemption, prefix-cache
hits, speculative decoding, aborts. Everything is integer nanoseconds.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MILLISECOND_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as its client sends it."""

    send_ns: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine's settings and what a step costs: `step_ns` + `prefill_token_ns` for each prompt token in it.

    `tokenizer_wait_ns`: the API server collects text prompts for 2 ms before it tokenises them
    (`batch_wait_timeout_s`), and a timed wait on the virtual clock ends 1 µs after its deadline. Prompts sent as
    token ids do not wait, nor do any in versions without that batching: set 0. `idle_sleep_ns`: the engine's
    `time.sleep(0.001)` after a step that ran nothing. `asleep_ns`: how much of such a sleep is left at the first
    arrival, because a client's warm-up request has just ended.
    """

    step_ns: int = 10 * MILLISECOND_NS
    prefill_token_ns: int = 40_000
    token_budget: int = 8192
    max_running: int = 256
    batch_queue: int = 2
    tokenizer_wait_ns: int = 2_001_000
    tokenizer_batch: int = 32
    idle_sleep_ns: int = 1_001_000
    asleep_ns: int = 0


@dataclass(slots=True)
class _Request:
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int = 0  # prompt tokens in steps that were scheduled
    scheduled_outputs: int = 0  # tokens that scheduled steps will sample
    token_ns: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Step:
    end_ns: int
    sampled: list[_Request]


def engine_arrivals(send_ns: Sequence[int], engine: Engine) -> list[tuple[int, int]]:
    """(instant at which the engine gets it, index) of each request, in the order in which the engine gets them."""
    order = sorted(range(len(send_ns)), key=lambda index: (send_ns[index], index))
    if not engine.tokenizer_wait_ns:
        return [(send_ns[index], index) for index in order]
    arrivals: list[tuple[int, int]] = []
    batch_end_ns = -1
    batch_size = 0
    for index in order:
        if send_ns[index] > batch_end_ns or batch_size == engine.tokenizer_batch:
            batch_end_ns = send_ns[index] + engine.tokenizer_wait_ns
            batch_size = 0
        batch_size += 1
        arrivals.append((batch_end_ns, index))
    return arrivals


def simulate(arrivals: Sequence[Arrival], engine: Engine) -> list[tuple[int, ...]]:
    """The instants at which the client has each token of each request, in the order of `arrivals`.

    The front end and the client take no time: a token is with the client at the end of the step that sampled it.
    """
    requests = [_Request(arrival.prompt_tokens, arrival.output_tokens) for arrival in arrivals]
    incoming = deque(engine_arrivals([arrival.send_ns for arrival in arrivals], engine))
    waiting: deque[_Request] = deque()
    running: list[_Request] = []
    in_flight: deque[_Step] = deque()
    now_ns = incoming[0][0] + engine.asleep_ns if engine.asleep_ns and incoming else 0
    device_free_ns = 0

    # Requests that ended since the last schedule: the scheduler still counts them as work (`has_requests`), because the
    # worker has to be told. So after its last request the engine sleeps once and does not see an arrival meanwhile.
    ended = False

    while incoming or waiting or running or in_flight:
        idle = not (waiting or running or in_flight or ended)
        if idle:
            now_ns = max(now_ns, incoming[0][0])
        # What is sent at the very instant at which a step ends is on its way while the engine schedules.
        while incoming and (incoming[0][0] < now_ns or (idle and incoming[0][0] == now_ns)):
            waiting.append(requests[incoming.popleft()[1]])

        ran_model = False
        popped = True
        if waiting or running or ended:
            prefill_tokens, sampled, ran_model = _schedule(waiting, running, engine)
            ended = False
            if ran_model:
                start_ns = max(now_ns, device_free_ns)
                device_free_ns = start_ns + engine.step_ns + engine.prefill_token_ns * prefill_tokens
                in_flight.append(_Step(device_free_ns, sampled))
            else:
                in_flight.append(_Step(now_ns, []))
            # A free place in the queue goes before the results of earlier steps.
            popped = len(in_flight) == engine.batch_queue or not (ran_model or waiting or running)

        if popped:
            step = in_flight.popleft()
            now_ns = max(now_ns, step.end_ns)
            for request in step.sampled:
                request.token_ns.append(now_ns)
                if len(request.token_ns) == request.output_tokens:
                    running.remove(request)
                    ended = True
        if not ran_model and (waiting or running or ended):
            now_ns += engine.idle_sleep_ns
    return [tuple(request.token_ns) for request in requests]


def tokenizer_wait_ns(package: Path) -> int:
    """`Engine.tokenizer_wait_ns` of an installed engine, read from its source."""
    source = (package / "utils" / "async_utils.py").read_text(encoding="utf-8")
    found = re.search(r"batch_wait_timeout_s: float = ([0-9.]+)", source)
    return round(float(found[1]) * 1e9) + 1000 if found else 0


def simulate_after_warm_up(
    arrivals: Sequence[Arrival], engine: Engine, measured: Sequence[Sequence[int]]
) -> list[tuple[int, ...]]:
    """`simulate` for a client whose warm-up request ended at an instant that nobody wrote down.

    The first request says how much of the engine's idle sleep was left then, if that is possible at all: between nothing
    and one whole sleep. Everything after it must follow from the model.
    """
    modelled = simulate(arrivals, engine)
    first = min(range(len(arrivals)), key=lambda index: arrivals[index].send_ns)
    left_ns = measured[first][0] - modelled[first][0]
    if not 0 < left_ns <= engine.idle_sleep_ns:
        return modelled
    return simulate(arrivals, replace(engine, asleep_ns=left_ns))


def _schedule(waiting: deque[_Request], running: list[_Request], engine: Engine) -> tuple[int, list[_Request], bool]:
    """One call of the scheduler: (prompt tokens, requests that get a token, whether anything runs).

    Running requests come first, in their order, then waiting ones; a prompt longer than the budget is cut.
    """
    budget = engine.token_budget
    prefill_tokens = 0
    sampled: list[_Request] = []

    def take_prompt(request: _Request) -> None:
        nonlocal budget, prefill_tokens
        count = min(budget, request.prompt_tokens - request.computed_tokens)
        request.computed_tokens += count
        budget -= count
        prefill_tokens += count
        if request.computed_tokens == request.prompt_tokens:
            request.scheduled_outputs += 1
            sampled.append(request)

    for request in running:
        if budget == 0:
            break
        if request.computed_tokens < request.prompt_tokens:
            take_prompt(request)
        elif request.scheduled_outputs < request.output_tokens:
            request.scheduled_outputs += 1
            budget -= 1
            sampled.append(request)
    while waiting and budget and len(running) < engine.max_running:
        request = waiting.popleft()
        running.append(request)
        take_prompt(request)
    return prefill_tokens, sampled, budget < engine.token_budget


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a measured run is from the model. `late` counts latencies off by more than the tolerance."""

    requests: int
    gaps: int
    late_first_tokens: int
    late_gaps: int
    max_first_token_ns: int
    max_gap_ns: int


def compare(
    sends_ns: Sequence[int],
    measured: Sequence[Sequence[int]],
    modelled: Sequence[Sequence[int]],
    tolerance_ns: int = 100_000,
) -> Difference:
    """Compares the TTFT of each request and each gap between its tokens. Raises ValueError on other token counts."""
    first: list[int] = []
    gaps: list[int] = []
    for index, (send_ns, ours, theirs) in enumerate(zip(sends_ns, measured, modelled, strict=True)):
        if len(ours) != len(theirs):
            raise ValueError(f"request {index} has {len(ours)} tokens, the model says {len(theirs)}")
        first.append(abs((ours[0] - send_ns) - (theirs[0] - send_ns)))
        for place in range(1, len(ours)):
            gaps.append(abs((ours[place] - ours[place - 1]) - (theirs[place] - theirs[place - 1])))
    return Difference(
        requests=len(first),
        gaps=len(gaps),
        late_first_tokens=sum(value > tolerance_ns for value in first),
        late_gaps=sum(value > tolerance_ns for value in gaps),
        max_first_token_ns=max(first, default=0),
        max_gap_ns=max(gaps, default=0),
    )
