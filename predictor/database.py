"""The measured kernel database of `aiconfigurator-core` (PyPI, Apache-2.0): found, read, and cached in a fast form.

The package's own code is never imported (it takes seconds and refuses unknown models): its parquet files are located
beside it and read with pyarrow once, and from then on from one `.npz` in the user's cache folder, named by package
version and file hash, so that a later start needs neither pyarrow nor a tenth of a second.
It must never write into the package, and never return a table of another GPU or engine than the one asked for. Another
version of the engine it may return, the nearest that was measured, and says so (`notes`). Engine names come from outside.

One kind of cell is replaced: block-wise FP8 products that were timed outside of a CUDA graph, where the host's launches took
longer than the device (`_host_limited`).
"""

from __future__ import annotations

import dataclasses
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

from hyperlapse.predictor.prediction import Coverage, DatabaseError

PACKAGE = "aiconfigurator-core"
_MODULE = "aiconfigurator_core"

_LAYOUT = 3  # of our .npz files; a change makes old ones invisible

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GemmTable:
    """Matrix products of one element type. latency_ns: (m, n, k), NaN where nothing was measured.

    Row-major m x k times k x n. Each was timed in a CUDA graph of several products over different weights, so that
    weights came from memory, and one gap between graph nodes is inside each figure. coverage: what a query at a cell is
    called; EXTRAPOLATED for a table that was carried over from another product. replaced: marks cells (same shape) that
    another table gave, None where there are none.
    """

    m: Integers
    n: Integers
    k: Integers
    latency_ns: Floats
    coverage: Coverage = Coverage.MEASURED
    replaced: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class AttentionTable:
    """Attention of one head configuration over uniform batches. latency_ns: (batch, length), NaN where not measured.

    Prefill: length new tokens for each sequence and no context. Decode: one new token over a context of length.
    """

    batch: Integers
    length: Integers
    latency_ns: Floats
    coverage: Coverage = Coverage.MEASURED


@dataclass(frozen=True, slots=True, order=True)
class ExpertConfig:
    """The shape of a layer of experts on one GPU: each token goes through `active` of `experts` gated products. dtype: the
    element type of the products (`bfloat16`, `fp8`, `fp8_block`); ranks: the GPUs that share each expert's columns, of
    which `intermediate` counts one GPU's.
    """

    hidden: int
    intermediate: int
    active: int
    experts: int
    dtype: str = "bfloat16"
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """The experts of one layer (sorting of tokens, both products, activation, weighted sum; not the router) for several
    token counts. latency_ns: (tokens,), with tokens spread over experts by a power law of exponent 1.01 where measured.
    """

    tokens: Integers
    latency_ns: Floats
    coverage: Coverage = Coverage.MEASURED


@dataclass(frozen=True, slots=True)
class CollectiveTable:
    """One collective between a number of ranks. size_bytes: of the whole tensor, ascending; latency_ns: beside it."""

    size_bytes: tuple[int, ...]
    latency_ns: tuple[float, ...]
    coverage: Coverage = Coverage.MEASURED


@dataclass(frozen=True, slots=True)
class ProductTable:
    """A product of fixed weights over several token counts, ascending. latency_ns: (tokens,), with the gap after it."""

    tokens: Integers
    latency_ns: Floats


@dataclass(frozen=True, slots=True, order=True)
class HeadConfig:
    """The head layout that an attention kernel is specialised for."""

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: str  # bfloat16 | fp8


# How tokens were spread over experts, best first: real routers are neither balanced nor as skewed as 1.2.
_DISTRIBUTIONS = ("power_law_1.01", "balanced", "power_law_1.2")

# Element types of experts that are read; the others are of weights that no model here has.
_EXPERT_TYPES = ("bfloat16", "fp8", "fp8_block")

# TensorRT-LLM's tables of matrix products, for cells of others that do not show the device's time.
_GRAPH_ENGINE, _GRAPH_TABLE = "trtllm", "gemm_perf in graphs"
_LONGEST_FLOOR_NS = 20_000.0  # of the smallest product of one row; above, the host is in the way
_BLOCK_SIDE = 128  # weights that have one scale
_HOST_SHARE = 1.5  # times the smallest product's time up to which a cell may be the host's
_FEWEST_SITES = 0.5  # share of the (n, k) measured in bfloat16 from which the rest can be interpolated

