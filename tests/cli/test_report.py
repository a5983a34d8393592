"""report.json and its folder: what stands in it, that it is whole, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from hyperlapse.cli import report as reports
from hyperlapse.cli.bench import command as bench
from hyperlapse.cli.benchmark import BenchRun
from hyperlapse.cli.progress import Silent
from hyperlapse.cli.report import COMPRESS_ABOVE_BYTES
from hyperlapse.cli.report_data import FOLLOWS_LOAD, SCHEMA_FILE, ReportError, build_report
from hyperlapse.cli.report_html import number, percent
from hyperlapse.shim.launcher import Event
from tests.cli.report_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> BenchRun:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def report(run: BenchRun) -> dict[str, Any]:
    return build_report(run, Silent())


def test_the_object_follows_its_schema(report: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    whole = json.loads("".join(reports.json_pieces(report)))
    validator.validate(whole)
    assert whole == report
    whole["steps"]["start_ns"][0] = "now"
    whole["unheard"] = 1
    assert len(list(validator.iter_errors(whole))) == 2


def test_every_request_and_every_step_is_in_it(run: BenchRun, report: dict[str, Any]) -> None:
    requests, steps = report["requests"], report["steps"]
    assert {len(column) for column in requests.values()} == {len(run.records)}
    assert {len(column) for column in steps.values()} == {run.engine.steps}
    assert requests["token_ns"] == [list(record.token_ns) for record in run.records]
    assert sum(steps["prefill_tokens"]) == sum(requests["prompt_tokens"])
    assert sum(steps["decode_tokens"]) == sum(requests["output_tokens"]) - len(run.records)
    assert None not in steps["running"]
    ends = [start + duration for start, duration in zip(steps["start_ns"], steps["duration_ns"], strict=True)]
    assert max(ends) == max(record.token_ns[-1] for record in run.records)


def test_prices_are_the_durations_and_shares_add_up(report: dict[str, Any]) -> None:
    device, steps = report["device_time"], report["steps"]
    assert steps["price_ns"] == steps["duration_ns"]
    assert device["steps_unlike_their_price"] == 0
    assert device["busy_ns"] + device["waiting_ns"] + device["empty_ns"] == device["span_ns"]
    assert sum(operator["total_ns"] for operator in device["operators"]) == device["priced_ns"]
    for operator in device["operators"]:
        assert sum(operator["coverage_ns"].values()) == operator["total_ns"]
    means = report["host_time"]["request_mean_ns"]
    assert sum(means[name] for name in ("queued", "prefill", "decode", "charged", "rest")) == pytest.approx(
        means["e2e"]
    )


def test_a_step_that_is_not_its_price_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", requests=6)
    path = tmp_path / "run" / "steps-1-0.bin"
    data = bytearray(path.read_bytes())
    first = 12 + int.from_bytes(data[8:12], "little")
    end = int.from_bytes(data[first + 12 : first + 20], "little") - 5
    data[first + 12 : first + 20] = end.to_bytes(8, "little")
    path.write_bytes(data)
    found = build_report(run, Silent())
    assert found["device_time"]["steps_unlike_their_price"] == 1
    assert "1 of" in reports.render_report(found).partition("Read this before the figures")[2][:400]


def test_every_figure_has_its_estimate(report: dict[str, Any]) -> None:
    ratio = report["estimate"]["device_time_ratio"]
    assert 0 < ratio < 0.5
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        for figure in report["metrics"][name].values():
            assert figure["low"] < figure["value"] < figure["high"]
    assert report["metrics"]["tpot_ms"]["mean"]["high"] == pytest.approx(
        report["metrics"]["tpot_ms"]["mean"]["value"] * (1 + ratio)
    )


def test_a_queue_makes_the_estimate_of_the_first_token_larger(tmp_path: Path) -> None:
    found = build_report(make_run(tmp_path / "run", rate_per_s=200.0, seats=2, requests=12), Silent())
    ratios = found["estimate"]["metric_ratios"]
    assert found["estimate"]["queue_share"] > 0.5
    assert ratios["ttft"] > 1.5 * ratios["tpot"]


def test_throughput_has_an_interval_or_a_reason_for_none(run: BenchRun, report: dict[str, Any], tmp_path: Path) -> None:
    """Never an interval without a width: the load decides where nobody waits, and then durations say nothing."""
    estimate, figure = report["estimate"], report["metrics"]["output_tokens_per_s"]
    assert estimate["queue_share"] == 0
    assert estimate["metric_ratios"]["throughput"] is None
    assert estimate["without_interval"] == {"throughput": FOLLOWS_LOAD}
    assert (figure["low"], figure["high"]) == (None, None)
    assert "follows the offered load" in reports.render_report(report)
    queued = make_run(tmp_path / "run", rate_per_s=200.0, seats=2, requests=12)
    for limited in (
        queued,
        dataclasses.replace(run, options=dataclasses.replace(run.options, concurrency=64)),
        dataclasses.replace(run, options=dataclasses.replace(run.options, rate=None)),
        dataclasses.replace(run, options=dataclasses.replace(run.options, trace=Path("t"), max_in_flight=64)),
    ):
        found = build_report(limited, Silent())
        assert found["estimate"]["metric_ratios"]["throughput"] == found["estimate"]["device_time_ratio"] > 0
        assert found["estimate"]["without_interval"] == {}
        figure = found["metrics"]["output_tokens_per_s"]
        assert figure["low"] < figure["value"] < figure["high"]
        assert "follows the offered load" not in reports.render_report(found)


def test_phases_that_are_more_than_the_latency_are_told(report: dict[str, Any], tmp_path: Path) -> None:
    assert report["host_time"]["request_mean_ns"]["rest"] > 0
    assert report["events"] == []
    run = make_run(tmp_path / "run", requests=6)
    path = tmp_path / "run" / "engine-1.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"decode_ns": 1', '"decode_ns": 90'), encoding="utf-8")
    found = build_report(run, Silent())
    (event,) = found["events"]
    means = found["host_time"]["request_mean_ns"]
    assert means["rest"] < 0
    assert sum(means[name] for name in ("queued", "prefill", "decode", "charged", "rest")) == pytest.approx(
        means["e2e"]
    )
    assert (event["kind"], event["count"]) == ("phases-exceed-latency", 1)
    assert f"{-means['rest'] / 1e6:,.3f} ms more than its latency of {means['e2e'] / 1e6:,.3f} ms" in event["text"]
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(found)
    page = reports.render_report(found)
    assert "phases-exceed-latency, once" in page
    assert "flex: -" not in page


def test_a_fixed_step_has_no_estimate(run: BenchRun) -> None:
    fixed = dataclasses.replace(run, options=dataclasses.replace(run.options, fixed_step="10ms,40us"))
    found = build_report(fixed, Silent())
    assert found["estimate"] is None
    assert found["device_time"]["operators"] == []
    assert set(found["steps"]["price_ns"]) == {None}
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(found)
    assert "fixed rule" in reports.render_report(found)


def test_a_log_that_stopped_is_no_report(run: BenchRun, tmp_path: Path) -> None:
    stopped = dataclasses.replace(run, events=[Event("step-log", "it cannot grow: No space left on device", 1)])
    with pytest.raises(ReportError, match=r"not all recorded: .*No space left"):
        build_report(stopped, Silent())
    with pytest.raises(ReportError, match="holds no step log"):
        build_report(dataclasses.replace(run, folder=tmp_path), Silent())


# ----- the folder -----


def test_both_files_appear_and_replace_an_earlier_report(report: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    reports.check_folder(folder)
    assert not folder.exists(), "a check changes nothing"
    reports.write_files(report, folder, Silent())
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html"}
    assert reports.read_report(folder) == report
    (folder / "report.html.part").write_text("what an interrupted write left")
    reports.write_files({**report, "events": [{"kind": "new", "count": 1, "text": "x"}]}, folder, Silent())
    assert reports.read_report(folder / "report.json")["events"][0]["kind"] == "new"
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html"}


def test_a_large_report_is_compressed(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports.write_files(report, tmp_path, Silent())
    monkeypatch.setattr(reports, "COMPRESS_ABOVE_BYTES", 1000)
    reports.write_files(report, tmp_path, Silent())
    assert {path.name for path in tmp_path.iterdir()} == {"report.json.gz", "report.html"}
    assert json.loads(gzip.decompress((tmp_path / "report.json.gz").read_bytes())) == report
    assert reports.read_report(tmp_path) == report
    reports.check_folder(tmp_path)


def test_a_folder_with_something_else_is_refused(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ReportError, match=r"other files \(thesis.tex\); name a new folder"):
        reports.write_files(report, tmp_path, Silent())
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex"}
    with pytest.raises(ReportError, match="there is a file of that name"):
        reports.check_folder(tmp_path / "thesis.tex")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "report.html").write_text("<p>mine")
    with pytest.raises(ReportError, match="not a report of hyperlapse"):
        reports.check_folder(foreign)
    (foreign / "report.json").write_text("{}")
    with pytest.raises(ReportError, match=r"report\.json in it is not a report of hyperlapse"):
        reports.check_folder(foreign)


def test_a_wrong_folder_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for arguments, message in (
        (["--report", str(tmp_path)], "other files (thesis.tex)"),
        (["--report", str(tmp_path / "thesis.tex" / "deeper")], "is not a folder that you may write to"),
        (["--report", str(tmp_path / "one"), "--output", str(tmp_path / "one")], "a report needs a folder of its own"),
        (["--report", str(tmp_path / "one"), "--output", str(tmp_path / "one" / "two")], "a folder of its own"),
    ):
        found = CliRunner().invoke(bench, arguments)
        assert (found.exit_code, found.stdout) == (2, "")
        assert message in " ".join(found.stderr.split())
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex"}


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from hyperlapse.cli import report
from hyperlapse.cli.progress import Silent
found = json.loads(Path(sys.argv[1]).read_text())
page = report.render_report(found)
limit = int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    report.write_files(found, Path(sys.argv[2]), Silent())
except report.ReportError as error:
    print(error)
else:
    print("written")
"""


