"""Writes and reads reports: a folder with `report.json` (or `report.json.gz`) and `report.html`.

Why: both files must appear whole or not at all, and never in a folder that holds something else of the user's. Each is
written beside its place under another name, synchronised, and renamed when both are complete. Two renames are not one: so
an earlier report is copied first, and put back when one of them fails. What an interrupted or failed write began is
removed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hyperlapse.cli.report_data import SCHEMA, VERSION, ReportError, build_report
from hyperlapse.cli.report_html import render_report

if TYPE_CHECKING:
    from hyperlapse.cli.benchmark import BenchRun
    from hyperlapse.cli.progress import Progress

JSON_FILE = "report.json"
COMPRESSED_FILE = "report.json.gz"
HTML_FILE = "report.html"
OWN_FILES = {JSON_FILE, COMPRESSED_FILE, HTML_FILE}
PART_SUFFIX = ".part"
# Above this the object is compressed: browsers and editors do not open such files anyway.
COMPRESS_ABOVE_BYTES = 64 << 20


def check_folder(folder: Path) -> None:
    """Raises ReportError for a folder that a report must not or cannot be written to. Changes nothing."""
    try:
        if folder.exists() and not folder.is_dir():
            raise ReportError(f"--report {folder}: there is a file of that name; name a new folder")
        if not folder.exists():
            parent = next(parent for parent in folder.absolute().parents if parent.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise ReportError(f"--report {folder}: {parent} is not a folder that you may write to")
            return
        found = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ReportError(f"--report {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReportError(f"--report {folder}: you may not write to it")
    others = sorted(name for name in found - OWN_FILES if not name.endswith(PART_SUFFIX))
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ReportError(
            f"--report {folder}: the folder holds other files ({shown}); name a new folder, or one that holds nothing but "
            "an earlier report, which is then replaced"
        )
    if HTML_FILE in found and ((folder / HTML_FILE).is_dir() or not found & {JSON_FILE, COMPRESSED_FILE}):
        raise ReportError(f"--report {folder}: {HTML_FILE} in it is not a report of hyperlapse; name a new folder")
    for name in (JSON_FILE, COMPRESSED_FILE):
        if name in found and not _is_report(folder / name):
            raise ReportError(f"--report {folder}: {name} in it is not a report of hyperlapse; name a new folder")


def _is_report(path: Path) -> bool:
    start = f'{{"schema":"{SCHEMA}",'.encode()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(len(start)) == start
    except (OSError, EOFError, zlib.error):
        return False


def write_report(run: BenchRun, folder: Path, progress: Progress) -> list[Path]:
    """Makes the report of a run; the files that it wrote. Raises ReportError."""
    report = build_report(run, progress)
    return write_files(report, folder, progress)


def write_files(report: Mapping[str, Any], folder: Path, progress: Progress) -> list[Path]:
    """Writes both files, replacing those of an earlier report. Raises ReportError."""
    check_folder(folder)
    progress.phase("drawing the report")
    page = render_report(report)
    progress.phase("writing the report")
    made = not folder.exists()
    parts: list[Path] = []
    done = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = _json_bytes(report, folder, parts)
        html = _part(folder / HTML_FILE, parts)
        html.write_text(page, encoding="utf-8")
        _synchronise(html)
        _exchange(folder, (data, html), parts)
        done = True
    except OSError as error:
        left = "nothing was left there" if made else "what was there before is unchanged"
        raise ReportError(f"the report cannot be written to {folder}: {error.strerror}; {left}") from None
    finally:
        if not done:
            for part in parts:
                part.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    return [folder / HTML_FILE, folder / data.name.removesuffix(PART_SUFFIX)]


def _exchange(folder: Path, new: Sequence[Path], parts: list[Path]) -> None:
    """Puts the new files in the place of the earlier report's. Raises OSError with the earlier report in its place, and
    ReportError when even that failed.
    """
    earlier: dict[str, Path] = {}
    for name in sorted(OWN_FILES):
        if (folder / name).exists():
            earlier[name] = _part(folder / f"{name}.earlier", parts)
            shutil.copyfile(folder / name, earlier[name])
            _synchronise(earlier[name])
    places = {part.name.removesuffix(PART_SUFFIX): part for part in new}
    try:
        for name, part in places.items():
            part.replace(folder / name)
        for name in earlier.keys() - places.keys():
            (folder / name).unlink()
    except BaseException as error:
        try:
            for name in sorted(OWN_FILES):
                if name in earlier:
                    earlier[name].replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
        except OSError as second:
            kept = [copy for copy in earlier.values() if copy.exists()]
            parts[:] = [part for part in parts if part not in kept]
            raise ReportError(
                f"the report cannot be written to {folder}: {error}; and putting the earlier one back failed too: "
                f"{second.strerror}. Do not use the files there"
                + (f"; copies of the earlier ones: {', '.join(copy.name for copy in kept)}" if kept else "")
            ) from None
        raise
    for copy in earlier.values():
        with contextlib.suppress(OSError):
            copy.unlink()


def _part(path: Path, parts: list[Path]) -> Path:
    part = path.with_name(path.name + PART_SUFFIX)
    parts.append(part)
    return part


def _json_bytes(report: Mapping[str, Any], folder: Path, parts: list[Path]) -> Path:
    """The object's file under its temporary name, compressed when it is large."""
    plain = _part(folder / JSON_FILE, parts)
    with plain.open("wb") as file:
        for piece in json_pieces(report):
            file.write(piece.encode())
    if plain.stat().st_size <= COMPRESS_ABOVE_BYTES:
        _synchronise(plain)
        return plain
    compressed = _part(folder / COMPRESSED_FILE, parts)
    with plain.open("rb") as source, compressed.open("wb") as target, _gzip(target) as packed:
        while block := source.read(1 << 20):
            packed.write(block)
    plain.unlink()
    _synchronise(compressed)
    return compressed


