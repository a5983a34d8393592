"""The facts of a GPU product that durations are computed from: `products/<product>.yaml`, one file a product.

The device profiles of the shim hold what CUDA calls answer; these hold what kernels cost. The three gaps and the
latency of a copy stand in both: whoever joins the parts hands the run's own to `DeviceSpec.with_gaps`, so that a step
priced as a whole and a step priced kernel by kernel use the same ones.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hyperlapse.predictor.prediction import PredictorError


class UnknownDeviceError(PredictorError):
    """No durations are known for this GPU product; the message lists those with some."""


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """What a memory-bound operator was measured to take on a product: one of its kernels, without the gap after it.

        floor_ns + waves x (bytes one thread block walks) / walk_bytes_per_s
                 + (bytes within half the L2 cache) / cached_bytes_per_s + (bytes beyond) / bytes_per_s

    The bytes are those of operators.traffic_of. Half the L2 cache, because it is two partitions and each holds a copy of
    what its side reads; what the kernel before has just written is found there, so cached rates exceed the memory's. A
    wave is as many rows as there are multiprocessors; walk_bytes_per_s: 0 for operators that share rows among blocks.
    measured_bytes: the most that was measured; error_ratio, error90_ratio: median and 9th decile of the fit's residuals.
    """

    operator: str
    floor_ns: int
    cached_bytes_per_s: int
    bytes_per_s: int
    measured_bytes: int
    error_ratio: float
    error90_ratio: float
    walk_bytes_per_s: int = 0

    def duration_ns(self, size_bytes: float, walked_bytes: float, waves: int, l2_cache_bytes: int) -> float:
        cached_bytes = min(size_bytes, l2_cache_bytes / 2)
        walking_ns = waves * walked_bytes / self.walk_bytes_per_s * 1e9 if self.walk_bytes_per_s else 0.0
        moving_ns = cached_bytes / self.cached_bytes_per_s + (size_bytes - cached_bytes) / self.bytes_per_s
        return self.floor_ns + walking_ns + moving_ns * 1e9


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Rates are per second and peak unless the name says share; gaps are device time in nanoseconds.

    database_system: whose measured tables are used; transfer_from: empty when they are this product's own, else the
    product that they were measured on and are carried over from; reached_bf16_flops_per_s: what large matrix products
    reach on a product without tables, where somebody published it (0: the share of the peak that the other one reaches);
    unsplit_tile_rows: rows of queries of a thread block in the attention kernel that this product runs for a step with a
    prefill, if that kernel does not split keys among blocks (0: it does, or decodes have a kernel of their own);
    separate_attention: 1 where engines compute the decodes and the prefills of one step by a kernel each on this product,
    0 where one kernel runs over both;
    memory_operators: memory-bound operators that were measured, the others are priced by the bandwidth share;
    memory_operators_of: the product that they were measured on, where it is not this one.

    power_limit_after_ns, power_limit_slowdown: matrix products of a step take this much longer once they have kept the
    product busy for so long (0: not measured, so not modelled); power_limit_tables_below_ns: products that the tables give
    less than this were measured before the limit was reached (power.py).
    """

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
    transfer_from: str = ""
    reached_bf16_flops_per_s: int = 0
    unsplit_tile_rows: int = 0
    separate_attention: int = 0
    power_limit_after_ns: int = 0
    power_limit_slowdown: float = 0.0
    power_limit_tables_below_ns: int = 0
    memory_operators_of: str = ""
    memory_operators: tuple[MemoryCost, ...] = ()

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
        for field in dataclasses.fields(cls):
            if field.name not in facts and field.default is dataclasses.MISSING:
                raise ValueError(f"{path}: `{field.name}` is missing")
        check_fields(facts, where=str(path))
        costs = memory_costs(facts.pop("memory_operators", {}), where=str(path))
        spec = cls(**facts, memory_operators=costs)
        if not spec.memory_operators_of:
            return spec
        if costs:
            raise ValueError(f"{path}: `memory_operators` and `memory_operators_of` exclude each other")
        measured = path.with_name(f"{spec.memory_operators_of}.yaml")
        if not measured.is_file() or measured == path:
            raise ValueError(
                f"{path}: `memory_operators_of` must name another product, not {spec.memory_operators_of!r}"
            )
        return spec._with_costs_of(cls.from_yaml(measured))

    def _with_costs_of(self, measured: DeviceSpec) -> DeviceSpec:
        """Floors and what the L2 serves stay, rates of the memory follow its bandwidth."""
        ratio = self.memory_bandwidth_bytes_per_s / measured.memory_bandwidth_bytes_per_s
        costs = tuple(
            dataclasses.replace(cost, bytes_per_s=round(cost.bytes_per_s * ratio)) for cost in measured.memory_operators
        )
        return dataclasses.replace(self, memory_operators=costs)

    def derived(
        self,
        name: str,
        *,
        multiprocessors: int,
        l2_cache_bytes: int,
        memory_bandwidth_bytes_per_s: int,
        clock_ratio: float,
        overrides: Mapping[str, Any],
    ) -> DeviceSpec:
        """A product without durations of its own, seen from this one: its tables are carried over.

        clock_ratio: the product's clock over this one's. The peak rate is scaled with multiprocessors and clock, and
        `overrides` (fields of this class, checked by `check_fields`) come last.
        """
        flops = self.bf16_flops_per_s * multiprocessors / self.multiprocessors * clock_ratio
        spec = dataclasses.replace(
            self,
            name=name,
            transfer_from=self.name,
            multiprocessors=multiprocessors,
            l2_cache_bytes=l2_cache_bytes,
            memory_bandwidth_bytes_per_s=memory_bandwidth_bytes_per_s,
            bf16_flops_per_s=round(flops),
            multiprocessor_l2_bytes_per_s=round(self.multiprocessor_l2_bytes_per_s * clock_ratio),
            power_limit_slowdown=0.0,  # another board has another limit
            memory_operators=(),
            memory_operators_of="",
        )
        given = dict(overrides)
        if _COSTS in given:
            given[_COSTS] = memory_costs(given[_COSTS], where=name)
        spec = dataclasses.replace(spec, **given)
        if not spec.memory_operators_of:
            return spec
        return spec._with_costs_of(DeviceSpec.named(spec.memory_operators_of))

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