_FAMILIES = {
    "gemm_perf": "gemm",
    "context_attention_perf": "attention",
    "generation_attention_perf": "attention",
    "moe_perf": "moe",
    "mla_context_module_perf": "mla",
    "mla_generation_module_perf": "mla",
}
_OPTIONAL_FAMILIES = ("moe", "mla")  # asked for by name when a model has them


class KernelDatabase:
    """The tables of one GPU system and one engine. Tables are read and built on demand and kept.

    engine_version: those of the tables that were read so far; notes: what a reader of a result should know about them.
    """

    def __init__(self, system: str, engine_version: str, arrays: dict[str, dict[str, npt.NDArray[Any]]]) -> None:
        self.system = system
        self.engine_version = engine_version
        self.notes: tuple[str, ...] = ()
        self._arrays = arrays
        self._paths: dict[str, tuple[Path, str]] = {}
        self._gemm: dict[str, GemmTable] = {}
        self._attention: dict[tuple[str, HeadConfig], AttentionTable] = {}
        self._experts: dict[ExpertConfig, ExpertTable] = {}

    @classmethod
    def load(cls, system: str, engine: str, engine_version: str | None = None) -> KernelDatabase:
        """The tables of a system (`h100_sxm`) for an engine, by the database's name for it.

        engine_version: the version that runs; the nearest measured one is taken, the newest for None. Raises
        DatabaseError when the package is not installed or has no such table.
        """
        root = package_root() / "systems" / "data" / system
        database = cls(system, "", {})
        chosen = set()
        for table, family in _FAMILIES.items():
            folder = root / family / engine
            if family in _OPTIONAL_FAMILIES and not measured_versions(folder, table):
                continue
            version = nearest_version(measured_versions(folder, table), engine_version)
            if version is None:
                raise DatabaseError(
                    f"{PACKAGE} {package_version()} has no {table} of {engine} on {system}"
                    f" (systems with tables: {', '.join(systems(engine)) or 'none'})"
                )
            if family not in _OPTIONAL_FAMILIES:
                chosen.add(version)
            path = folder / version / f"{table}.parquet"
            database._paths[table] = (path, f"{system}-{engine}-{version}-{table}")
        # Asked for when products with block-wise scales are priced: the same kernels, timed in CUDA graphs.
        folder = root / "gemm" / _GRAPH_ENGINE
        version = nearest_version(measured_versions(folder, "gemm_perf"), None)
        if version is not None:
            path = folder / version / "gemm_perf.parquet"
            database._paths[_GRAPH_TABLE] = (path, f"{system}-{_GRAPH_ENGINE}-{version}-gemm_perf")
        # Asked for when a model has latent attention, of which each head has products of its own.
        folder = root / "mla_bmm" / engine
        version = nearest_version(measured_versions(folder, "mla_bmm_perf"), engine_version)
        if version is not None:
            path = folder / version / "mla_bmm_perf.parquet"
            database._paths["mla_bmm_perf"] = (path, f"{system}-{engine}-{version}-mla_bmm_perf")
        # Asked for when a step has several GPUs. NCCL's versions are not the engine's: the newest.
        for table, owner, wanted in (("custom_allreduce_perf", engine, engine_version), ("nccl_perf", "nccl", None)):
            folder = root / "comm" / owner
            version = nearest_version(measured_versions(folder, table), wanted)
            if version is not None:
                path = folder / version / f"{table}.parquet"
                database._paths[table] = (path, f"{system}-{owner}-{version}-{table}")
        database.engine_version = "/".join(sorted(chosen))
        if engine_version is not None and chosen != {engine_version}:
            database.notes = (f"kernels measured with {engine} {database.engine_version}, not {engine_version}",)
        return database

    def _rows(self, table: str) -> dict[str, npt.NDArray[Any]]:
        if table not in self._arrays:
            if table not in self._paths:
                raise DatabaseError(f"{PACKAGE} {package_version()} has no {table} for {self.system}")
            path, label = self._paths[table]
            self._arrays[table] = _cached(path, label, _READERS[table])
        return self._arrays[table]

    def gemm_dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({str(name) for name in self._rows("gemm_perf")["gemm_dtype"]}))

    def gemm(self, dtype: str = "bfloat16") -> GemmTable:
        """Raises DatabaseError when the element type was not measured."""
        if dtype not in self._gemm:
            table = _gemm_table(self._rows("gemm_perf"), dtype)
            if table is None:
                measured = ", ".join(self.gemm_dtypes())
                raise DatabaseError(f"no measured GEMM of type {dtype} on {self.system} (measured: {measured})")
            every = _gemm_table(self._rows("gemm_perf"), "bfloat16") or table
            sites, all_sites = (int(np.isfinite(each.latency_ns).any(axis=0).sum()) for each in (table, every))
            if sites < _FEWEST_SITES * all_sites:
                raise DatabaseError(
                    f"GEMM of type {dtype} was measured for {sites} shapes of weights only on {self.system} (of {all_sites})"
                )
            self._gemm[dtype] = self._of_the_device(table, dtype)
        return self._gemm[dtype]

    def _of_the_device(self, table: GemmTable, dtype: str) -> GemmTable:
        """The table with host-limited cells replaced, and a note when there were any."""
        limited = _host_limited(table)
        if not limited.any():
            return table
        latency_ns = np.where(limited, np.nan, table.latency_ns)
        for other in (self.graph_gemm(dtype), _gemm_table(self._rows("gemm_perf"), "fp8")):
            if other is not None:
                missing = limited & np.isnan(latency_ns)
                latency_ns = np.where(missing, _at_cells_of(other, table), latency_ns)
        self.notes += (
            f"{limited.sum() / limited.size:.0%} of the measured {dtype} products were timed with the host's launches in the "
            "way: taken from the same kernels in another engine's CUDA graphs",
        )
        return dataclasses.replace(table, latency_ns=latency_ns, replaced=limited)

    def graph_gemm(self, dtype: str) -> GemmTable | None:
        """The same products in another engine's CUDA graphs, where they were measured: for cells that show the host."""
        return _gemm_table(self._rows(_GRAPH_TABLE), dtype) if _GRAPH_TABLE in self._paths else None

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
        rows = self._rows(table)
        columns = [rows[name].tolist() for name in ("num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype")]
        return tuple(sorted(HeadConfig(*layout) for layout in set(zip(*columns, strict=True))))

    def _attention_table(self, table: str, axis: str, config: HeadConfig) -> AttentionTable:
        if (table, config) not in self._attention:
            rows = self._rows(table)
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

    def latent_heads(self) -> tuple[int, ...]:
        """Numbers of heads with which latent attention was measured. Raises DatabaseError when it was not."""
        each = (self._rows(table)["num_heads"] for table in ("mla_generation_module_perf", "mla_context_module_perf"))
        generation, context = (set(rows.tolist()) for rows in each)
        return tuple(sorted(generation & context))

    def latent_decode(self, heads: int) -> AttentionTable:
        """The whole module over one new token each and a context of length. Raises DatabaseError."""
        return self._latent_table("mla_generation_module_perf", "step", heads)

    def latent_prefill(self, heads: int) -> AttentionTable:
        """The whole module over prompts of length. Raises DatabaseError."""
        return self._latent_table("mla_context_module_perf", "isl", heads)

    def latent_product(self, name: str, heads: int) -> ProductTable | None:
        """A product of each head's own weights in latent attention: `pre` (queries that fit the latent vectors, 128 -> 512) or
        `post` (values of what was attended to, 512 -> 128); None where this number of heads was not measured.
        """
        if "mla_bmm_perf" not in self._paths:
            return None
        rows = self._rows("mla_bmm_perf")
        chosen = (
            (rows["op_name"] == f"mla_gen_{name}") & (rows["num_heads"] == heads) & (rows["bmm_dtype"] == "bfloat16")
        )
        if not chosen.any():
            return None
        tokens, first = np.unique(rows["num_tokens"][chosen], return_index=True)
        return ProductTable(tokens, rows["latency_ns"][chosen][first])

    def _latent_table(self, table: str, axis: str, heads: int) -> AttentionTable:
        rows = self._rows(table)
        chosen = rows["num_heads"] == heads
        if table == "mla_context_module_perf":
            chosen &= rows[axis] > 1  # a prompt of one token is decoded
        batch, length = np.unique(rows["batch_size"][chosen]), np.unique(rows[axis][chosen])
        latency = np.full((len(batch), len(length)), np.nan)
        at = (np.searchsorted(batch, rows["batch_size"][chosen]), np.searchsorted(length, rows[axis][chosen]))
        latency[at] = rows["latency_ns"][chosen]
        return AttentionTable(batch, length, latency)

    def all_reduce(self, ranks: int) -> CollectiveTable:
        """The engine's own all-reduce, in CUDA graphs. Raises DatabaseError with the measured numbers of ranks."""
        rows = self._rows("custom_allreduce_perf")
        return _collective_table(rows, np.ones(len(rows["num_gpus"]), dtype=bool), ranks)

    def nccl(self, operation: str, ranks: int) -> CollectiveTable:
        """One of NCCL's operations. Raises DatabaseError with the measured numbers of ranks."""
        rows = self._rows("nccl_perf")
        return _collective_table(rows, rows["op_name"] == operation, ranks)

    def expert_configs(self, ranks: int = 1) -> tuple[ExpertConfig, ...]:
        """Layers of experts that were measured as one of so many GPUs holds them. Raises DatabaseError when none was at
        all.
        """
        rows = self._rows("moe_perf")
        chosen = rows["ranks"] == ranks
        names = ("hidden_size", "inter_size", "topk", "num_experts", "moe_dtype", "ranks")
        columns = [rows[name][chosen].tolist() for name in names]
        return tuple(sorted(ExpertConfig(*shape) for shape in set(zip(*columns, strict=True))))

    def experts(self, config: ExpertConfig) -> ExpertTable:
        """Raises KeyError when this layer was not measured."""
        if config not in self._experts:
            tables = (self._expert_table(config, distribution) for distribution in _DISTRIBUTIONS)
            found = next((table for table in tables if table is not None), None)
            if found is None:
                raise KeyError(config)
            self._experts[config] = found
        return self._experts[config]

    def balanced_experts(self, config: ExpertConfig) -> ExpertTable | None:
        """The same layer with tokens spread evenly over experts, where that was measured too."""
        return self._expert_table(config, "balanced")

    def _expert_table(self, config: ExpertConfig, distribution: str) -> ExpertTable | None:
        rows = self._rows("moe_perf")
        chosen = (
            (rows["hidden_size"] == config.hidden)
            & (rows["inter_size"] == config.intermediate)
            & (rows["topk"] == config.active)
            & (rows["num_experts"] == config.experts)
            & (rows["moe_dtype"] == config.dtype)
            & (rows["ranks"] == config.ranks)
            & (rows["distribution"] == distribution)
        )
        if not chosen.any():
            return None
        tokens, first = np.unique(rows["num_tokens"][chosen], return_index=True)
        return ExpertTable(tokens, rows["latency_ns"][chosen][first])


