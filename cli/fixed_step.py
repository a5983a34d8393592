"""A predictor with a known answer: a fixed time for each step and for each prompt token in it.

Why: the standing causality test compares a whole run with a discrete-event model, which needs durations that are known
exactly and depend on nothing but the batch. It must never be a default: a run that uses it says so in its provenance,
and its coverage is `unknown`. Rejected: a switch inside the real predictor, which would put a test mode into the
package that answers for fidelity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

DEPENDS_ON_BATCH = 2
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s)")
_UNIT_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


class Launch(Protocol):
    """What this predictor reads of a launch (the full record is the pricing service's)."""

    @property
    def kind(self) -> str: ...

    @property
    def annotation(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Price:
    """A duration with its coverage (measured, interpolated, extrapolated, analytical, unknown), in nanoseconds."""

    duration_ns: int
    coverage_ns: tuple[int, int, int, int, int]
    depends: int


@dataclass(frozen=True, slots=True)
class FixedStepPredictor:
    """`step_ns` for each step, `prefill_token_ns` more for each prompt token; everything else takes no time."""

    step_ns: int
    prefill_token_ns: int

    def price_launch(self, launch: Launch) -> Price:
        if launch.kind != "step":
            return Price(0, (0, 0, 0, 0, 0), DEPENDS_ON_BATCH)
        duration_ns = self.step_ns + self.prefill_token_ns * prefill_tokens(launch.annotation)
        return Price(duration_ns, (0, 0, 0, 0, duration_ns), DEPENDS_ON_BATCH)


def parse_fixed_step(text: str) -> FixedStepPredictor:
    """`10ms,40us` -> 10 ms a step and 40 µs a prompt token. Raises ValueError with what is wrong."""
    parts = text.split(",")
    if len(parts) != 2:
        raise ValueError(f"expected STEP,PER_PROMPT_TOKEN such as 10ms,40us, found {text!r}")
    return FixedStepPredictor(_duration_ns(parts[0]), _duration_ns(parts[1]))


def _duration_ns(text: str) -> int:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a duration such as 10ms or 40us, found {text!r}")
    return round(float(match[1]) * _UNIT_NS[match[2]])


def prefill_tokens(annotation: str) -> int:
    """The prompt tokens of a step, from its batch composition (`... seqs=<new>:<context>[x<count>],...`).

    A sequence is in its prefill when it computes more than one token or has no context yet; the last token of a cut
    prompt, alone in its chunk, cannot be told from a decode step and is counted as one.
    """
    for word in annotation.split():
        if word.startswith("seqs="):
            break
    else:
        raise ValueError(f"no seqs= in the batch composition {annotation!r}")
    total = 0
    for sequence in word.removeprefix("seqs=").split(","):
        if not sequence:
            continue
        shape, _, count = sequence.partition("x")
        new, _, context = shape.partition(":")
        if int(new) > 1 or int(context) == 0:
            total += int(new) * int(count or 1)
    return total
