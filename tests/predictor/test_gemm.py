"""Matrix products: measured cells come back, tile boundaries stay, nothing is faster than light."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.gemm import GemmModel, tile_weight
from hyperlapse.predictor.prediction import Coverage

from .conftest import MadeUpDatabase


@pytest.fixture(scope="module")
def no_gap(device: DeviceSpec) -> DeviceSpec:
    return dataclasses.replace(device, graph_gap_ns=0)


@pytest.fixture(scope="module")
def made_up_model(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> GemmModel:
    return GemmModel(made_up.gemm(), no_gap)


def test_measured_cells_come_back(made_up: MadeUpDatabase, made_up_model: GemmModel) -> None:
    found = made_up_model.predict(1024, 4096, 4096)
    assert found.coverage is Coverage.MEASURED
    assert found.duration_ns == pytest.approx(made_up.table.latency_ns[5, 2, 2], abs=1)


def test_streaming_rows_take_their_neighbours_bandwidth(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    """One slow reading among memory-bound rows is the measuring GPU's; it must not be believed."""
    latency = made_up.table.latency_ns.copy()
    clean = latency[1, 3, 3]
    latency[1, 3, 3] *= 1.17
    found = GemmModel(dataclasses.replace(made_up.table, latency_ns=latency), no_gap).predict(64, 16384, 16384)
    assert found.duration_ns == pytest.approx(clean, rel=0.03)


def test_a_jump_at_a_tile_boundary_is_kept(made_up: MadeUpDatabase, no_gap: DeviceSpec) -> None:
    latency = made_up.table.latency_ns.copy()
    latency[6:] *= 1.5  # from 1,025 rows on
    model = GemmModel(dataclasses.replace(made_up.table, latency_ns=latency), no_gap)
    below, above = (model.predict(m, 4096, 4096).duration_ns for m in (1024, 1025))
    assert above / below > 1.45


def test_one_tile_costs_one_price(made_up_model: GemmModel) -> None:
    prices = {made_up_model.predict(m, 4096, 4096).duration_ns for m in range(961, 1025)}
    assert len(prices) == 1
    assert made_up_model.predict(960, 4096, 4096).duration_ns < min(prices)


def test_between_and_beyond_the_measured_sites(made_up_model: GemmModel) -> None:
    assert made_up_model.predict(1024, 2048, 4096).coverage is Coverage.INTERPOLATED
    assert made_up_model.predict(1000, 4096, 4096).coverage is Coverage.INTERPOLATED
    wide = made_up_model.predict(1024, 160_000, 4096)
    assert wide.coverage is Coverage.EXTRAPOLATED
    edge = made_up_model.predict(1024, 16384, 4096)
    assert wide.duration_ns / edge.duration_ns == pytest.approx(160_000 / 16384, rel=0.02)
    long = made_up_model.predict(40_000, 4096, 4096)
    assert long.coverage is Coverage.EXTRAPOLATED
    assert long.duration_ns > 15 * made_up_model.predict(2048, 4096, 4096).duration_ns


def test_a_batch_of_products_and_an_empty_one(made_up_model: GemmModel) -> None:
    one, eight = (made_up_model.predict(64, 512, 512, batch).duration_ns for batch in (1, 8))
    assert one <= eight <= 8 * one
    assert made_up_model.predict(0, 512, 512).coverage is Coverage.ANALYTICAL


@pytest.mark.parametrize(("m", "weight"), [(769, 0.0), (832, 0.0), (833, 1 / 3), (961, 1.0), (1024, 1.0)])
def test_tile_weights(m: int, weight: float) -> None:
    assert tile_weight(769, m, 1024) == pytest.approx(weight)


def test_inside_one_tile_rows_count() -> None:
    assert tile_weight(1, 5, 9) == pytest.approx(0.5)


def test_the_boundary_at_1024_of_the_measured_table(database: KernelDatabase, device: DeviceSpec) -> None:
    """Measured for 5,120 x 5,120: 65 us at 1,024 rows, 102 us at 1,025."""
    model = GemmModel(database.gemm(), device)
    assert model.predict(1025, 5120, 5120).duration_ns > 1.4 * model.predict(1024, 5120, 5120).duration_ns


@settings(deadline=None)
@given(m=st.integers(1, 40_000), n=st.integers(16, 200_000), k=st.integers(16, 60_000))
def test_never_faster_than_light(database: KernelDatabase, device: DeviceSpec, m: int, n: int, k: int) -> None:
    model = _kept(database, device)
    assert model.predict(m, n, k).duration_ns >= int(model.light_ns(m, n, k))


@settings(deadline=None)
@given(m=st.integers(1, 16_000))
def test_more_rows_cost_more_up_to_tile_noise(database: KernelDatabase, device: DeviceSpec, m: int) -> None:
    """CuBLAS changes kernels with m, and some rows are measured slower than more rows: by less than a half."""
    model = _kept(database, device)
    assert model.predict(2 * m, 34816, 5120).duration_ns > 0.9 * model.predict(m, 34816, 5120).duration_ns
    assert model.predict(m + 1, 34816, 5120).duration_ns > 0.7 * model.predict(m, 34816, 5120).duration_ns


_models: dict[int, GemmModel] = {}


def _kept(database: KernelDatabase, device: DeviceSpec) -> GemmModel:
    if id(database) not in _models:
        _models[id(database)] = GemmModel(database.gemm(), device)
    return _models[id(database)]


def test_a_table_with_nothing_complete_is_refused(made_up: MadeUpDatabase, device: DeviceSpec) -> None:
    empty = dataclasses.replace(made_up.table, latency_ns=np.full_like(made_up.table.latency_ns, np.nan))
    with pytest.raises(ValueError, match="without a single complete"):
        GemmModel(empty, device)
