"""Device profiles: the facts of a GPU product as CUDA and NVML report them, one YAML file each.

Profiles are data, so that a card can be added without code; each fact carries its source, because a plausible number
without one cannot be told from a measured one. What kernels cost is the predictor's business and not here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlapse.shim._core import core

DIRECTORY = Path(__file__).resolve().parent / "profiles"
DEVICES_MAX = 16
"""HL_DEVICES_MAX of csrc/core/device.h."""

_TEXT_BYTES = {"name": 96, "driver_text": 32}
_PROFILE_BYTES = 64
_INT32_MAX = 2**31 - 1
_MAY_BE_ZERO = {
    "context_bytes",
    "compute_minor",
    "persisting_l2_bytes_max",
    "pci_bus_first",
    "reserved_shared_memory_per_block_bytes",
    "copy_latency_ns",
    "launch_gap_ns",
    "graph_gap_ns",
    "graph_launch_ns",
}


class UnknownDeviceError(ValueError):
    """No profile of that name; the message has the nearest ones and says how to list them."""


class DeviceProfileError(ValueError):
    """A profile that cannot be used; the message names the file and the fact."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """``hl_device_facts`` of csrc/core/device.h, less the profile's name. Rates are achieved ones."""

    name: str
    total_memory_bytes: int
    context_bytes: int
    nvml_total_bytes: int
    compute_major: int
    compute_minor: int
    multiprocessors: int
    l2_cache_bytes: int
    shared_memory_per_block_bytes: int
    shared_memory_per_block_optin_bytes: int
    shared_memory_per_multiprocessor_bytes: int
    reserved_shared_memory_per_block_bytes: int
    registers_per_multiprocessor: int
    registers_per_block: int
    max_threads_per_multiprocessor: int
    max_blocks_per_multiprocessor: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    async_engines: int
    persisting_l2_bytes_max: int
    pci_bus_first: int
    copy_h2d_bytes_per_s: int
    copy_d2h_bytes_per_s: int
    copy_d2d_bytes_per_s: int
    copy_latency_ns: int
    launch_gap_ns: int
    graph_gap_ns: int
    graph_launch_ns: int
    driver_version: int
    driver_text: str


_INT64_FACTS = {
    field.name
    for field in dataclasses.fields(DeviceFacts)
    if field.name in {"total_memory_bytes", "context_bytes", "nvml_total_bytes"}
    or field.name.endswith(("_per_s", "_ns"))
}


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A GPU product. sources: by fact; sha256: of the file, for a run's provenance."""

    name: str
    aliases: tuple[str, ...]
    facts: DeviceFacts
    sources: Mapping[str, str]
    path: Path
    sha256: str


def names() -> tuple[str, ...]:
    """Bundled profiles, sorted."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))


def load(name: str) -> DeviceProfile:
    """A bundled profile by name or alias, or the profile in a YAML file when ``name`` is a path.

    Raises UnknownDeviceError, DeviceProfileError.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UnknownDeviceError(
                f"there is no device profile file {name}; bundled profiles are: {', '.join(names())}"
            )
        return read(path)
    known = names()
    if name in known:
        return read(DIRECTORY / f"{name}.yaml")
    aliases = {alias: profile for profile in known for alias in read(DIRECTORY / f"{profile}.yaml").aliases}
    if name in aliases:
        return read(DIRECTORY / f"{aliases[name]}.yaml")
    near = difflib.get_close_matches(name.lower(), [*known, *aliases], n=3, cutoff=0.4)
    raise UnknownDeviceError(
        f"unknown GPU {name!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
        + f" Known: {', '.join(known)}. A YAML file of your own works too: --gpu ./my-gpu.yaml"
    )


def read(path: Path) -> DeviceProfile:
    """The profile in a file. Raises DeviceProfileError, OSError."""
    import yaml

    raw = path.read_bytes()
    try:
        document = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise DeviceProfileError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("facts"), dict):
        raise DeviceProfileError(f"{path}: a device profile is a mapping with `name` and `facts`")
    name = document.get("name")
    if not isinstance(name, str) or not 0 < len(name.encode()) < _PROFILE_BYTES:
        raise DeviceProfileError(f"{path}: `name` must be a text of at most {_PROFILE_BYTES - 1} bytes")
    aliases = document.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise DeviceProfileError(f"{path}: `aliases` must be a list of texts")
    unknown = set(document) - {"name", "aliases", "facts"}
    if unknown:
        raise DeviceProfileError(f"{path}: unknown entry `{min(unknown)}`; known are name, aliases and facts")
    values, sources = _facts(path, document["facts"])
    return DeviceProfile(name, tuple(aliases), DeviceFacts(**values), sources, path, hashlib.sha256(raw).hexdigest())


def _facts(path: Path, facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    wanted = [field.name for field in dataclasses.fields(DeviceFacts)]
    for name in facts:
        if name not in wanted:
            near = difflib.get_close_matches(name, wanted, n=1)
            raise DeviceProfileError(
                f"{path}: unknown fact `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")
            )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in wanted:
        if name not in facts:
            raise DeviceProfileError(f"{path}: the fact `{name}` is missing")
        entry = facts[name]
        if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
            raise DeviceProfileError(f"{path}: `{name}` must have a `value` and a `source`, and nothing else")
        if not isinstance(entry["source"], str) or not entry["source"].strip():
            raise DeviceProfileError(f"{path}: `{name}` has no source")
        values[name] = _checked(path, name, entry["value"])
        sources[name] = " ".join(entry["source"].split())
    return values, sources


def _checked(path: Path, name: str, value: Any) -> int | str:
    if name in _TEXT_BYTES:
        if not isinstance(value, str) or not 0 < len(value.encode()) < _TEXT_BYTES[name]:
            raise DeviceProfileError(f"{path}: `{name}` must be a text of at most {_TEXT_BYTES[name] - 1} bytes")
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise DeviceProfileError(f"{path}: `{name}` must be a whole number, not {value!r}")
    limit = 2**62 if name in _INT64_FACTS else _INT32_MAX
    least = 0 if name in _MAY_BE_ZERO else 1
    if not least <= value <= limit:
        raise DeviceProfileError(f"{path}: `{name}` must lie between {least} and {limit}, not {value}")
    return value


def facts_of(profile: DeviceProfile, count: int) -> Any:
    """``hl_device_facts[count]`` for `hl_device_segment_create`. Raises ValueError for a count that no run can have."""
    if not 1 <= count <= DEVICES_MAX:
        raise ValueError(f"a run has 1 to {DEVICES_MAX} virtual GPUs, not {count}")
    facts = core().ffi.new("hl_device_facts[]", count)
    for device in facts:
        device.profile = profile.name.encode()
        for field in dataclasses.fields(DeviceFacts):
            value = getattr(profile.facts, field.name)
            setattr(device, field.name, value.encode() if isinstance(value, str) else value)
    return facts
