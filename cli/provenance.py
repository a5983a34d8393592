"""What a result was made from: versions, flags, and hashes of every file that can change a number.

Why: two results may be compared only when these agree, or differ in what is being compared. It must never depend on the
project's repository: users install wheels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.result import file_sha256, files_sha256


def provenance(
    *,
    engine: EngineEnvironment,
    model_folder: Path,
    gpu: str,
    fixed_step: str | None,
    host_time: Mapping[str, int],
    server_command: Sequence[str],
    client_command: Sequence[str],
    engine_flags: Sequence[str],
    trace: Path | None,
    engine_profile: str | None,
) -> dict[str, Any]:
    """The `provenance` object of a result. Hashes are SHA-256."""
    from hyperlapse.shim import devices

    profile = devices.load(gpu)
    return {
        "hyperlapse_version": importlib.metadata.version("hyperlapse"),
        "python_version": platform.python_version(),
        "engine_versions": dict(engine.versions),
        "engine_flags": list(engine_flags),
        "server_command": list(server_command),
        "client_command": list(client_command),
        "engine_profile": engine_profile,
        "model_sha256": files_sha256(path for path in model_folder.glob("*.json") if path.is_file()),
        "device_profile": {"name": profile.name, "sha256": profile.sha256},
        "predictor": "kernel database" if fixed_step is None else f"fixed step {fixed_step}",
        "price_tables": _price_tables(gpu, engine) if fixed_step is None else None,
        "host_time": dict(host_time),
        "host_time_sha256": text_sha256(json.dumps(dict(host_time), sort_keys=True)),
        "trace": None if trace is None else str(trace),
        "trace_sha256": None if trace is None else file_sha256(trace),
    }


def text_sha256(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _price_tables(gpu: str, engine: EngineEnvironment) -> dict[str, str]:
    """The measured tables and the predictor's device facts that prices come from."""
    from hyperlapse.cli.priced_device import priced_device
    from hyperlapse.predictor.database import package_root, package_version

    device = priced_device(gpu)
    folder, name = package_root() / "systems" / "data" / device.database_system, engine.engine.price_tables()
    tables = sorted(folder.glob(f"*/{name}/*/*_perf.parquet"))
    return {
        "package": f"aiconfigurator-core {package_version()}",
        "tables_sha256": files_sha256(tables),
        "device_facts_sha256": text_sha256(json.dumps(dataclasses.asdict(device), sort_keys=True)),
    }
