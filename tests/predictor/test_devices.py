"""Device facts: bundled files load, wrong ones are refused, and the gaps agree with the run's device profile."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

from hyperlapse.predictor.devices import DeviceSpec, UnknownDeviceError, device_names
from hyperlapse.shim import devices


def test_every_bundled_product_loads() -> None:
    assert "h100-sxm-80gb" in device_names()
    for name in device_names():
        assert DeviceSpec.named(name).name == name


def test_an_unknown_product_names_the_nearest() -> None:
    with pytest.raises(UnknownDeviceError, match="did you mean h100-sxm-80gb"):
        DeviceSpec.named("h100-sxm")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"multiprocessors": "many"}, "multiprocessors"),
        ({"mood": 1}, "mood"),
        ({"launch_gap_ns": None}, "launch_gap_ns"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    text = resources.files("hyperlapse.predictor").joinpath("products/h100-sxm-80gb.yaml").read_text()
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(text), **change}))
    with pytest.raises(ValueError, match=says):
        DeviceSpec.from_yaml(path)


def test_a_missing_fact_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ValueError, match="is missing"):
        DeviceSpec.from_yaml(path)


def test_light_is_the_longer_of_bytes_and_operations(device: DeviceSpec) -> None:
    assert device.light_ns(3_350_000, 0) == pytest.approx(1000)
    assert device.light_ns(0, 989_400_000) == pytest.approx(1000)
    assert device.light_ns(3_350_000, 2 * 989_400_000) == pytest.approx(2000)


@pytest.mark.parametrize("name", device_names())
def test_gaps_and_facts_agree_with_the_device_profile(name: str) -> None:
    """Two files state them, because neither package knows the other."""
    spec, profile = DeviceSpec.named(name), devices.load(name)
    for fact in (
        "launch_gap_ns",
        "graph_gap_ns",
        "graph_launch_ns",
        "copy_latency_ns",
        "multiprocessors",
        "l2_cache_bytes",
    ):
        assert getattr(spec, fact) == getattr(profile.facts, fact), fact
    bandwidth = 2 * profile.facts.memory_clock_khz * 1000 * profile.facts.memory_bus_bits / 8
    assert spec.memory_bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=0.03)  # data sheets round
