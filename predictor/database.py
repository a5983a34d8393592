"""The measured kernel database of `aiconfigurator-core` (PyPI, Apache-2.0): found, read, and cached in a fast form.

The package's own code is never imported (it takes seconds and refuses unknown models): its parquet files are located
beside it and read with pyarrow once, and from then on from one `.npz` in the user's cache folder, named by package
version and file hash, so that a later start needs neither pyarrow nor a tenth of a second.
It must never write into the package, and never return a table of another GPU or engine than the one asked for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperlapse.predictor.prediction import DatabaseError

PACKAGE = "aiconfigurator-core"
_MODULE = "aiconfigurator_core"
ENGINE = "vllm"

_LAYOUT = 1  # of our .npz files; a change makes old ones invisible

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GemmTable:
    """Matrix products of one element type. latency_ns: (m, n, k), NaN where nothing was measured.

    Row-major m x k times k x n. Each was timed in a CUDA graph of several products over different weights, so that
    weights came from memory, and one gap between graph nodes is inside each figure.
    """

    m: Integers
    n: Integers
    k: Integers
    latency_ns: Floats


@dataclass(frozen=True, slots=True)
class AttentionTable:
    """Attention of one head configuration over uniform batches. latency_ns: (batch, length), NaN where not measured.

    Prefill: length new tokens for each sequence and no context. Decode: one new token over a context of length.
    """

    batch: Integers
    length: Integers
    latency_ns: Floats


@dataclass(frozen=True, slots=True, order=True)
class HeadConfig:
    """The head layout that an attention kernel is specialised for."""

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: str  # bfloat16 | fp8


class KernelDatabase:
    """The tables of one GPU system and engine version. Tables are built on demand and kept."""

    def __init__(self, system: str, engine_version: str, arrays: dict[str, dict[str, npt.NDArray[Any]]]) -> None:
        self.system = system
        self.engine_version = engine_version
        self._arrays = arrays
        self._gemm: dict[str, GemmTable] = {}
        self._attention: dict[tuple[str, HeadConfig], AttentionTable] = {}

    @classmethod
    def load(cls, system: str, engine: str = ENGINE, engine_version: str | None = None) -> KernelDatabase:
        """Loads the tables of a system (`h100_sxm`); engine_version None: the newest that the package has.

        Raises DatabaseError when the package is not installed or has no such table.
        """
        root = package_root() / "systems" / "data" / system
        arrays: dict[str, dict[str, npt.NDArray[Any]]] = {}
        versions = set()
        for family, table, reader in (
            ("gemm", "gemm_perf", _read_gemm),
            ("attention", "context_attention_perf", _read_attention),
            ("attention", "generation_attention_perf", _read_attention),
        ):
            folder = root / family / engine
            version = engine_version or _newest(folder, table)
            path = folder / version / f"{table}.parquet"
            if not path.is_file():
                raise DatabaseError(
                    f"{PACKAGE} {package_version()} has no {table} of {engine} {version} on {system}"
                    f" (systems with tables: {', '.join(systems(engine)) or 'none'})"
                )
            versions.add(version)
            arrays[table] = _cached(path, f"{system}-{engine}-{version}-{table}", reader)
        return cls(system, "/".join(sorted(versions)), arrays)

    def gemm_dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({str(name) for name in self._arrays["gemm_perf"]["gemm_dtype"]}))

    def gemm(self, dtype: str = "bfloat16") -> GemmTable:
        """Raises DatabaseError when the element type was not measured."""
        if dtype not in self._gemm:
            rows = self._arrays["gemm_perf"]
            chosen = rows["gemm_dtype"] == dtype
            if not chosen.any():
                measured = ", ".join(self.gemm_dtypes())
                raise DatabaseError(f"no measured GEMM of type {dtype} on {self.system} (measured: {measured})")
            m, n, k = (np.unique(rows[axis][chosen]) for axis in "mnk")
            latency = np.full((len(m), len(n), len(k)), np.nan)
            at = tuple(np.searchsorted(axis, rows[name][chosen]) for axis, name in ((m, "m"), (n, "n"), (k, "k")))
            latency[at] = rows["latency_ns"][chosen]
            self._gemm[dtype] = GemmTable(m, n, k, latency)
        return self._gemm[dtype]

    def prefill_configs(self) -> tuple[HeadConfig, ...]:
        return self._configs("context_attention_perf")

    def decode_configs(self) -> tuple[HeadConfig, ...]:
        return self._configs("generation_attention_perf")

    def prefill(self, config: HeadConfig) -> AttentionTable:
        """Raises KeyError when this head layout was not measured."""
        return self._attention_table("context_attention_perf", "isl", config)

    def decode(self, config: HeadConfig) -> AttentionTable:
        """Raises KeyError when this head layout was not measured."""
        return self._attention_table("generation_attention_perf", "step", config)

    def _configs(self, table: str) -> tuple[HeadConfig, ...]:
        rows = self._arrays[table]
        columns = [rows[name].tolist() for name in ("num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype")]
        return tuple(sorted(HeadConfig(*layout) for layout in set(zip(*columns, strict=True))))

    def _attention_table(self, table: str, axis: str, config: HeadConfig) -> AttentionTable:
        if (table, config) not in self._attention:
            rows = self._arrays[table]
            chosen = (
                (rows["num_heads"] == config.heads)
                & (rows["num_key_value_heads"] == config.kv_heads)
                & (rows["head_dim"] == config.head_dim)
                & (rows["kv_cache_dtype"] == config.kv_dtype)
            )
            if not chosen.any():
                raise KeyError(config)
            batch, length = np.unique(rows["batch_size"][chosen]), np.unique(rows[axis][chosen])
            latency = np.full((len(batch), len(length)), np.nan)
            at = (np.searchsorted(batch, rows["batch_size"][chosen]), np.searchsorted(length, rows[axis][chosen]))
            latency[at] = rows["latency_ns"][chosen]
            self._attention[table, config] = AttentionTable(batch, length, latency)
        return self._attention[table, config]


def package_root() -> Path:
    """The installed package's folder, found without importing it. Raises DatabaseError when it is not installed."""
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseError(
            "the measured kernel database is not installed:"
            f" pip install {PACKAGE}==0.12.0 into Hyperlapse's environment"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_version() -> str:
    return importlib.metadata.version(PACKAGE)


def systems(engine: str = ENGINE) -> tuple[str, ...]:
    """Systems with a GEMM table of this engine, sorted."""
    root = package_root() / "systems" / "data"
    return tuple(sorted(path.name for path in root.iterdir() if (path / "gemm" / engine).is_dir()))


def cache_folder() -> Path:
    """Where fast copies lie: HYPERLAPSE_CACHE, else the user's cache folder. Derived data only; safe to delete."""
    chosen = os.environ.get("HYPERLAPSE_CACHE")
    if chosen:
        return Path(chosen) / "kernel-database"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperlapse" / "kernel-database"


def _newest(folder: Path, table: str) -> str:
    if not folder.is_dir():
        raise DatabaseError(
            f"{PACKAGE} {package_version()} has no {folder.name} tables for {folder.parent.parent.name}"
            f" (systems with tables: {', '.join(systems()) or 'none'})"
        )
    versions = [path.name for path in folder.iterdir() if (path / f"{table}.parquet").is_file()]
    if not versions:
        raise DatabaseError(f"{PACKAGE} {package_version()} has no {table} in {folder.parent.name}/{folder.name}")
    return max(versions, key=lambda text: [int(part) if part.isdigit() else -1 for part in text.split(".")])


def _cached(
    path: Path, label: str, reader: Callable[[Path], dict[str, npt.NDArray[Any]]]
) -> dict[str, npt.NDArray[Any]]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    cache = cache_folder() / f"{label}-{package_version()}-{digest}-{_LAYOUT}.npz"
    try:
        with np.load(cache, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # absent, of a half-written disk, or unreadable: made anew below
    arrays = reader(path)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".npz", delete=False) as file:
            np.savez(file, allow_pickle=False, **arrays)
        Path(file.name).replace(cache)
    except OSError as error:
        warnings.warn(f"the cache {cache} cannot be written ({error}): every start reads parquet", stacklevel=2)
    return arrays


def _read_gemm(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns = _read(path, ("gemm_dtype", "m", "n", "k", "latency"))
    columns["latency_ns"] = columns.pop("latency") * 1e6  # the tables are in milliseconds
    return columns


def _read_attention(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns = _read(
        path,
        ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "window_size",
         "latency"),
    )  # fmt: skip
    full = columns.pop("window_size") == 0  # sliding windows are not priced yet
    columns["latency_ns"] = columns.pop("latency") * 1e6
    return {name: column[full] for name, column in columns.items()}


def _read(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=list(names))
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        values = table.column(name).to_numpy()
        columns[name] = values.astype(str) if values.dtype.kind == "O" else values
    return columns
