"""`hyperlapse compare`: two reports side by side, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hyperlapse.cli.compare import command
from hyperlapse.cli.comparison import compare, metrics
from hyperlapse.cli.metrics import write_requests
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.report import read_report, write_report
from tests.cli.report_run import make_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of two equal workloads with different seats in the engine, and of another workload."""
    root = tmp_path_factory.mktemp("reports")
    found = {}
    for name, options in (("wide", {}), ("narrow", {"seats": 2}), ("other", {"rate_per_s": 3.0})):
        run = make_run(root / f"{name}-run", **options)
        write_requests(root / f"{name}-run" / "requests.jsonl", run.records)
        (root / f"{name}.json").write_text(json.dumps(run.result.as_json()))
        write_report(run, root / name, Silent())
        found[name], found[f"{name}-json"] = root / name, root / f"{name}.json"
    return found


def run(*arguments: Path | str) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_run_compared_with_itself_differs_in_nothing(folders: dict[str, Path]) -> None:
    result = run(folders["wide"], folders["wide"] / "report.json", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert all(row["same"] for row in found["configuration"])
    assert {entry["difference"] for entry in found["metrics"]} == {0}
    assert found["warnings"] == []
    assert "No difference in how they were made" in run(folders["wide"], folders["wide"]).stdout


def test_differences_are_b_less_a_and_judged_by_the_estimate(folders: dict[str, Path]) -> None:
    one, other = read_report(folders["wide"]), read_report(folders["narrow"])
    entries = {(entry["name"], entry["statistic"]): entry for entry in metrics(one, other)}
    ttft = entries["TTFT", "mean"]
    assert ttft["difference"] == pytest.approx(ttft["b"] - ttft["a"])
    assert ttft["relative"] == pytest.approx(ttft["difference"] / ttft["a"])
    assert ttft["difference"] > 0, "fewer seats: requests wait"
    for entry in entries.values():
        if entry["estimate"] is not None:
            assert entry["within_estimate"] == (abs(entry["difference"]) <= entry["estimate"])
    assert entries["real time", ""]["within_estimate"] is None
    verdicts = {entry["within_estimate"] for entry in entries.values()}
    assert verdicts == {True, False, None}


def test_tables_show_figures_and_verdicts(folders: dict[str, Path]) -> None:
    result = run(folders["wide"], folders["narrow"])
    assert result.exit_code == 0
    for text in ("TTFT mean, ms", "E2E p99, ms", "output tokens, per s", "outside", "inside", "%)"):
        assert text in result.stdout


def test_a_throughput_without_an_estimate_says_why(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(folders["wide"], folders["narrow"], "--json", "--html", page)
    entries = {entry["name"]: entry for entry in json.loads(result.stdout)["metrics"]}
    why = "A follows the offered load: no request waited for a place in the batch"
    for name in ("output tokens", "requests"):
        assert entries[name]["without_estimate"] == why
        assert (entries[name]["estimate"], entries[name]["within_estimate"]) == (None, None)
    assert entries["TTFT"]["without_estimate"] is None
    sentence = f"No estimate for output tokens per s and requests per s: {why}."
    assert sentence in page.read_text(encoding="utf-8")
    assert sentence in " ".join(run(folders["wide"], folders["narrow"]).stdout.split())
    assert "No estimate" not in run(folders["narrow"], folders["narrow"]).stdout


def test_another_workload_is_warned_of(folders: dict[str, Path]) -> None:
    result = run(folders["wide"], folders["other"])
    assert result.exit_code == 0
    assert (
        "warning: The workloads differ (rate per s 6.0 and 3.0): the latencies are those of different loads."
        in result.stderr
    )
    assert "workload" in result.stdout


def test_results_without_a_report_compare_too(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(folders["wide-json"], folders["narrow"], "--json", "--html", page)
    assert result.exit_code == 0
    assert "does not say its workload" in result.stderr
    found = json.loads(result.stdout)
    assert {entry["estimate"] for entry in found["metrics"]} == {None}
    text = page.read_text(encoding="utf-8")
    assert "Steps were not recorded for both runs" in text
    assert '"ttft":{' in text, "requests come from the requests file"


def test_a_page_is_written_whole_and_replaces_only_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    for _ in range(2):
        assert run(folders["wide"], folders["narrow"], "--html", page).exit_code == 0
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    text = page.read_text(encoding="utf-8")
    for name in ("running", "waiting", "kv", "busy", "ttft"):
        assert f'"{name}":{{' in text
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    result = run(folders["wide"], folders["narrow"], "--html", mine)
    assert result.exit_code == 2
    assert "hyperlapse did not make; name another one" in result.stderr
    assert mine.read_text() == "<p>mine"
    assert "this is a folder" in run(folders["wide"], folders["narrow"], "--html", tmp_path).stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing", None, "does not exist"),
        ("version", '{"schema":"hyperlapse-report","version":99}', "version 99, this hyperlapse reads version 1"),
        ("alien", '{"answer":42}', "neither a report nor an output of"),
        ("cut", '{"schema":"hyperlapse-report","version":1,"created":null', "is not JSON"),
        ("hollow", '{"schema":"hyperlapse-report","version":1}', "is no whole report"),
    ],
)
def test_wrong_inputs_are_said(
    folders: dict[str, Path], tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    result = run(folders["wide"], path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_the_settings_that_differ_are_marked(folders: dict[str, Path]) -> None:
    one = read_report(folders["wide"])
    other: dict[str, Any] = json.loads(json.dumps(one))
    other["result"]["engine_version"] = "0.32.0"
    other["result"]["provenance"]["engine_flags"] = ["--max-num-seqs", "64"]
    found = compare(one, other, (folders["wide"], folders["wide"]))
    assert {row["name"]: (row["a"], row["b"]) for row in found["configuration"] if not row["same"]} == {
        "engine": ("vllm 0.23.0", "vllm 0.32.0"),
        "engine flags": ("none", "--max-num-seqs 64"),
    }
