"""`hyperlapse devices`: the GPUs that can be emulated, what they are, and whether anybody measured their kernels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """One GPU of the list. families: measured families of kernels -> engine versions; carried_over: the product that
    they were measured on, where it is another one; problem: why the profile cannot be used, or nothing.
    """

    name: str
    aliases: tuple[str, ...]
    path: str
    own: bool
    memory_bytes: int = 0
    capability: str = ""
    multiprocessors: int = 0
    bf16_flops_per_s: int = 0
    memory_bandwidth_bytes_per_s: int = 0
    families: dict[str, tuple[str, ...]] | None = None
    carried_over: str = ""
    problem: str = ""

    @property
    def kernels(self) -> str:
        """Where durations come from, in a few words."""
        if self.problem or self.families is None:
            return ""
        if not self.families:
            return "none measured"
        versions = sorted({version for each in self.families.values() for version in each[-1:]})
        text = f"{', '.join(self.families)} ({'/'.join(versions)})"
        return f"carried over from {self.carried_over}: {text}" if self.carried_over else text

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "file": self.path,
            "own": self.own,
            "memory_bytes": self.memory_bytes,
            "compute_capability": self.capability,
            "multiprocessors": self.multiprocessors,
            "bf16_flops_per_s": self.bf16_flops_per_s,
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s,
            "measured_kernels": {name: list(versions) for name, versions in (self.families or {}).items()},
            "kernels_carried_over_from": self.carried_over or None,
            "problem": self.problem or None,
        }


@click.command("devices")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(name: str | None, as_json: bool) -> None:
    """List the GPUs that can be emulated, or show every fact of one with its source."""
    from hyperlapse.shim import devices

    if name is not None:
        try:
            profile = devices.load(name)
        except (devices.UnknownDeviceError, devices.DeviceProfileError, OSError) as error:
            raise click.UsageError(str(error)) from error
        _show(profile, as_json)
        return
    lines = [describe(each) for each in devices.names()]
    if as_json:
        click.echo(json.dumps([line.as_dict() for line in lines], indent=2))
        return
    _print_table(lines, devices.user_directory())
    broken = [line for line in lines if line.problem]
    for line in broken:
        click.echo(f"{line.name}: {line.problem}", err=True)
    if broken:
        raise click.exceptions.Exit(1)


def describe(name: str) -> DeviceLine:
    """A GPU's line. A profile that cannot be used has a problem instead of facts."""
    from hyperlapse.cli.priced_device import priced_device
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.shim import devices

    try:
        profile = devices.load(name)
        spec = priced_device(name)
    except (devices.DeviceProfileError, devices.UnknownDeviceError, PredictorError, ValueError, OSError) as error:
        return DeviceLine(name, (), "", own=True, problem=str(error))
    facts = profile.facts
    return DeviceLine(
        name=name,
        aliases=profile.aliases,
        path=str(profile.path),
        own=profile.path.parent != devices.DIRECTORY,
        memory_bytes=facts.total_memory_bytes,
        capability=f"{facts.compute_major}.{facts.compute_minor}",
        multiprocessors=facts.multiprocessors,
        bf16_flops_per_s=spec.bf16_flops_per_s,
        memory_bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s,
        families=_families(spec.database_system),
        carried_over=spec.transfer_from,
    )


def _families(system: str) -> dict[str, tuple[str, ...]]:
    """Measured families -> engines and versions, over every engine that there is data for."""
    from hyperlapse.integrations import step_recipes
    from hyperlapse.predictor.database import measured_families
    from hyperlapse.predictor.engines import Engines
    from hyperlapse.predictor.prediction import DatabaseError

    engines = Engines.load(step_recipes())
    found: dict[str, tuple[str, ...]] = {}
    for name in engines.names():
        data, _ = engines.find(name)
        try:
            families = measured_families(system, data.database)
        except DatabaseError:
            return {}
        for family, versions in families.items():
            found[family] = (*found.get(family, ()), *(f"{name} {version}" for version in versions))
    return found


def _print_table(lines: list[DeviceLine], own_folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 150  # a pipe or a file has no width of its own
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("GPU", "memory", "capability", "SMs", "bf16 peak", "bandwidth"):
        table.add_column(heading, justify="left" if heading == "GPU" else "right", no_wrap=True)
    table.add_column("measured kernels (engine version)", overflow="fold")
    for line in lines:
        if line.problem:
            table.add_row(line.name, "", "", "", "", "", "cannot be used, see below")
            continue
        table.add_row(
            line.name + (" (own)" if line.own else ""),
            f"{line.memory_bytes / 2**30:.1f} GiB",
            line.capability,
            str(line.multiprocessors),
            f"{line.bf16_flops_per_s / 1e12:.0f} TFLOPS",
            f"{line.memory_bandwidth_bytes_per_s / 1e12:.2f} TB/s",
            line.kernels,
        )
    console.print(table)
    console.print(
        "Norms, activations, copies and gaps are physics on every GPU. `hyperlapse devices NAME` shows each fact and its"
        f" source.\nProfiles of your own: --gpu ./my-gpu.yaml, or a file in {own_folder}"
    )


def _show(profile: Any, as_json: bool) -> None:
    import dataclasses

    facts = dataclasses.asdict(profile.facts)
    if as_json:
        shown = {name: {"value": value, "source": profile.sources[name]} for name, value in facts.items()}
        click.echo(json.dumps({"name": profile.name, "file": str(profile.path), "facts": shown}, indent=2))
        return
    click.echo(f"{profile.name}  ({profile.path})\n")
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        number = f"{value:,}" if isinstance(value, int) else value
        click.echo(f"{name:{width}}  {number}\n{'':{width}}    {profile.sources[name]}")
