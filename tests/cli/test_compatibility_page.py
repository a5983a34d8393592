"""The page that `make compat` writes; the engines themselves are booted by that command alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("compatibility", BENCHMARKS / "compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compatibility", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "compatibility.md")
    return module


def row(script: Any, version: str, detail: str, blocks: int, problem: str = "") -> Any:
    return script.Row((version, "1", detail, *("x",) * (len(script.COLUMNS) - 4)), blocks, problem)


def test_rows_of_other_releases_stay_and_newer_ones_come_first(script: Any) -> None:
    script.write_page([row(script, "0.9.1", detail, 7) for detail in ("step", "kernel")])
    script.write_page([row(script, "0.15.1", "kernel", 7, "FAILED: a reason")])
    script.write_page([row(script, "0.15.1", detail, 8) for detail in ("kernel", "step")])
    lines = [line for line in script.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| 0.")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert [(line[0], line[2]) for line in cells] == [
        ("0.15.1", "step"),
        ("0.15.1", "kernel"),
        ("0.9.1", "step"),
        ("0.9.1", "kernel"),
    ]
    assert all(line[-1] == "works" and len(line) == len(script.COLUMNS) for line in cells)


def test_a_reason_is_one_line_of_a_table(script: Any) -> None:
    assert script.reason("hyperlapse: bad\n\nuse | instead\nAll logs: /x\n") == "hyperlapse: bad use / instead"
    assert script.reason("\n") == "it said nothing"


def test_torchs_versions_are_read_from_its_sources(script: Any, tmp_path: Path) -> None:
    assert script.versions_in(tmp_path) == ("?", "?")
    folder = tmp_path / "lib" / "python3.11" / "site-packages" / "torch"
    folder.mkdir(parents=True)
    text = "from typing import Optional\n__version__ = '2.10.0+cu128'\ncuda: Optional[str] = '12.8'\ncudaless = '1'\n"
    (folder / "version.py").write_text(text, encoding="utf-8")
    assert script.versions_in(tmp_path) == ("2.10.0+cu128", "12.8")


def test_a_process_of_the_environment_is_found(script: Any) -> None:
    folder = Path(sys.executable).parent
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert any(line.startswith(f"{process.pid} ") for line in script.running(folder))
        process.communicate(b"\n")
    assert not any(line.startswith(f"{process.pid} ") for line in script.running(folder))
    assert not script.running(Path("/nowhere"))
