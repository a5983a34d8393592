"""The pricing service: answers the launches that the price table does not know, with any object that can price them.

One process a host runs it, on real time. It must never leave a request unanswered: the virtual clock is held for each,
and a thread waits for it. So a predictor that raises is reported with its traceback, and the launch costs nothing,
counts as unknown, and shows up in the run's report; guessing a duration here was rejected, because a guess looks like a
price.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hyperlapse.shim._core import core

KINDS = {1: "kernel", 2: "gemm", 3: "copy", 4: "memset", 5: "collective", 6: "step"}
"""hl_launch_kind of csrc/core/price.h. Copies and memsets are priced in C and never come here."""

DEPENDS_TOKENS = 1
DEPENDS_BATCH = 2

CoverageShares = tuple[int, int, int, int, int]

_ANALYTICAL = 3
_UNKNOWN = 4
_BATCH_MAX = 64
_TAKE_MS = 100


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be priced.

    kind: kernel, gemm, collective or step; device: its ordinal in the run; name and args: see hl_launch_kind in
    csrc/core/price.h; tokens: (padded) tokens of the engine step, 0 outside one; annotation: the batch composition.
    """

    kind: str
    device: int
    name: str
    args: tuple[int, ...]
    tokens: int
    annotation: str


@dataclass(frozen=True, slots=True)
class Price:
    """coverage_ns: the duration split into measured, interpolated, extrapolated, analytical, unknown; sums to it.

    depends: what of the step a kernel's price was read from, DEPENDS_TOKENS | DEPENDS_BATCH; launches of a kernel whose
    price depends on neither are priced once.
    """

    duration_ns: int
    coverage_ns: CoverageShares
    depends: int = 0


class PriceLike(Protocol):
    """Anything with the members of `Price`."""

    @property
    def duration_ns(self) -> int: ...
    @property
    def coverage_ns(self) -> CoverageShares: ...
    @property
    def depends(self) -> int: ...


class LaunchPredictor(Protocol):
    """What the service needs. It may be called from one thread only, and should answer within milliseconds."""

    def price_launch(self, launch: Launch, /) -> PriceLike: ...


@runtime_checkable
class BatchLaunchPredictor(Protocol):
    """A predictor that prices several launches at once, in their order, used where it has this method."""

    def price_launches(self, launches: Sequence[Launch], /) -> Sequence[PriceLike]: ...


class StopEvent(Protocol):
    """threading.Event, multiprocessing.Event, ..."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """What a service did. unknown, failed: by kind and name, what had no price, and what the predictor raised on."""

    answered: int
    unknown: Mapping[str, int]
    failed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PriceStatistics:
    """Counts of a run, over all its services. requests - answers are outstanding."""

    requests: int
    answers: int
    unknown_answers: int
    evictions: int
    lasting_evictions: int
    names: int
    service_pid: int


class PricingError(RuntimeError):
    """A service that cannot start; the message says what to do."""


def attach(run_dir: Path | str) -> Any:
    """Maps a run's devices without taking part in it, and returns the core. Raises PricingError."""
    bound = core()
    status = bound.lib.hl_segment_open(os.fsencode(run_dir))
    if status != 0:
        raise PricingError(
            f"cannot map the devices of the run in {run_dir}: {os.strerror(-status)}; has it ended, or was it made by "
            "another version of hyperlapse?"
        )
    return bound


def statistics() -> PriceStatistics:
    """Counts of the run that this process is attached to."""
    bound = core()
    totals = bound.ffi.new("hl_price_totals *")
    bound.lib.hl_price_statistics(totals)
    return PriceStatistics(**{name: int(getattr(totals, name)) for name in PriceStatistics.__slots__})


def serve(run_dir: Path | str, predictor: LaunchPredictor, stop_event: StopEvent) -> ServiceReport:
    """Answers requests until the event is set. Requests that an earlier service took and did not answer come again.

    The process must be exempt from the clock (`Run.spawn_service`). Raises PricingError; never because of a launch.
    """
    service = _Service(attach(run_dir), predictor)
    service.lib.hl_price_serve(os.getpid())
    try:
        while not stop_event.is_set():
            service.answer_some(_TAKE_MS)
    finally:
        service.lib.hl_price_serve(0)
    return ServiceReport(service.answered, dict(service.unknown), dict(service.failed))


