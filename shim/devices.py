"""Device profiles: the facts of a GPU product as CUDA and NVML report them, one YAML file each.

Profiles are data, so that a card can be added without code; each fact carries its source, because a plausible number
without one cannot be told from a measured one. What kernels cost is the predictor's business and not here: a section
`durations` is handed on unread.

Users add cards as files of their own: `--gpu ./my-gpu.yaml`, or a file in the folder `user_directory()`, which is found
by name before the bundled ones. `extends: <profile>` takes every fact that the file does not give from another profile.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
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
    "stream_bytes",
    "first_kernel_bytes",
    "kernel_code_bytes",
    "cublas_bytes",
    "graph_bytes",
    "graph_node_bytes",
    "compute_minor",
    "persisting_l2_bytes_max",
    "pci_bus_first",
    "reserved_shared_memory_per_block_bytes",
    "ecc",
    "nvlink_links",
    "nvlink_version",
    "copy_p2p_bytes_per_s",
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
    stream_bytes: int
    first_kernel_bytes: int
    kernel_code_bytes: int
    cublas_bytes: int
    graph_bytes: int
    graph_node_bytes: int
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
    ecc: int
    fp32_per_fp64: int
    nvlink_links: int
    nvlink_version: int
    copy_h2d_bytes_per_s: int
    copy_d2h_bytes_per_s: int
    copy_d2d_bytes_per_s: int
    copy_p2p_bytes_per_s: int
    copy_latency_ns: int
    launch_gap_ns: int
    graph_gap_ns: int
    graph_launch_ns: int
    driver_version: int
    driver_text: str


_MEMORY_FACTS = (
    "total_memory_bytes", "context_bytes", "nvml_total_bytes",
    "stream_bytes", "first_kernel_bytes", "kernel_code_bytes", "cublas_bytes", "graph_bytes",
    "graph_node_bytes",
)  # fmt: skip
_INT64_FACTS = {
    field.name
    for field in dataclasses.fields(DeviceFacts)
    if field.name in _MEMORY_FACTS or field.name.endswith(("_per_s", "_ns"))
}


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A GPU product. sources: by fact; sha256: of the file, for a run's provenance; durations: the section for the
    predictor, unread; extends: the profile that its other facts come from, or nothing.
    """

    name: str
    aliases: tuple[str, ...]
    facts: DeviceFacts
    sources: Mapping[str, str]
    path: Path
    sha256: str
    durations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extends: str = ""


def user_directory() -> Path:
    """Where a user's own profiles lie: $XDG_CONFIG_HOME/hyperlapse/devices, else ~/.config/hyperlapse/devices."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hyperlapse" / "devices"


def names() -> tuple[str, ...]:
    """Profiles that can be used by name, the user's own included, sorted."""
    return tuple(sorted(_files()))


def _files() -> dict[str, Path]:
    """Profile name -> file; the user's own come before bundled ones of the same name."""
    own = sorted(path for ending in ("*.yaml", "*.yml") for path in user_directory().glob(ending))
    return {**{path.stem: path for path in DIRECTORY.glob("*.yaml")}, **{path.stem: path for path in own}}


