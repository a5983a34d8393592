"""The scores: computed from held-out cells, and good where the answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hyperlapse.predictor import score
from hyperlapse.predictor.devices import DeviceSpec

from .conftest import MadeUpDatabase


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


def test_an_unknown_gpu_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.main(["--gpu", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
