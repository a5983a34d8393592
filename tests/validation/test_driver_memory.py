"""The driver's memory of cards that were not measured is what the one formula gives."""

from __future__ import annotations

import pytest

from hyperlapse.shim import devices
from hyperlapse.validation import driver_memory


@pytest.mark.parametrize("gpu", [gpu for gpu in devices.names() if gpu != driver_memory.MEASURED])
def test_a_profile_has_what_the_formula_gives(gpu: str) -> None:
    profile = devices.load(gpu)
    derived = driver_memory.derived(profile.facts)
    assert {name: getattr(profile.facts, name) for name in derived} == derived
    for name in ("stream_bytes", "first_kernel_bytes"):
        assert "driver_memory.py" in profile.sources[name]


def test_the_formula_gives_back_the_card_that_was_measured() -> None:
    facts = devices.load(driver_memory.MEASURED).facts
    derived = driver_memory.derived(facts)
    assert {name: getattr(facts, name) for name in derived} == derived