@pytest.mark.parametrize("limit_bytes", [1000, 500_000])
def test_a_write_that_fails_leaves_nothing(report: dict[str, Any], tmp_path: Path, limit_bytes: int) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps(report))
    assert given.stat().st_size < 500_000, "so that the second case fails in report.html"
    folder = tmp_path / "report"
    command = [sys.executable, "-c", FULL_DISK, str(given), str(folder), str(limit_bytes)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written" in found.stdout
    assert "File too large; nothing was left there" in found.stdout
    assert not folder.exists()
    reports.write_files(report, folder, Silent())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written" in found.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "the earlier report stays"


@pytest.mark.parametrize("limit_bytes", [COMPRESS_ABOVE_BYTES, 1000])
def test_a_rename_that_fails_puts_the_earlier_report_back(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int
) -> None:
    """Of the second file, with the first in its place already. Renames fail for reasons that a test cannot make."""
    folder, really = tmp_path / "report", Path.replace
    failing: list[str] = ["report.html.part"]

    def replace(self: Path, target: Path) -> Path:
        if self.name in failing:
            raise OSError(errno.EIO, "Input/output error")
        return really(self, target)

    newer = {**report, "created": "2001-01-01T00:00:00+00:00"}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(ReportError, match="Input/output error; nothing was left there"):
            reports.write_files(report, folder, Silent())
    assert not folder.exists()
    reports.write_files(report, folder, Silent())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(reports, "COMPRESS_ABOVE_BYTES", limit_bytes)
        patch.setattr(Path, "replace", replace)
        with pytest.raises(ReportError, match="Input/output error; what was there before is unchanged"):
            reports.write_files(newer, folder, Silent())
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        failing.append("report.json.earlier.part")
        with pytest.raises(
            ReportError, match=r"Do not use the files there; copies of the earlier ones: .*earlier\.part"
        ):
            reports.write_files(newer, folder, Silent())
    copies = {path.name.removesuffix(".earlier.part"): path.read_bytes() for path in folder.glob("*.earlier.part")}
    assert copies["report.json"] == before["report.json"]
    reports.check_folder(folder)
    reports.write_files(newer, folder, Silent())
    assert reports.read_report(folder) == newer
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html"}


_WRITE_FOR_EVER = """
import itertools, json, sys
from pathlib import Path
from hyperlapse.cli import report
from hyperlapse.cli.progress import Silent
found = json.loads(Path(sys.argv[1]).read_text())
both = [{**found, "events": [{"kind": "x", "count": 1, "text": f"report {letter} of two"}]} for letter in "AB"]
pages = {id(one): report.render_report(one) for one in both}
report.render_report = lambda one: pages[id(one)]  # drawn before: the signal is to come while files are written
for number in itertools.count():
    report.write_files(both[number % 2], Path(sys.argv[2]), Silent())
    print(number, flush=True)
"""


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 5, 9, 14, 20, 35])
def test_ctrl_c_while_a_report_is_written_leaves_a_whole_one(
    report: dict[str, Any], tmp_path: Path, delay_ms: int
) -> None:
    source = tmp_path / "source.json"
    source.write_text("".join(reports.json_pieces(report)), encoding="utf-8")
    folder = tmp_path / "report"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITE_FOR_EVER, source, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "0\n"
    time.sleep(delay_ms / 1e3)
    writer.send_signal(signal.SIGINT)
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    text = json.loads((folder / "report.json").read_text(encoding="utf-8"))["events"][0]["text"]
    assert text in {"report A of two", "report B of two"}
    assert text in (folder / "report.html").read_text(encoding="utf-8"), "the two files are of one report"