def _gzip(target: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=target, mtime=0)


def json_pieces(report: Mapping[str, Any]) -> Iterator[str]:
    """The object's text, a column at a time: a run of a million steps is not held in memory twice."""
    yield "{"
    for number, (name, value) in enumerate(report.items()):
        yield f"{',' if number else ''}{json.dumps(name)}:"
        if name in ("requests", "steps"):
            yield "{"
            for place, (column, values) in enumerate(value.items()):
                yield f"{',' if place else ''}\n{json.dumps(column)}:{_compact(values)}"
            yield "}\n"
        else:
            yield _compact(value) + ("\n" if number else "")
    yield "}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _synchronise(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_report(given: Path) -> dict[str, Any]:
    """A report from its folder, its report.json(.gz), or an output of `bench --json`, which has neither requests nor
    steps (they are then read from its requests file where that is still there). Raises ReportError.
    """
    path = _file_of(given)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = json.load(io.BytesIO(data))
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise ReportError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ReportError(f"{path} is no report: it holds no JSON object")
    if found.get("schema") == SCHEMA:
        version = found.get("version")
        if version != VERSION:
            wanted = (
                "a newer hyperlapse" if isinstance(version, int) and version > VERSION else "hyperlapse bench again"
            )
            raise ReportError(
                f"{path} is a report of version {version}, this hyperlapse reads version {VERSION}: use {wanted}"
            )
        return found
    if {"engine", "model", "gpu", "metrics", "throughput", "provenance"} <= found.keys():
        return _of_result(found)
    raise ReportError(
        f"{path} is neither a report nor an output of `hyperlapse bench --json`; make one with hyperlapse bench --report DIR"
    )


def _file_of(given: Path) -> Path:
    if not given.exists():
        raise ReportError(f"{given} does not exist")
    if not given.is_dir():
        return given
    for name in (JSON_FILE, COMPRESSED_FILE, "result.json"):
        if (given / name).is_file():
            return given / name
    raise ReportError(f"{given} holds no {JSON_FILE}; make one with hyperlapse bench --report {given}")


def _of_result(result: dict[str, Any]) -> dict[str, Any]:
    """What a report would hold of an output of `bench --json`."""
    from hyperlapse.cli.metrics import RequestRecord, read_requests
    from hyperlapse.cli.report_data import request_columns, with_estimates

    records: Sequence[RequestRecord] = []
    try:
        records = read_requests(Path(result["requests_file"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"hyperlapse: warning: no distributions: the run's requests cannot be read ({error})", file=sys.stderr)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created": None,
        "result": result,
        "workload": None,
        "environment": None,
        "metrics": with_estimates(result, None),
        "estimate": None,
        "device_time": None,
        "host_time": None,
        "real_time": None,
        "events": [],
        "requests": request_columns(records) if records else None,
        "steps": None,
    }