def load(name: str) -> DeviceProfile:
    """A profile by name or alias, or the profile in a YAML file when ``name`` is a path.

    Raises UnknownDeviceError, DeviceProfileError.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UnknownDeviceError(
                f"there is no device profile file {name}; known profiles are: {', '.join(names())}"
            )
        return read(path)
    files = _files()
    if name in files:
        return read(files[name])
    aliases = {alias: path for path in files.values() for alias in _aliases(path)}
    if name.lower() in files:
        return read(files[name.lower()])
    if name.lower() in aliases:
        return read(aliases[name.lower()])
    near = difflib.get_close_matches(name.lower(), [*files, *aliases], n=3, cutoff=0.4)
    raise UnknownDeviceError(
        f"unknown GPU {name!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
        + f" Known: {', '.join(names())} (`hyperlapse devices` lists them). A YAML file of your own works too:"
        " --gpu ./my-gpu.yaml"
    )


def _aliases(path: Path) -> list[str]:
    """The names beside its file's that a profile can be used by; a broken file of the user's must not hide the others."""
    try:
        document = _document(path)
    except (DeviceProfileError, OSError):
        return []
    aliases = document.get("aliases")
    names = [document.get("name"), *(aliases if isinstance(aliases, list) else [])]
    return [name.lower() for name in names if isinstance(name, str)]


def _document(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise DeviceProfileError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise DeviceProfileError(f"{path}: a device profile is a mapping with `name` and `facts`")
    return document


_ENTRIES = ("name", "aliases", "extends", "facts", "durations")


def read(path: Path) -> DeviceProfile:
    """The profile in a file. Raises DeviceProfileError, OSError."""
    raw = path.read_bytes()
    document = _document(path)
    unknown = set(document) - set(_ENTRIES)
    if unknown:
        entry = min(map(str, unknown))
        near = difflib.get_close_matches(entry, _ENTRIES, n=1)
        raise DeviceProfileError(
            f"{path}: unknown entry `{entry}`"
            + (f"; did you mean `{near[0]}`?" if near else "")
            + f" Known are {', '.join(_ENTRIES)}"
        )
    extends = document.get("extends", "")
    facts = document.get("facts", {} if extends else None)
    if not isinstance(facts, dict):
        raise DeviceProfileError(f"{path}: a device profile is a mapping with `name` and `facts`")
    name = document.get("name")
    if not isinstance(name, str) or not 0 < len(name.encode()) < _PROFILE_BYTES:
        raise DeviceProfileError(f"{path}: `name` must be a text of at most {_PROFILE_BYTES - 1} bytes")
    aliases = document.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise DeviceProfileError(f"{path}: `aliases` must be a list of texts")
    durations = document.get("durations", {})
    if not isinstance(durations, dict):
        raise DeviceProfileError(f"{path}: `durations` must be a mapping of the predictor's fields")
    base = _extended(path, extends)
    values, sources = _facts(path, facts, base)
    return DeviceProfile(
        name,
        tuple(aliases),
        DeviceFacts(**values),
        sources,
        path,
        hashlib.sha256(raw + (base.sha256.encode() if base else b"")).hexdigest(),
        durations,
        base.name if base else "",
    )


def _extended(path: Path, extends: Any) -> DeviceProfile | None:
    """The profile that a file takes its other facts from: a bundled one, so that no circle can be made."""
    if not extends:
        return None
    bundled = sorted(each.stem for each in DIRECTORY.glob("*.yaml"))
    if extends not in bundled:
        near = difflib.get_close_matches(str(extends), bundled, n=1, cutoff=0.4)
        raise DeviceProfileError(
            f"{path}: `extends` must be a bundled profile, not {extends!r}"
            + (f"; did you mean {near[0]}?" if near else "")
            + f" Bundled: {', '.join(bundled)}"
        )
    return read(DIRECTORY / f"{extends}.yaml")


def _unit(name: str) -> str:
    """What a fact is counted in, as its name says."""
    for ending, unit in (
        ("_bytes_per_s", "bytes per second"),
        ("_bytes_max", "bytes"),
        ("_bytes", "bytes"),
        ("_ns", "nanoseconds"),
        ("_khz", "kHz"),
        ("_bits", "bits"),
    ):
        if name.endswith(ending):
            return unit
    return "a number" if name == "driver_version" else "a count"


def _facts(path: Path, facts: Mapping[str, Any], base: DeviceProfile | None) -> tuple[dict[str, Any], dict[str, str]]:
    wanted = [field.name for field in dataclasses.fields(DeviceFacts)]
    for name in facts:
        if name not in wanted:
            near = difflib.get_close_matches(str(name), wanted, n=1)
            raise DeviceProfileError(
                f"{path}: unknown fact `{name}`" + (f"; did you mean `{near[0]}` ({_unit(near[0])})?" if near else "")
            )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in wanted:
        if name not in facts:
            if base is None:
                unit = "a text" if name in _TEXT_BYTES else _unit(name)
                raise DeviceProfileError(
                    f"{path}: the fact `{name}` ({unit}) is missing; `extends: <bundled profile>` takes it from another"
                )
            values[name], sources[name] = getattr(base.facts, name), f"{base.name}: {base.sources[name]}"
            continue
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
        raise DeviceProfileError(f"{path}: `{name}` must be a whole number ({_unit(name)}), not {value!r}")
    limit = 2**62 if name in _INT64_FACTS else _INT32_MAX
    least = 0 if name in _MAY_BE_ZERO else 1
    if not least <= value <= limit:
        raise DeviceProfileError(f"{path}: `{name}` must lie between {least} and {limit} ({_unit(name)}), not {value}")
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
