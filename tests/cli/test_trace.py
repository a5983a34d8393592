"""`hyperlapse trace`: a report's requests and steps, at their instants, in the Trace Event Format."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hyperlapse.cli.main import cli
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.report import read_report, write_report

from .report_run import make_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    write_report(make_run(folder / "run", requests=12), folder / "report", Silent())
    return folder / "report"


def trace(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["trace", *map(str, arguments)])


def test_every_step_and_request_is_there(report: Path, tmp_path: Path) -> None:
    result = trace(report, tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    source = read_report(report)
    counts = Counter((event["ph"], event.get("cat", "")) for event in found)
    assert counts["X", "step"] == len(source["steps"]["start_ns"])
    assert counts["b", "request"] == counts["e", "request"] == 3 * len(source["requests"]["index"])
    assert all("ts" in event or event["ph"] == "M" for event in found)
    steps = [event for event in found if event["ph"] == "X"]
    assert round(steps[5]["ts"] * 1000) == source["steps"]["start_ns"][5]
    assert round(sum(step["dur"] for step in steps) * 1000) == sum(source["steps"]["duration_ns"])
    _nested(found)


def _nested(found: list[dict[str, Any]]) -> None:
    """Slices of a request begin and end inside each other."""
    for index in {event["id"] for event in found if event.get("cat") == "request"}:
        own = [event for event in found if event.get("id") == index]
        assert [event["ts"] for event in own] == sorted(event["ts"] for event in own)
        open_: list[str] = []
        for event in own:
            if event["ph"] == "b":
                open_.append(event["name"])
            else:
                assert open_.pop() == event["name"]
        assert not open_


def test_compressed_and_the_same_each_time(report: Path, tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz", "c.json"):
        assert trace(report, tmp_path / name).exit_code == 0
    data = [(tmp_path / name).read_bytes() for name in ("a.json.gz", "b.json.gz", "c.json")]
    assert data[0] == data[1]
    assert gzip.decompress(data[0]) == data[2]


def test_wrong_input(report: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("mine")
    for arguments, words in (
        ((report, there), "exists"),
        ((report, tmp_path / "t.txt"), "name it .json"),
        ((tmp_path / "nothing", tmp_path / "t.json"), "nothing"),
        ((tmp_path, tmp_path / "t.json"), str(tmp_path)),
    ):
        result = trace(*arguments)
        assert result.exit_code == 2
        assert words in result.output + result.stderr
    assert there.read_text() == "mine"
    assert trace(report, tmp_path / "no" / "t.json").exit_code == 1
