"""The measured tables: found without importing their package, cached in a fast form, refused by name where absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyperlapse.predictor import database as module
from hyperlapse.predictor.database import ExpertConfig, HeadConfig, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec, device_names
from hyperlapse.predictor.prediction import DatabaseError

from .conftest import ENGINE


def test_tables_of_the_h100(database: KernelDatabase) -> None:
    table = database.gemm()
    assert {1, 1024, 1025, 32768} <= set(table.m.tolist())
    assert np.isfinite(table.latency_ns).mean() > 0.99
    decode = database.decode(HeadConfig(40, 8, 128, "bfloat16"))
    prefill = database.prefill(HeadConfig(40, 8, 128, "bfloat16"))
    assert np.isfinite(decode.latency_ns[:, 0]).all()
    assert np.isfinite(prefill.latency_ns[0]).all()
    # milliseconds in the files, nanoseconds here: no kernel of an H100 takes less than 1 us
    assert min(np.nanmin(each) for each in (table.latency_ns, decode.latency_ns, prefill.latency_ns)) > 1000


def test_the_second_start_reads_neither_parquet_nor_the_package(
    database: KernelDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERLAPSE_CACHE", str(tmp_path))
    first = KernelDatabase.load("h100_sxm", ENGINE).gemm()
    assert list(tmp_path.rglob("*.npz"))
    code = (
        "import sys; from hyperlapse.predictor.database import KernelDatabase;"
        f"print(KernelDatabase.load('h100_sxm', '{ENGINE}').gemm().latency_ns[0, 0, 0]);"
        "assert not {'pyarrow', 'pandas', 'aiconfigurator_core'} & set(sys.modules), sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == first.latency_ns[0, 0, 0]


def test_a_damaged_cache_is_made_anew(
    database: KernelDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERLAPSE_CACHE", str(tmp_path))
    KernelDatabase.load("h100_sxm", ENGINE).gemm()
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:1000])
    assert KernelDatabase.load("h100_sxm", ENGINE).gemm().latency_ns.shape == database.gemm().latency_ns.shape


def test_a_cache_that_cannot_be_written_is_a_warning(
    database: KernelDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPERLAPSE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert KernelDatabase.load("h100_sxm", ENGINE).gemm().latency_ns.shape == database.gemm().latency_ns.shape


def test_an_absent_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MODULE", "no_such_package_of_kernels")
    with pytest.raises(DatabaseError, match="pip install aiconfigurator-core"):
        KernelDatabase.load("h100_sxm", ENGINE)


def test_an_unknown_system_lists_the_known(database: KernelDatabase) -> None:
    with pytest.raises(DatabaseError, match=database.system):
        KernelDatabase.load("h1000_sxm", ENGINE)
    with pytest.raises(DatabaseError, match="h100_sxm"):
        KernelDatabase.load("h100_sxm", "no-such-engine")


def test_another_version_takes_the_nearest_and_says_so(database: KernelDatabase) -> None:
    assert database.notes == ()
    other = KernelDatabase.load("h100_sxm", ENGINE, "0.0.1")
    assert other.engine_version == database.engine_version
    assert other.notes == (f"kernels measured with {ENGINE} {database.engine_version}, not 0.0.1",)


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        (None, "0.24.0"),
        ("0.24.0", "0.24.0"),
        ("0.32.0", "0.24.0"),
        ("0.23.0", "0.24.0"),
        ("0.16.3", "0.14.0"),
        ("0.19.0", "0.14.0"),
    ],
)
def test_the_nearest_version(wanted: str | None, nearest: str) -> None:
    assert module.nearest_version(("0.14.0", "0.24.0"), wanted) == nearest
    assert module.nearest_version((), wanted) is None


def test_tables_of_every_measured_product() -> None:
    """Each product that says it was measured has tables of each family, with the layouts that models ask for."""
    for name in device_names():
        device = DeviceSpec.named(name)
        found = module.measured_families(device.database_system, ENGINE)
        assert set(found) - {"mla"} == {"gemm", "attention", "moe"}, name
        assert ENGINE in module.engines(device.database_system)


def test_experts_of_measured_layers(database: KernelDatabase) -> None:
    table = database.experts(ExpertConfig(2048, 768, 8, 128))
    assert (np.diff(table.tokens) > 0).all()
    assert np.isfinite(table.latency_ns).all()
    with pytest.raises(KeyError):
        database.experts(ExpertConfig(2049, 768, 8, 128))


def test_an_unmeasured_type_is_refused(database: KernelDatabase) -> None:
    with pytest.raises(DatabaseError, match="float64"):
        database.gemm("float64")
    with pytest.raises(KeyError):
        database.decode(HeadConfig(41, 8, 128, "bfloat16"))
