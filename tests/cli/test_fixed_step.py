"""The predictor of the causality test."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hyperlapse.cli.fixed_step import FixedStepPredictor, parse_fixed_step, prefill_tokens


@dataclass
class Launch:
    kind: str
    annotation: str


@pytest.mark.parametrize(
    ("sequences", "tokens"),
    [
        ("1:1030,1:1100x2,1:1200", 0),
        ("1024:0", 1024),
        ("1:1030x7,1000:0,24:8168", 1024),
        ("500:0x3", 1500),
        ("1:0", 1),
        ("1:1008", 0),
    ],
)
def test_prompt_tokens_of_a_batch(sequences: str, tokens: int) -> None:
    assert prefill_tokens(f"v1 graph=none tokens=2048 rows=4 seqs={sequences}") == tokens


def test_a_step_costs_its_base_and_its_prompt_tokens() -> None:
    predictor = parse_fixed_step("10ms,40us")
    assert predictor == FixedStepPredictor(10_000_000, 40_000)
    price = predictor.price_launch(Launch("step", "v1 graph=none tokens=1024 rows=1 seqs=1024:0"))
    assert price.duration_ns == 50_960_000
    assert sum(price.coverage_ns) == price.duration_ns
    assert predictor.price_launch(Launch("kernel", "")).duration_ns == 0


@pytest.mark.parametrize("text", ["10ms", "10ms,40us,1", "10,40us", "ten ms,40us", "-1ms,40us", ""])
def test_a_wrong_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_fixed_step(text)


def test_an_annotation_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="no seqs="):
        prefill_tokens("v1 graph=none")
