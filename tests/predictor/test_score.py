"""The scores: computed from held-out cells, and good where the answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor import score
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage

from .conftest import STEPS, MadeUpDatabase


@pytest.fixture(scope="module")
def no_gap(device: DeviceSpec) -> DeviceSpec:
    return dataclasses.replace(device, graph_gap_ns=0)


def test_a_held_out_row_is_not_seen(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    """A row that is wrong by a factor of ten must show as an error; it would not if it were still in the table."""
    latency = made_up.table.latency_ns.copy()
    latency[4] *= 10
    errors = score.gemm_rows_held_out(dataclasses.replace(made_up.table, latency_ns=latency), no_gap)
    assert (np.abs(errors) > 0.8).sum() >= latency[4].size


def test_a_held_out_site_is_not_seen(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    latency = made_up.table.latency_ns.copy()
    latency[:, 1, 1] *= 10
    errors = score.gemm_sites_held_out(dataclasses.replace(made_up.table, latency_ns=latency), no_gap)
    assert (np.abs(errors) > 0.8).sum() >= latency.shape[0]


def test_held_out_lines_of_a_made_up_attention(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    for phase in ("decode", "prefill"):
        for axis in ("length", "batch"):
            found = score.score(phase, score.attention_held_out(made_up, no_gap, phase, axis))
            assert found.median < 3, (phase, axis)
    assert score.score("chunks", score.chunks(made_up, no_gap)).median < 5


def test_folds_hold_every_inner_site_out_once(made_up: MadeUpDatabase) -> None:
    folds = score._folds(made_up.table)
    sites = [site for fold in folds for site in fold]
    assert len(sites) == len(set(sites)) == 4


def test_held_out_edges(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    latency = made_up.table.latency_ns.copy()
    latency[:, -1] *= 10
    errors = score.gemm_edges_held_out(dataclasses.replace(made_up.table, latency_ns=latency), no_gap)
    assert (np.abs(errors) > 0.8).sum() >= latency[:, -1].size - len(made_up.table.m)  # not seen when it is held out
    assert score.score("longest", score.longest_held_out(made_up, no_gap)).median < 3


def test_scores_become_errors_that_grow_with_distance(tmp_path: Path) -> None:
    scores = [
        score.Score("GEMM, measured by this and by another collector (1)", 5.0, 20.0, 9),
        score.Score("GEMM, measured by this and by another collector (2)", 3.0, 9.0, 9),
        score.Score("GEMM, one m held out", 2.5, 12.0, 9),
        score.Score("GEMM, one (n, k) site held out", 2.9, 10.0, 9),
        score.Score("GEMM, the last n or k held out", 2.0, 30.0, 9),
    ]
    path = tmp_path / "accuracy.json"
    score.write(path, "one", scores)
    score.write(path, "other", scores[1:])
    found = accuracies.read(path)
    assert set(found) == {"one", "other"}
    here = [found["one"].of("gemm", coverage) for coverage in list(Coverage)[:3]]
    assert [(error.median, error.p90) for error in here] == [(0.03, 0.09), (0.03, 0.12), (0.03, 0.3)]


def test_carried_over_tables_of_a_product_to_itself_are_its_own(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    made_up_scores = score.carried_over(made_up, made_up, no_gap, no_gap)
    assert [each.p90 for each in made_up_scores] == [0.0, 0.0, 0.0, 0.0]


def test_an_unknown_gpu_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["--gpu", "nonsense", "--engine", "none"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_documented_table_is_the_one_that_prices_use() -> None:
    """docs/durations.md shows what `score --table` prints of the integration's accuracy.json."""
    printed = score.table(STEPS.parent / "accuracy.json")
    assert printed.count("\n") == 1 + 3 * len(accuracies.FAMILIES)
    assert printed in (Path(__file__).parents[2] / "docs" / "durations.md").read_text(encoding="utf-8")
