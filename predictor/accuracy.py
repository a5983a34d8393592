"""How wrong a prediction may be: held-out errors by family of operators and coverage, as numbers beside each duration.

Every measured family is scored by leaving measurements out (score.py); what that found for a GPU system and an engine
comes here as data (`accuracy.json` beside the engine's other data, written by `score --write`). Where nobody scored, the
figures below are used: those of the first product that was, rounded up. Analytical durations cannot be scored, because
nothing was measured; theirs is a stated guess.

It must never hold a number that was fitted to a recorded serving run: an error bar that was drawn around its own target
says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperlapse.predictor.prediction import Coverage, PredictorError

GEMM, DECODE, PREFILL, EXPERTS = "gemm", "decode_attention", "prefill_attention", "experts"
QUANTISED_GEMM, SHARED_EXPERTS = "quantised_gemm", "experts_on_several_gpus"
COLLECTIVES = "collectives"
FAMILIES = (GEMM, QUANTISED_GEMM, DECODE, PREFILL, EXPERTS, SHARED_EXPERTS)


@dataclass(frozen=True, slots=True)
class ErrorRatio:
    """Absolute relative errors: half of the held-out cells have a smaller one than `median`, nine in ten than `p90`."""

    median: float
    p90: float


# Nothing measured behind it. The share of the peak bandwidth and the fixed cost are each good to about a third.
ANALYTICAL = ErrorRatio(0.3, 0.6)
UNKNOWN = ErrorRatio(1.0, 1.0)
# Tables carried over from another product: the worst of `hyperlapse predict --score --carried-over-from` between five pairs of
# measured products and four families (docs/durations.md). Nobody knows beforehand which pair a new product resembles.
TRANSFERRED = ErrorRatio(0.35, 0.65)

_DEFAULT: dict[str, dict[Coverage, ErrorRatio]] = {
    GEMM: {
        Coverage.MEASURED: ErrorRatio(0.034, 0.092),
        Coverage.INTERPOLATED: ErrorRatio(0.034, 0.123),
        Coverage.EXTRAPOLATED: ErrorRatio(0.06, 0.2),
    },
    # Extrapolated: where the block-wise table and the one that its host-limited cells are replaced from can be compared.
    QUANTISED_GEMM: {
        Coverage.MEASURED: ErrorRatio(0.04, 0.13),
        Coverage.INTERPOLATED: ErrorRatio(0.04, 0.15),
        Coverage.EXTRAPOLATED: ErrorRatio(0.12, 0.3),
    },
    DECODE: {
        Coverage.MEASURED: ErrorRatio(0.01, 0.04),
        Coverage.INTERPOLATED: ErrorRatio(0.025, 0.116),
        Coverage.EXTRAPOLATED: ErrorRatio(0.1, 0.2),
    },
    PREFILL: {
        Coverage.MEASURED: ErrorRatio(0.01, 0.04),
        Coverage.INTERPOLATED: ErrorRatio(0.03, 0.1),
        Coverage.EXTRAPOLATED: ErrorRatio(0.1, 0.2),
    },
    # Leave one message size out, over six products, five operations and 2, 4 and 8 ranks: 2.0 / 13.5 %; the largest: 0.8 / 3.0 %
    # (22 % at the 90th percentile of the worst product). How far two collections differ was not scored.
    COLLECTIVES: {
        Coverage.MEASURED: ErrorRatio(0.02, 0.135),
        Coverage.INTERPOLATED: ErrorRatio(0.02, 0.135),
        Coverage.EXTRAPOLATED: ErrorRatio(0.02, 0.22),
    },
    EXPERTS: {
        Coverage.MEASURED: ErrorRatio(0.1, 0.25),
        Coverage.INTERPOLATED: ErrorRatio(0.1, 0.25),
        Coverage.EXTRAPOLATED: ErrorRatio(0.15, 0.4),
    },
    SHARED_EXPERTS: {
        Coverage.MEASURED: ErrorRatio(0.1, 0.25),
        Coverage.INTERPOLATED: ErrorRatio(0.1, 0.25),
        Coverage.EXTRAPOLATED: ErrorRatio(0.15, 0.4),
    },
}

_NAMES = {kind.name.lower(): kind for kind in (Coverage.MEASURED, Coverage.INTERPOLATED, Coverage.EXTRAPOLATED)}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors of one GPU system's tables. transferred: they are used for another product than the measured one."""

    families: Mapping[str, Mapping[Coverage, ErrorRatio]]
    transferred: bool = False

    def of(self, family: str, coverage: Coverage) -> ErrorRatio:
        """The error of a family's predictions with this coverage. Raises KeyError for an unknown family."""
        if coverage is Coverage.UNKNOWN:
            return UNKNOWN
        if coverage is Coverage.ANALYTICAL:
            nearer = [ANALYTICAL]
        else:
            known, guessed = self.families.get(family, {}), _DEFAULT[family]
            nearer = [known.get(each) or guessed[each] for each in Coverage if each <= coverage]
        if self.transferred:
            nearer.append(TRANSFERRED)
        # Nothing errs less for being further from a measurement.
        return ErrorRatio(max(error.median for error in nearer), max(error.p90 for error in nearer))


DEFAULT = Accuracy({})


def read(path: Path) -> dict[str, Accuracy]:
    """System -> its accuracy, from the JSON that `score --write` makes. Raises PredictorError for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {
            system: Accuracy(
                {
                    family: {
                        _NAMES[coverage]: ErrorRatio(float(entry["median"]), float(entry["p90"]))
                        for coverage, entry in coverages.items()
                    }
                    for family, coverages in families.items()
                }
            )
            for system, families in document["systems"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PredictorError(
            f"{path}: not a table of held-out errors ({error!r}): make it with `score --write`"
        ) from error