def _gemm_table(rows: dict[str, npt.NDArray[Any]], dtype: str) -> GemmTable | None:
    chosen = rows["gemm_dtype"] == dtype
    if not chosen.any():
        return None
    m, n, k = (np.unique(rows[axis][chosen]) for axis in "mnk")
    latency = np.full((len(m), len(n), len(k)), np.nan)
    at = tuple(np.searchsorted(axis, rows[name][chosen]) for axis, name in ((m, "m"), (n, "n"), (k, "k")))
    latency[at] = rows["latency_ns"][chosen]
    return GemmTable(m, n, k, latency)


def _host_limited(table: GemmTable) -> npt.NDArray[np.bool_]:
    """Cells that show how long the host took to launch a product, and not how long the device computed it.

    Block-wise FP8 products of vLLM 0.24.0: 128 x 128 x 128 takes 56 us by FlashInfer and 88 us by DeepGEMM, like every other
    product up to that; no kernel of that size takes more than some 10 us on any product, and the same in CUDA graphs (the
    tables of TensorRT-LLM, whose kernels FlashInfer carries) takes 4.5 us.
    """
    n, k = (int(np.searchsorted(axis, _BLOCK_SIDE)) for axis in (table.n, table.k))
    if n == len(table.n) or k == len(table.k):
        return np.zeros(table.latency_ns.shape, dtype=np.bool_)
    shortest_ns = table.latency_ns[:, n, k]  # smaller ones than a block go another way
    by_host = shortest_ns[0] > _LONGEST_FLOOR_NS  # with one row even the quantisation of inputs takes no time
    limit_ns = np.nan_to_num(_HOST_SHARE * shortest_ns) if by_host else np.zeros(len(table.m))
    limited: npt.NDArray[np.bool_] = table.latency_ns < limit_ns[:, None, None]
    return limited