def test_a_folder_in_the_place_of_the_page_is_refused(report: dict[str, Any], tmp_path: Path) -> None:
    reports.write_files(report, tmp_path, Silent())
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ReportError, match=r"report\.html in it is not a report"):
        reports.write_files(report, tmp_path, Silent())


# ----- reading -----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema":"hyperlapse-report","version":2}', "version 2, this hyperlapse reads version 1: use a newer"),
        ('{"schema":"hyperlapse-report","version":0}', "version 0, .*: use hyperlapse bench again"),
        ("{}", "neither a report nor"),
        ("[1]", "no JSON object"),
        ('{"schema":', "is not JSON"),
    ],
)
def test_what_is_no_report_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=message):
        reports.read_report(tmp_path)


def test_missing_reports_are_said(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="does not exist"):
        reports.read_report(tmp_path / "nowhere")
    with pytest.raises(ReportError, match=r"holds no report\.json; make one with hyperlapse bench --report"):
        reports.read_report(tmp_path)
    (tmp_path / "report.json.gz").write_bytes(b"\x1f\x8b cut")
    with pytest.raises(ReportError, match=r"report\.json\.gz"):
        reports.read_report(tmp_path)


# ----- the page's texts -----


def test_the_page_needs_nothing_from_outside(report: dict[str, Any]) -> None:
    page = reports.render_report(report)
    for word in ('src="http', "src='http", 'href="http', "@import", "url("):
        assert word not in page
    assert "<script>" in page
    assert reports.render_report(report) == page, "the same report gives the same page"


def test_texts_of_the_run_are_escaped(report: dict[str, Any]) -> None:
    events = [{"kind": "x", "count": 2, "text": "<script>alert(1)</script>"}]
    page = reports.render_report({**report, "events": events})
    assert "<script>alert(1)" not in page
    assert "x, 2 times: &lt;script&gt;" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0.00"), (0.1234, "0.12"), (8.1234, "8.12"), (14.376, "14.38"), (166.87, "166.9"), (1912.4, "1,912"),
        (23, "23"), (1234567, "1,234,567"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_they_are_worth(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_small_share_is_not_called_none() -> None:
    assert [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.0, 0.0001, 0.5, None)] == [
        "0.0 %", "< 0.1 %", "50.0 %", "–",
    ]  # fmt: skip
