"""A run's device profile and what its kernels cost, joined here because the two packages do not know each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperlapse.predictor.devices import DeviceSpec


def priced_device(gpu: str) -> DeviceSpec:
    """What kernels cost on a GPU product, with the gaps of its device profile. gpu: a product's name or an alias.

    Raises the UnknownDeviceError of the shim (no such product) or of the predictor (its durations are not known).
    """
    from hyperlapse.predictor.devices import DeviceSpec
    from hyperlapse.shim import devices

    profile = devices.load(gpu)
    return DeviceSpec.named(profile.name).with_gaps(
        launch_gap_ns=profile.facts.launch_gap_ns,
        graph_gap_ns=profile.facts.graph_gap_ns,
        graph_launch_ns=profile.facts.graph_launch_ns,
        copy_latency_ns=profile.facts.copy_latency_ns,
    )
