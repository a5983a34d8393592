"""Tables carried over to a product that nobody measured, and the products that ask for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlapse.predictor.database import ExpertConfig, HeadConfig
from hyperlapse.predictor.devices import DeviceSpec, device_names
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.prediction import Coverage
from hyperlapse.predictor.transfer import TransferredDatabase, light_ns, reached_rates

from .conftest import MadeUpDatabase

CONFIG = HeadConfig(40, 8, 128, "bfloat16")
LAYER = ExpertConfig(2048, 768, 8, 128)


@pytest.fixture(scope="module")
def twice(device: DeviceSpec) -> DeviceSpec:
    """Twice the bandwidth and twice the rate."""
    return dataclasses.replace(
        device,
        name="twice",
        memory_bandwidth_bytes_per_s=2 * device.memory_bandwidth_bytes_per_s,
        bf16_flops_per_s=2 * device.bf16_flops_per_s,
    )


def test_the_same_product_keeps_its_table(made_up: MadeUpDatabase, device: DeviceSpec) -> None:
    carried = TransferredDatabase(made_up, device, device)
    assert np.allclose(carried.gemm().latency_ns, made_up.table.latency_ns)
    assert np.allclose(carried.decode(CONFIG).latency_ns, made_up.decode_table.latency_ns)


def test_busy_work_is_halved_and_what_is_fixed_stays(
    made_up: MadeUpDatabase, device: DeviceSpec, twice: DeviceSpec
) -> None:
    """Kernels near the reached rates follow them; the others follow clocks and multiprocessors, which are the same."""
    carried = TransferredDatabase(made_up, device, twice)
    for own, other in (
        (made_up.table, carried.gemm()),
        (made_up.decode_table, carried.decode(CONFIG)),
        (made_up.prefill_table, carried.prefill(CONFIG)),
        (made_up.expert_table, carried.experts(LAYER)),
    ):
        fixed_ns = own.latency_ns.min()
        halved_ns = fixed_ns + (own.latency_ns - fixed_ns) / 2
        assert (other.latency_ns >= 0.999 * halved_ns).all()
        assert (other.latency_ns <= 1.001 * own.latency_ns).all()
        assert other.coverage is Coverage.EXTRAPOLATED
        longest = np.unravel_index(np.argmax(own.latency_ns), own.latency_ns.shape)
        assert other.latency_ns[longest] == pytest.approx(halved_ns[longest], rel=0.02)


def test_a_kv_cache_in_the_l2_does_not_follow_the_memory(
    made_up: MadeUpDatabase, device: DeviceSpec, twice: DeviceSpec
) -> None:
    carried = TransferredDatabase(made_up, device, twice).decode(CONFIG)
    size_bytes = 4096 * carried.batch[:, None] * carried.length[None, :]
    held = size_bytes <= device.l2_cache_bytes
    assert np.allclose(carried.latency_ns[held], made_up.decode_table.latency_ns[held], rtol=0.02)


def test_what_is_carried_over_is_never_called_measured(
    made_up: MadeUpDatabase, device: DeviceSpec, twice: DeviceSpec
) -> None:
    carried = TransferredDatabase(made_up, device, twice)
    found = GemmModel(carried.gemm(), twice).predict(1024, 4096, 4096)
    assert found.coverage is Coverage.EXTRAPOLATED
    assert any("carried over to twice" in note for note in carried.notes)


@settings(deadline=None, max_examples=30)
@given(faster=st.floats(0.1, 10), wider=st.floats(0.1, 10))
def test_never_faster_than_the_target_s_light(
    made_up: MadeUpDatabase, device: DeviceSpec, faster: float, wider: float
) -> None:
    target = dataclasses.replace(
        device,
        memory_bandwidth_bytes_per_s=round(device.memory_bandwidth_bytes_per_s * wider),
        bf16_flops_per_s=round(device.bf16_flops_per_s * faster),
    )
    table = TransferredDatabase(made_up, device, target).gemm()
    m, n, k = (axis.astype(float) for axis in np.meshgrid(table.m, table.n, table.k, indexing="ij"))
    least_ns = light_ns(target, 2 * (n * k + m * (n + k)), 2 * m * n * k)
    assert (table.latency_ns >= 0.999999 * least_ns).all()


def test_the_reached_rates_are_the_table_s_best(made_up: MadeUpDatabase, device: DeviceSpec) -> None:
    flops, bandwidth = reached_rates(made_up.table, device)
    assert flops == pytest.approx(800e12, rel=0.05)
    assert bandwidth == pytest.approx(3e12, rel=0.1)
    small = dataclasses.replace(device, l2_cache_bytes=10**12)
    assert reached_rates(made_up.table, small)[1] == small.memory_bandwidth_bytes_per_s * small.memory_bandwidth_share


def test_products_that_are_carried_over_name_a_measured_one() -> None:
    for name in device_names():
        device = DeviceSpec.named(name)
        if device.transfer_from:
            source = DeviceSpec.named(device.transfer_from)
            assert not source.transfer_from, name
            assert source.database_system == device.database_system, name
