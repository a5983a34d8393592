"""Error bars: they grow with what is uncertain, and never come from nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.prediction import Coverage, PredictorError, family_of
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.predictor.uncertainty import LIMIT, PricedTime, metric_errors


@given(error=st.floats(0, 1), queue_share=st.floats(0, 1))
def test_metrics_err_at_least_as_their_steps(error: float, queue_share: float) -> None:
    found = metric_errors(error, queue_share)
    assert found["tpot"] == found["itl"] == found["e2e"] == error
    assert found["ttft"] is not None
    assert error <= found["ttft"] <= error * LIMIT
    assert found["throughput"] == (error if queue_share else None), "no interval rather than one without a width"


def test_a_saturated_gpu_and_impossible_input() -> None:
    assert metric_errors(0.1, 1.0)["ttft"] == pytest.approx(0.1 * LIMIT)
    assert metric_errors(0.1, 0.5)["ttft"] == pytest.approx(0.2)
    for wrong in ((0.1, -0.1), (0.1, 1.1), (-0.1, 0.5)):
        with pytest.raises(ValueError, match=r"queue share|device error"):
            metric_errors(*wrong)


def test_priced_time_weighs_with_duration() -> None:
    priced = PricedTime()
    assert priced.error_ratio == 0
    priced.add(100, 0.1, 0.2, [("attention", 60), ("gaps", 40)])
    priced.add(300, 0.3, 0.4, [("attention", 300)])
    found = priced.as_dict(["a note"])
    assert (found["launches"], found["duration_ns"]) == (2, 400)
    assert (found["error_ratio"], found["error_ratio_90"]) == (0.25, 0.35)
    assert found["by_family"] == {"attention": 360, "gaps": 40}
    assert found["coverage_notes"] == ["a note"]


def test_a_step_errs_less_than_its_worst_operator_and_every_operator_has_a_family(steps: StepPredictor) -> None:
    step = steps.predict(BatchComposition.parse("v1 graph=none tokens=512 rows=1 seqs=512:0"))
    assert 0 < step.error_ratio < step.error90_ratio < accuracies.ANALYTICAL.p90
    assert all(operator.prediction.error_ratio < operator.prediction.error90_ratio for operator in step.operators)
    assert all(family_of(operator.name) != "other" for operator in step.operators)
    assert family_of("something new") == "other"


@pytest.mark.parametrize("family", accuracies.FAMILIES)
def test_further_from_a_measurement_errs_more(family: str) -> None:
    for accuracy in (accuracies.DEFAULT, accuracies.Accuracy({}, transferred=True)):
        found = [accuracy.of(family, coverage) for coverage in Coverage]
        assert all(error.median <= error.p90 for error in found)
        assert [error.p90 for error in found] == sorted(error.p90 for error in found)
    with pytest.raises(KeyError):
        accuracies.DEFAULT.of("poetry", Coverage.MEASURED)


@pytest.mark.parametrize("text", ["{", "[]", '{"systems": {"x": {"gemm": {"guessed": {"median": 1, "p90": 2}}}}}'])
def test_a_broken_table_of_errors_names_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(text)
    with pytest.raises(PredictorError, match=r"accuracy\.json"):
        accuracies.read(path)


def test_a_table_of_errors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps({"systems": {"x": {"gemm": {"measured": {"median": 0.5, "p90": 0.7}}}}}))
    found = accuracies.read(path)["x"]
    assert found.of("gemm", Coverage.MEASURED) == accuracies.ErrorRatio(0.5, 0.7)
    assert found.of("gemm", Coverage.ANALYTICAL) == accuracies.ANALYTICAL