_UNITS = {"_per_s": "a rate per second", "_ns": "nanoseconds", "_bytes": "bytes", "_share": "a share between 0 and 1"}
# Fields that `durations` and overrides cannot give one by one; memory_costs checks them.
_COSTS = "memory_operators"
# Fields where nothing is a value.
_ZERO_IS_NONE = ("reached_bf16_flops_per_s", "unsplit_tile_rows", "separate_attention", "power_limit_slowdown")


def check_fields(facts: Mapping[str, Any], *, where: str) -> None:
    """Raises ValueError for a field that DeviceSpec does not have, or a value that it cannot take; the message names
    the file, the field, its unit and the nearest name.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(DeviceSpec)}
    for name, value in facts.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            raise ValueError(f"{where}: unknown field `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
        if name == _COSTS:
            memory_costs(value, where=where)
            continue
        unit = next((text for ending, text in _UNITS.items() if name.endswith(ending)), "")
        expected = {"str": "a text", "int": "a whole number", "float": "a number"}[fields[name]]
        expected += f" ({unit})" if unit else ""
        kinds = {"str": (str,), "int": (int,), "float": (int, float)}[fields[name]]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{where}: `{name}` must be {expected}, not {value!r}")
        if not isinstance(value, int | float):
            continue
        if value < 0 or (value == 0 and not (name.endswith("_ns") or name in _ZERO_IS_NONE)):
            raise ValueError(f"{where}: `{name}` must be positive, not {value!r}")
        if name == "power_limit_slowdown" and 0 < value < 1:
            raise ValueError(f"{where}: `{name}` must be 1 or more (products become longer), not {value!r}")
        if name.endswith("_share") and value > 1:
            raise ValueError(f"{where}: `{name}` must be {expected}, not {value!r}")


def memory_costs(entries: Any, *, where: str) -> tuple[MemoryCost, ...]:
    """Operator -> its figures, as the YAML has them. Raises ValueError for a missing, unknown or impossible figure."""
    if not isinstance(entries, Mapping):
        raise ValueError(f"{where}: `{_COSTS}` must be a mapping of operators to their figures")
    costs = []
    for operator, figures in entries.items():
        here = f"{where}: `{_COSTS}`, {operator}"
        if not isinstance(operator, str) or not isinstance(figures, Mapping):
            raise ValueError(f"{here}: must be a mapping of figures")
        fields = {field.name: field for field in dataclasses.fields(MemoryCost) if field.name != "operator"}
        for name in figures:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, n=1)
                raise ValueError(f"{here}: unknown figure `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
        for name, field in fields.items():
            if name not in figures:
                if field.default is dataclasses.MISSING:
                    raise ValueError(f"{here}: `{name}` is missing")
                continue
            kinds = (int, float) if name.endswith("_ratio") else (int,)
            if not isinstance(figures[name], kinds) or isinstance(figures[name], bool) or figures[name] <= 0:
                raise ValueError(f"{here}: `{name}` must be a positive number, not {figures[name]!r}")
        costs.append(MemoryCost(operator, **figures))
    return tuple(costs)


def _folder() -> Traversable:
    return resources.files(__package__).joinpath("products")


def device_names() -> tuple[str, ...]:
    """Bundled products, sorted."""
    return tuple(sorted(entry.name[: -len(".yaml")] for entry in _folder().iterdir() if entry.name.endswith(".yaml")))