def _at_cells_of(table: GemmTable, cells: GemmTable) -> Floats:
    """A table's latencies at another's axes, NaN where it has no such row, column or figure."""
    found = table.latency_ns
    for axis, (own, wanted) in enumerate(((table.m, cells.m), (table.n, cells.n), (table.k, cells.k))):
        at = np.minimum(np.searchsorted(own, wanted), len(own) - 1)
        found = np.take(found, at, axis=axis)
        shape = [1, 1, 1]
        shape[axis] = len(wanted)
        found = np.where((own[at] == wanted).reshape(shape), found, np.nan)
    return found


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


def systems(engine: str) -> tuple[str, ...]:
    """Systems with a GEMM table of this engine, sorted."""
    root = package_root() / "systems" / "data"
    return tuple(sorted(path.name for path in root.iterdir() if (path / "gemm" / engine).is_dir()))


def engines(system: str) -> tuple[str, ...]:
    """Engines with a GEMM table for this system, by the database's names, sorted."""
    folder = package_root() / "systems" / "data" / system / "gemm"
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()


def measured_families(system: str, engine: str) -> dict[str, tuple[str, ...]]:
    """Family -> engine versions with tables, of a system; families without any are left out."""
    root = package_root() / "systems" / "data" / system
    found = {
        family: measured_versions(root / family / engine, table)
        for table, family in _FAMILIES.items()
        if "context" not in table
    }
    return {family: versions for family, versions in found.items() if versions}


