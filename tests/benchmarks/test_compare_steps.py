"""benchmarks/gpu reads what it writes: steps of a trace, their kinds, and errors that name the file."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return loaded(FOLDER / "compare_steps.py")


def recording(folder: Path, *records: list[Any], sizes: str = "[1, 2, 4, 8]") -> Path:
    (folder / "trace.1.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "server.log").write_text(f"config: {{'cudagraph_capture_sizes': {sizes}, 'other': 1}}\n")
    return folder


def test_steps_that_ran_to_their_end(compare: ModuleType, tmp_path: Path) -> None:
    recording(
        tmp_path,
        ["base", 1],
        ["exec", 1, 1_000_000, 3_000_000, 5, [[1, 1024, 2]], []],
        ["exec", 2, 4_000_000, 5_000_000, 5, [[1, 1025, 2]], []],
        ["gpu", 1, 10.0, 12.0, 12.5],
        ["note", "nothing"],
    )
    (step,) = compare.read_steps(tmp_path / "trace.1.jsonl")
    assert (step.batch, step.device_ns, step.host_ns, step.host_limited) == (
        ((1, 1024, 2),),
        2_500_000,
        2_000_000,
        False,
    )
    assert compare.RecordedStep(step.batch, 2_500_000, 2_000_001).host_limited


@pytest.mark.parametrize(
    ("batch", "kind", "graph"),
    [
        (((1, 5, 1),), "decode, 1 sequence", "full"),
        (((1, 5, 3), (1, 9, 4)), "decode, up to 8 sequences", "full"),
        (((1, 5, 9),), "decode, up to 32 sequences", "none"),
        (((1, 0, 1),), "prefill, up to 512 tokens", "piecewise"),
        (((513, 0, 1),), "prefill, up to 4,096 tokens", "none"),
        (((1, 7, 1), (3, 0, 2)), "prefill and decodes, up to 512 tokens", "piecewise"),
        (((5000, 8192, 1), (1, 7, 1)), "prefill over past KV, more than 4,096 tokens", "none"),
    ],
)
def test_kinds_and_graphs(compare: ModuleType, batch: Any, kind: str, graph: str) -> None:
    assert compare.kind_of(batch)[1] == kind
    assert compare.composition(batch, (1, 2, 4, 8)).graph == graph


def test_broken_recordings_are_errors_that_say_where(compare: ModuleType, tmp_path: Path) -> None:
    recording(tmp_path, ["gpu", 1, "late"])
    with pytest.raises(compare.RecordingError, match=r"trace.1.jsonl, line 1: not a record"):
        list(compare.read_steps(tmp_path / "trace.1.jsonl"))
    (tmp_path / "server.log").unlink()
    with pytest.raises(
        compare.RecordingError, match=r"server.log: no cudagraph_capture_sizes; keep the server's output"
    ):
        compare.capture_sizes(tmp_path / "server.log")
    code = [sys.executable, str(FOLDER / "compare_steps.py"), str(tmp_path / "nothing")]
    result = subprocess.run(code, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "no trace.*.jsonl; see benchmarks/gpu/README.md" in result.stderr


def test_the_table_has_the_errors_of_its_steps(compare: ModuleType, tmp_path: Path) -> None:
    """A recording made of the predictions plus a tenth has an error of -1/11 everywhere."""
    from hyperlapse.cli.priced_device import engine_predictor
    from hyperlapse.predictor.models import ModelConfig
    from hyperlapse.shim.models import resolve_model

    model = ModelConfig.from_json(resolve_model("qwen3-14b").config_path, dtype="auto", kv="auto")
    steps = engine_predictor("h100-sxm-80gb", engine="vllm-0.23.0").step_predictor(model)
    records: list[list[Any]] = []
    for number, context in enumerate((100, 1000, 4000)):
        batch = ((1, context, 4),)
        predicted_ms = steps.predict(compare.composition(batch, (1, 2, 4, 8))).duration_ns / 1e6
        records += [["exec", number, 0, 1, 0, batch, []], ["gpu", number, 0.0, 1.0, 1.1 * predicted_ms]]
    records += [["exec", 9, 0, 10**12, 0, [[1, 100, 4]], []], ["gpu", 9, 0.0, 1.0, 2.0]]
    recording(tmp_path, *records)
    code = [sys.executable, str(FOLDER / "compare_steps.py"), str(tmp_path)]
    result = subprocess.run(code, capture_output=True, text=True, timeout=300, check=True)
    assert "| decode, up to 8 sequences | 4 | 1 | -9.1% | -9.1% | -9.1% | 100.0% |" in result.stdout


def test_the_trace_groups_equal_sequences() -> None:
    trace = loaded(FOLDER / "engine_trace" / "engine_trace.py")
    scheduled = SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id="new", num_computed_tokens=16)],
        scheduled_cached_reqs=SimpleNamespace(req_ids=["a", "b", "c"], num_computed_tokens=[7, 9, 7]),
        num_scheduled_tokens={"c": 1, "b": 1, "a": 1, "new": 48},
    )
    assert trace.groups(scheduled) == [[1, 7, 2], [1, 9, 1], [48, 16, 1]]