class _Service:
    def __init__(self, bound: Any, predictor: LaunchPredictor) -> None:
        self.ffi, self.lib = bound.ffi, bound.lib
        self._predictor = predictor
        self._request = self.ffi.new("hl_price_request *")
        self._answer = self.ffi.new("hl_price *")
        self._shown: Counter[str] = Counter()
        self.answered = 0
        self.unknown: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def answer_some(self, wait_ms: int) -> None:
        """Waits for a request; answers it and those that came with it, each as soon as it is priced."""
        batch: list[tuple[int, Launch]] = []
        while len(batch) < _BATCH_MAX and self.lib.hl_price_take(self._request, 0 if batch else wait_ms):
            batch.append((self._request.index, self._launch()))
        prices = self._at_once([launch for _, launch in batch]) if len(batch) > 1 else None
        for position, (index, launch) in enumerate(batch):
            price = self._price(launch) if prices is None else self._checked(launch, prices[position])
            self._give(index, launch, price)

    def _launch(self) -> Launch:
        request, string = self._request, self.ffi.string
        return Launch(
            kind=KINDS[request.kind],
            device=request.device,
            name=string(request.name).decode(errors="replace"),
            args=tuple(request.arg),
            tokens=request.tokens,
            annotation=self.ffi.unpack(request.annotation, request.annotation_length).decode("ascii", errors="replace"),
        )

    def _at_once(self, launches: Sequence[Launch]) -> Sequence[PriceLike] | None:
        """None: one after the other, because the predictor cannot, or because one of them makes it fail."""
        if not isinstance(self._predictor, BatchLaunchPredictor):
            return None
        try:
            prices = self._predictor.price_launches(launches)
            return prices if len(prices) == len(launches) else None
        except Exception:
            return None

    def _price(self, launch: Launch) -> Price | None:
        try:
            return self._checked(launch, self._predictor.price_launch(launch))
        except Exception as error:
            self._report(launch, error)
            return None

    def _checked(self, launch: Launch, price: PriceLike) -> Price | None:
        try:
            good = Price(int(price.duration_ns), tuple(map(int, price.coverage_ns)), int(price.depends))  # type: ignore[arg-type]
            if len(good.coverage_ns) != 5 or min(good.coverage_ns) < 0 or sum(good.coverage_ns) != good.duration_ns:
                raise ValueError(f"a price whose coverage does not sum to its duration: {good}")
        except Exception as error:
            self._report(launch, error)
            return None
        return good

    def _report(self, launch: Launch, error: Exception) -> None:
        """The traceback once for each place that raises; every failure is counted."""
        label = f"{launch.kind} {launch.name}"
        self.failed[label] += 1
        self.lib.hl_report_event(b"predictor-failed", f"{label}: {type(error).__name__}: {error}".encode())
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__
        self._shown[place] += 1
        if self._shown[place] == 1:
            sys.stderr.write(
                f"hyperlapse: the predictor failed on {launch}; "
                "launches like it take no device time and count as unknown\n"
                + "".join(traceback.format_exception(error))
            )
            sys.stderr.flush()

    def _give(self, index: int, launch: Launch, price: Price | None) -> None:
        answer = self._answer
        if price is None:
            price, least_certain = Price(0, (0, 0, 0, 0, 0)), _UNKNOWN
        else:
            shares = [origin for origin, share_ns in enumerate(price.coverage_ns) if share_ns]
            least_certain = max(shares, default=_ANALYTICAL)
        answer.duration_ns = price.duration_ns
        answer.coverage = least_certain
        answer.depends = price.depends & (DEPENDS_TOKENS | DEPENDS_BATCH)
        for origin in range(5):
            answer.coverage_ns[origin] = price.coverage_ns[origin]
        if least_certain == _UNKNOWN:
            self.unknown[f"{launch.kind} {launch.name}"] += 1
        self.answered += 1
        self.lib.hl_price_answer(index, answer)
