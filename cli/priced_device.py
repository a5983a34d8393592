"""A run's device profile, its engine's data and what its kernels cost, joined here because the packages do not know each
other.

A product of the user's own (a profile file without durations of ours) is priced from the nearest product with measured
tables: the same compute capability if there is one, then the nearest number of multiprocessors. The profile may say more
in a section `durations`: any field of the predictor's product files, and `like: <product>` to choose the neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperlapse.predictor.devices import DeviceSpec
    from hyperlapse.predictor.engine import EnginePredictor
    from hyperlapse.predictor.models import ModelConfig
    from hyperlapse.shim.devices import DeviceProfile


def priced_device(gpu: str) -> DeviceSpec:
    """What kernels cost on a GPU product, with the gaps of its device profile. gpu: a name, an alias or a profile file.

    Raises the UnknownDeviceError of the shim (no such product) or of the predictor (its durations are not known), and
    DeviceProfileError for a section `durations` that cannot be used.
    """
    from hyperlapse.predictor.devices import DeviceSpec, device_names
    from hyperlapse.shim import devices

    profile = devices.load(gpu)
    own = profile.name in device_names() and not profile.durations
    spec = DeviceSpec.named(profile.name) if own else _derived(profile)
    return spec.with_gaps(
        launch_gap_ns=profile.facts.launch_gap_ns,
        graph_gap_ns=profile.facts.graph_gap_ns,
        graph_launch_ns=profile.facts.graph_launch_ns,
        copy_latency_ns=profile.facts.copy_latency_ns,
    )


def engine_predictor(
    gpu: str,
    models: Iterable[ModelConfig | Path] = (),
    *,
    tensor_parallel_size: int = 1,
    engine: str = "",
    fixed_device: DeviceSpec | None = None,
) -> EnginePredictor:
    """The predictor of a GPU with every engine's data. models: configurations, or their config.json, whose
    layers tensor_parallel_size GPUs share; engine: as model
    keys spell it (`NAME-1.2.3`), empty for the only one there is data for.

    Raises PredictorError, UnknownDeviceError, DeviceProfileError, ValueError.
    """
    from hyperlapse.integrations import kernel_maps, step_recipes
    from hyperlapse.predictor.engine import EnginePredictor
    from hyperlapse.predictor.models import ModelConfig

    return EnginePredictor(
        fixed_device or priced_device(gpu),
        [ModelConfig.from_json(each, tp=tensor_parallel_size) if isinstance(each, Path) else each for each in models],
        kernel_maps(),
        step_recipes(),
        engine=engine,
    )


def _derived(profile: DeviceProfile) -> DeviceSpec:
    from hyperlapse.predictor.devices import DeviceSpec, UnknownDeviceError, check_fields, device_names
    from hyperlapse.shim import devices

    durations = dict(profile.durations)
    like = str(durations.pop("like", None) or _nearest_product(profile))
    try:
        neighbour = like if like in device_names() else devices.load(like).name
        source = DeviceSpec.named(neighbour)
    except (devices.UnknownDeviceError, UnknownDeviceError) as error:
        raise devices.DeviceProfileError(f"{profile.path}: `durations.like`: {error}") from None
    try:
        check_fields(durations, where=f"{profile.path}, section `durations`")
    except ValueError as error:
        raise devices.DeviceProfileError(str(error)) from None
    if source.transfer_from:  # one step, not two: its tables are those of a measured product
        source = DeviceSpec.named(source.transfer_from)
    facts, measured = profile.facts, devices.load(source.name).facts
    own_tables = source.name == profile.name  # the same product with other durations
    spec = source.derived(
        profile.name,
        multiprocessors=facts.multiprocessors,
        l2_cache_bytes=facts.l2_cache_bytes,
        memory_bandwidth_bytes_per_s=round(
            source.memory_bandwidth_bytes_per_s * _bus_bytes_per_s(facts) / _bus_bytes_per_s(measured)
        ),
        clock_ratio=facts.clock_khz / measured.clock_khz,
        overrides=durations,
    )
    if own_tables or "database_system" in durations:
        import dataclasses

        spec = dataclasses.replace(spec, transfer_from="")
    return spec


def _bus_bytes_per_s(facts: object) -> float:
    from hyperlapse.shim.devices import DeviceFacts

    assert isinstance(facts, DeviceFacts)
    return 2 * facts.memory_clock_khz * 1000 * facts.memory_bus_bits / 8


def _nearest_product(profile: DeviceProfile) -> str:
    """The product with measured tables whose kernels this one is most likely to run as they are."""
    from hyperlapse.predictor.devices import DeviceSpec, device_names
    from hyperlapse.shim import devices

    def distance(name: str) -> tuple[int, int, int, str]:
        facts = devices.read(devices.DIRECTORY / f"{name}.yaml").facts
        return (
            abs(facts.compute_major - profile.facts.compute_major),
            abs(facts.compute_minor - profile.facts.compute_minor),
            abs(facts.multiprocessors - profile.facts.multiprocessors),
            name,
        )

    return min((name for name in device_names() if not DeviceSpec.named(name).transfer_from), key=distance)
