"""The facts of a GPU product that durations are computed from: `products/<product>.yaml`, one file a product.

The device profiles of the shim hold what CUDA calls answer; these hold what kernels cost. The three gaps and the
latency of a copy stand in both: whoever joins the parts hands the run's own to `DeviceSpec.with_gaps`, so that a step
priced as a whole and a step priced kernel by kernel use the same ones.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from hyperlapse.predictor.prediction import PredictorError


class UnknownDeviceError(PredictorError):
    """No durations are known for this GPU product; the message lists those with some."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Rates are per second and peak unless the name says share; gaps are device time in nanoseconds."""

    name: str
    database_system: str
    memory_bandwidth_bytes_per_s: int
    bf16_flops_per_s: int
    multiprocessors: int
    l2_cache_bytes: int
    memory_bandwidth_share: float
    kernel_cost_ns: int
    multiprocessor_l2_bytes_per_s: int
    launch_gap_ns: int
    graph_gap_ns: int
    graph_launch_ns: int
    copy_latency_ns: int

    @property
    def kernel_floor_ns(self) -> int:
        """The shortest kernel, without the gap after it."""
        return max(self.kernel_cost_ns - self.graph_gap_ns, 0)

    def stream_ns(self, size_bytes: float) -> float:
        """Time to move bytes at the reached bandwidth."""
        return size_bytes * 1e9 / (self.memory_bandwidth_bytes_per_s * self.memory_bandwidth_share)

    def light_ns(self, size_bytes: float, operations: float) -> float:
        """Speed of light: bytes at the peak bandwidth or tensor operations at the peak rate, whichever is longer."""
        return max(size_bytes * 1e9 / self.memory_bandwidth_bytes_per_s, operations * 1e9 / self.bf16_flops_per_s)

    def with_gaps(
        self, *, launch_gap_ns: int, graph_gap_ns: int, graph_launch_ns: int, copy_latency_ns: int | None = None
    ) -> DeviceSpec:
        """The same product with the gaps of a run's device profile."""
        return dataclasses.replace(
            self,
            launch_gap_ns=launch_gap_ns,
            graph_gap_ns=graph_gap_ns,
            graph_launch_ns=graph_launch_ns,
            copy_latency_ns=self.copy_latency_ns if copy_latency_ns is None else copy_latency_ns,
        )

    @classmethod
    def from_yaml(cls, path: Path | str) -> DeviceSpec:
        """Raises ValueError for a missing, unknown or mistyped field."""
        import yaml

        path = Path(path)
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError(f"{path}: not a mapping of device facts")
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in facts:
                raise ValueError(f"{path}: `{name}` is missing")
        for name, value in facts.items():
            kinds = {"str": (str,), "int": (int,), "float": (int, float)}.get(str(fields.get(name)))
            if kinds is None:
                raise ValueError(f"{path}: unknown field `{name}`")
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{path}: `{name}` must be of type {fields[name]}, not {value!r}")
        return cls(**facts)

    @classmethod
    def named(cls, name: str) -> DeviceSpec:
        """A bundled product by name. Raises UnknownDeviceError with the nearest names."""
        if name in device_names():
            with resources.as_file(_folder().joinpath(f"{name}.yaml")) as path:
                return cls.from_yaml(path)
        near = difflib.get_close_matches(name, device_names(), n=3, cutoff=0.4)
        raise UnknownDeviceError(
            f"no durations are known for GPU {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
            + f" (known: {', '.join(device_names())})"
        )


def _folder() -> Traversable:
    return resources.files(__package__).joinpath("products")


def device_names() -> tuple[str, ...]:
    """Bundled products, sorted."""
    return tuple(sorted(entry.name[: -len(".yaml")] for entry in _folder().iterdir() if entry.name.endswith(".yaml")))