def measured_versions(folder: Path, table: str) -> tuple[str, ...]:
    """Engine versions in a family's folder that have this table, oldest first."""
    if not folder.is_dir():
        return ()
    names = [path.name for path in folder.iterdir() if (path / f"{table}.parquet").is_file()]
    return tuple(sorted(names, key=version_key))


def version_key(text: str) -> tuple[int, ...]:
    """Orders `0.9.1`, `0.24.0` and `0.5.6.post2`; what is no number counts as nothing."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def nearest_version(versions: tuple[str, ...], wanted: str | None) -> str | None:
    """The measured version nearest to the wanted one, by major, minor, patch in this order, the older of two equally
    near ones; the newest when none is wanted, None when none was measured.
    """
    if not versions:
        return None
    if wanted is None:
        return versions[-1]
    aim = version_key(wanted)

    def distance(version: str) -> tuple[int, ...]:
        key = version_key(version)
        length = max(len(key), len(aim))
        pairs = zip(key + (0,) * (length - len(key)), aim + (0,) * (length - len(aim)), strict=True)
        return (*(abs(a - b) for a, b in pairs), int(key > aim))

    return min(versions, key=distance)


def cache_folder() -> Path:
    """Where fast copies lie: HYPERLAPSE_CACHE, else the user's cache folder. Derived data only; safe to delete."""
    chosen = os.environ.get("HYPERLAPSE_CACHE")
    if chosen:
        return Path(chosen) / "kernel-database"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyperlapse" / "kernel-database"


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
        ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "latency"),
        optional=("window_size",),
    )
    columns["latency_ns"] = columns.pop("latency") * 1e6
    if "window_size" not in columns:  # older tables have full attention only
        return columns
    full = columns.pop("window_size") == 0  # sliding windows are not priced yet
    return {name: column[full] for name, column in columns.items()}


