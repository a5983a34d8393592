"""Device profiles and the segment that they go into."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperlapse.shim import devices


def test_bundled_profiles_load_and_name_their_sources() -> None:
    assert "h100-sxm-80gb" in devices.names()
    for name in devices.names():
        profile = devices.load(name)
        assert profile.name == name
        assert all(profile.sources.values())
        assert len(profile.sha256) == 64


def test_alias() -> None:
    assert devices.load("h100-sxm").name == "h100-sxm-80gb"


@pytest.mark.parametrize("wrong", ["h100-smx", "H100-SXM-80G", "h100"])
def test_unknown_name_says_the_nearest(wrong: str) -> None:
    with pytest.raises(devices.UnknownDeviceError, match=r"did you mean .*h100-sxm"):
        devices.load(wrong)


def test_unknown_file() -> None:
    with pytest.raises(devices.UnknownDeviceError, match=r"no device profile file ./nothing.yaml"):
        devices.load("./nothing.yaml")


def _document() -> dict[str, Any]:
    return yaml.safe_load((devices.DIRECTORY / "h100-sxm-80gb.yaml").read_text())


def test_file_of_ones_own(tmp_path: Path) -> None:
    document = _document()
    document["name"] = "mine"
    document["facts"]["multiprocessors"]["value"] = 7
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    assert devices.load(str(path)).facts.multiprocessors == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["facts"].pop("l2_cache_bytes"), r"`l2_cache_bytes` \(bytes\) is missing"),
        (lambda d: d["facts"].update(l2_cache_byte={}), "unknown fact `l2_cache_byte`; did you mean `l2_cache_bytes`"),
        (lambda d: d["facts"]["clock_khz"].pop("source"), "`clock_khz` must have a `value` and a `source`"),
        (lambda d: d["facts"]["clock_khz"].update(source=" "), "`clock_khz` has no source"),
        (lambda d: d["facts"]["clock_khz"].update(value="fast"), "`clock_khz` must be a whole number"),
        (lambda d: d["facts"]["clock_khz"].update(value=1.5), "`clock_khz` must be a whole number"),
        (lambda d: d["facts"]["clock_khz"].update(value=0), "`clock_khz` must lie between 1 and"),
        (lambda d: d["facts"]["clock_khz"].update(value=2**31), "`clock_khz` must lie between"),
        (lambda d: d["facts"]["name"].update(value="x" * 96), "`name` must be a text of at most 95 bytes"),
        (lambda d: d.pop("facts"), "a mapping with `name` and `facts`"),
        (lambda d: d.update(name=5), "`name` must be a text"),
        (lambda d: d.update(fact={}), "unknown entry `fact`"),
    ],
)
def test_malformed_profile(tmp_path: Path, change: Any, message: str) -> None:
    document = _document()
    change(document)
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(devices.DeviceProfileError, match=message):
        devices.load(str(path))


@pytest.mark.parametrize("count", [0, 17, -1])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 16 virtual GPUs"):
        devices.facts_of(devices.load("h100-sxm-80gb"), count)


def test_segment_holds_the_facts(core: Any) -> None:
    assert core.lib.hl_device_count() == 2
    facts = core.lib.hl_device_facts_of(1)
    assert core.ffi.string(facts.name) == b"NVIDIA H100 80GB HBM3"
    assert core.ffi.string(facts.profile) == b"h100-sxm-80gb"
    assert facts.total_memory_bytes == 85017493504
    assert facts.graph_launch_ns == 1400
    assert core.ffi.string(facts.driver_text) == b"580.159.04"
    assert core.lib.hl_device_facts_of(2) == core.ffi.NULL


def test_segment_is_created_once(core: Any, run_dir: Path) -> None:
    facts = devices.facts_of(devices.load("h100-sxm-80gb"), 1)
    assert core.lib.hl_device_segment_create(os.fsencode(run_dir), facts, 1) < 0


def test_implausible_facts_are_refused(core: Any, tmp_path: Path) -> None:
    facts = devices.facts_of(devices.load("h100-sxm-80gb"), 1)
    facts[0].copy_d2h_bytes_per_s = 0
    (tmp_path / "other").mkdir()
    assert core.lib.hl_device_segment_create(os.fsencode(tmp_path / "other"), facts, 1) < 0
    assert not list((tmp_path / "other").iterdir())


def test_attaching_to_something_else(core: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert core.lib.hl_segment_open(os.fsencode(tmp_path / "other")) < 0
    (tmp_path / "other" / "gpu").write_bytes(b"something")
    assert core.lib.hl_segment_open(os.fsencode(tmp_path / "other")) < 0
    assert core.lib.hl_device_count() == 2
