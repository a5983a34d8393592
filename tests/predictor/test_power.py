"""Matrix products at the power limit: when, how much, and that both details see the same."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.predictor.devices import DeviceSpec, check_fields
from hyperlapse.predictor.power import PowerLimit
from hyperlapse.predictor.prediction import Coverage, Prediction

DEVICE = dataclasses.replace(
    DeviceSpec.named("h100-sxm-80gb"),
    power_limit_after_ns=50_000_000,
    power_limit_slowdown=1.1,
    power_limit_tables_below_ns=1_500_000,
)
PRODUCT = Prediction(1_000_000, Coverage.MEASURED, 0.04, 0.1)


def limit(busy_ns: float, device: DeviceSpec = DEVICE) -> PowerLimit:
    return PowerLimit(device, lambda rows: busy_ns)


def test_short_steps_are_as_the_tables_have_them() -> None:
    assert limit(50_000_000).apply(PRODUCT, 1024) is PRODUCT


def test_what_comes_after_the_limit_is_slower() -> None:
    found = limit(100_000_000).apply(PRODUCT, 2048)  # half of the step at 1.1
    assert found.duration_ns == 1_050_000
    assert found.coverage is Coverage.INTERPOLATED
    assert found.error_ratio == PRODUCT.error_ratio


def test_a_product_that_was_measured_at_the_limit_stays() -> None:
    long = dataclasses.replace(PRODUCT, duration_ns=1_500_000)
    assert limit(1e9).apply(long, 8192) is long


def test_nothing_is_assumed_of_products_that_nobody_measured() -> None:
    unmeasured = dataclasses.replace(DEVICE, power_limit_slowdown=0.0)
    assert limit(1e9, unmeasured).apply(PRODUCT, 8192) is PRODUCT
    derived = DEVICE.derived(
        "other",
        multiprocessors=100,
        l2_cache_bytes=DEVICE.l2_cache_bytes,
        memory_bandwidth_bytes_per_s=DEVICE.memory_bandwidth_bytes_per_s,
        clock_ratio=1.0,
        overrides={},
    )
    assert derived.power_limit_slowdown == 0.0


@given(busy_ns=st.floats(1, 1e12))
def test_the_factor_is_between_one_and_the_slowdown(busy_ns: float) -> None:
    assert 1.0 <= limit(busy_ns).factor(1) <= DEVICE.power_limit_slowdown


@given(short_ns=st.floats(1, 1e10), more_ns=st.floats(0, 1e10))
def test_a_longer_step_is_not_slowed_less(short_ns: float, more_ns: float) -> None:
    assert limit(short_ns).factor(1) <= limit(short_ns + more_ns).factor(1) + 1e-12


def test_a_speed_up_is_refused() -> None:
    with pytest.raises(ValueError, match="`power_limit_slowdown` must be 1 or more"):
        check_fields({"power_limit_slowdown": 0.9}, where="my.yaml")