def _read_experts(path: Path) -> dict[str, npt.NDArray[Any]]:
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "distribution", "latency")
    columns = _read(path, (*names, "moe_dtype", "moe_tp_size", "moe_ep_size"))
    columns["latency_ns"] = columns.pop("latency") * 1e6
    ranks = columns["ranks"] = columns.pop("moe_tp_size")
    # every GPU has all experts; the tables' width is that of all ranks together
    kept = (columns.pop("moe_ep_size") == 1) & (columns["inter_size"] % ranks == 0)
    kept &= np.isin(columns["moe_dtype"], _EXPERT_TYPES)
    columns["inter_size"] = columns["inter_size"] // ranks
    return {name: column[kept] for name, column in columns.items()}


def _read_latent(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns = _read(
        path, ("num_heads", "batch_size", "isl", "step", "kv_cache_dtype", "gemm_type", "latency", "architecture")
    )
    columns["latency_ns"] = columns.pop("latency") * 1e6
    plain = (columns.pop("kv_cache_dtype") == "bfloat16") & (columns.pop("gemm_type") == "bfloat16")
    plain &= columns.pop("architecture") == "DeepseekV3ForCausalLM"  # whose widths latent.py knows
    return {name: column[plain] for name, column in columns.items()}


def _read_products(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns = _read(path, ("op_name", "bmm_dtype", "num_heads", "num_tokens", "latency"))
    columns["latency_ns"] = columns.pop("latency") * 1e6
    return columns


# The tables count elements of two bytes: 67,108,864 of them take the 466 us that nccl-tests measured for 134 MB on the same
# product (github.com/microsoft/apex_plus, profile/comm/H100-SXM-80GB/all_reduce.csv: 465 us).
_MESSAGE_ELEMENT_BYTES = 2


def _read_all_reduce(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns = _read(path, ("num_gpus", "message_size", "latency"), optional=("backend", "allreduce_dtype"))
    captured = np.ones(len(columns["num_gpus"]), dtype=bool)
    if "backend" in columns:
        captured = np.char.endswith(columns.pop("backend"), "_graph")
    if "allreduce_dtype" in columns:
        captured &= np.isin(columns.pop("allreduce_dtype"), ("bfloat16", "float16", "half"))
    columns["latency_ns"] = columns.pop("latency") * 1e6
    columns["size_bytes"] = columns.pop("message_size") * _MESSAGE_ELEMENT_BYTES
    return {name: column[captured] for name, column in columns.items()}


def _read_nccl(path: Path) -> dict[str, npt.NDArray[Any]]:
    columns = _read(path, ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency"))
    half = columns.pop("nccl_dtype") == "half"
    columns["latency_ns"] = columns.pop("latency") * 1e6
    columns["size_bytes"] = columns.pop("message_size") * _MESSAGE_ELEMENT_BYTES
    return {name: column[half] for name, column in columns.items()}


def _collective_table(rows: dict[str, npt.NDArray[Any]], chosen: npt.NDArray[np.bool_], ranks: int) -> CollectiveTable:
    here = chosen & (rows["num_gpus"] == ranks)
    if not here.any():
        measured = ", ".join(str(count) for count in sorted({int(count) for count in rows["num_gpus"][chosen]}))
        raise DatabaseError(f"it was not measured (measured: {measured or 'none'} GPUs)")
    sizes = rows["size_bytes"][here]
    latency = [float(np.median(rows["latency_ns"][here][sizes == size])) for size in np.unique(sizes)]
    return CollectiveTable(tuple(int(size) for size in np.unique(sizes)), tuple(latency))


def _read(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, npt.NDArray[Any]]:
    import pyarrow.parquet

    present = set(pyarrow.parquet.read_schema(path).names)
    names = (*names, *(name for name in optional if name in present))
    table = pyarrow.parquet.read_table(path, columns=list(names))
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in names:
        values = table.column(name).to_numpy()
        columns[name] = values.astype(str) if values.dtype.kind == "O" else values
    return columns


_READERS: dict[str, Callable[[Path], dict[str, npt.NDArray[Any]]]] = {
    "gemm_perf": _read_gemm,
    _GRAPH_TABLE: _read_gemm,
    "context_attention_perf": _read_attention,
    "generation_attention_perf": _read_attention,
    "moe_perf": _read_experts,
    "mla_bmm_perf": _read_products,
    "mla_context_module_perf": _read_latent,
    "mla_generation_module_perf": _read_latent,
    "custom_allreduce_perf": _read_all_reduce,
    "nccl_perf": _read_nccl,
}
