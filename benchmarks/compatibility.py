"""Boots every tested release of the engine in an environment of its own, in both details, and writes what came of it.

    make compat                                       every tested release
    make compat COMPAT="--versions 0.19.0 --keep"     some, whose environments stay (`hyperlapse engines`)
    make compat COMPAT="--gpu rtx-4090 --model llama-3.1-8b -- --max-model-len 32768"

Each boot is one `hyperlapse bench --engine NAME==VERSION --trace`: the stock server with its default flags (CUDA graphs,
torch.compile), a few requests over HTTP, and its end. A release that fails is a row with the reason, never the end of the
script. Bound: every boot answers all requests, no unsupported call is met, both details have the same number of KV-cache
blocks, at most 1 % of the device time has no known duration, and no process is left. Exit status 1 when a row misses it.

docs/compatibility.md keeps the rows of releases that were not asked for. Runs with another model, GPU or flags are printed
only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from common import ROOT, finish
from hyperlapse.cli.engine_cache import cached_environments, folder_of
from hyperlapse.cli.engine_log import engine_statistics
from hyperlapse.integrations import default_engine
from hyperlapse.integrations.environments import EngineRelease, parse_release

PAGE = ROOT / "docs" / "compatibility.md"
DETAILS = ("step", "kernel")
ON_TWO_GPUS = ("0.32.0", "0.15.1")  # releases that are tried with a layer's weights on two GPUs, too
BOOT_LIMIT_S = 2400
UNKNOWN_LIMIT = 0.01
MODEL, GPU = "qwen3-14b", "h100-sxm-80gb"
UNSUPPORTED = re.compile(r"(\w+) is not supported \(called from")
COLUMNS = (
    "version", "GPUs", "detail", "torch", "CUDA", "model runner", "KV blocks", "unknown", "unsupported calls", "TPOT, ms",
    "first tokens, s", "profile", "date", "result",
)  # fmt: skip
HEAD = f"""# Compatibility

Made by `make compat` (`benchmarks/compatibility.py`): each release in an environment of its own, its stock server with
default flags (CUDA graphs, torch.compile) on virtual {GPU}, {MODEL} (two of them share each layer: tensor parallelism);
twelve requests of 256 + 16 tokens over HTTP, one each 10 ms, so that there are prompts beside decodes and up to twelve rows.

*model runner*: vLLM's V1 or V2. *unknown*: share of the launched device time whose kernels have no known duration. *unsupported
calls*: CUDA, cuBLAS, NCCL or NVML calls met that have no virtual answer. *first tokens*: real seconds from the start of the
server to the last of the twelve answers, on whatever machine made the row; with *profile* `profiled` the model was compiled
and profiled first, which happens once a configuration. Releases that are not here were not tried; those that lack what the
integration needs are refused by name, as 0.11.0 is.

"""


@dataclass(frozen=True, slots=True)
class Row:
    """One boot. blocks: 0 when it failed; problem: why it does not count, empty when it does."""

    cells: tuple[str, ...]
    blocks: int
    problem: str

    def line(self) -> str:
        return "| " + " | ".join((*self.cells, self.problem or "works")) + " |"


def command(*words: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    """The user's own command line. What it says while it works is passed on."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "hyperlapse"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:

            def follow() -> None:
                for line in process.stderr or ():
                    print(f"    {line.rstrip()}", flush=True)
                    said.write(line)

            follower = threading.Thread(target=follow, daemon=True)
            follower.start()
            assert process.stdout is not None
            output = process.stdout.read()
            process.wait(limit_s)
            follower.join()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        said.seek(0)
        return subprocess.CompletedProcess(process.args, process.returncode, output, said.read())


def reason(text: str) -> str:
    """The last thing that a failed command said, on one line of a table."""
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("All logs")]
    return " ".join(lines[-3:]).replace("|", "/")[-400:] or "it said nothing"


def versions_in(environment: Path) -> tuple[str, str]:
    """(torch, CUDA that it was built for), from its sources: importing it takes seconds."""
    for path in environment.glob("lib/python*/site-packages/torch/version.py"):
        text = path.read_text(encoding="utf-8")
        found = [re.search(rf"^{name}\b[^=]*= *'([^']*)'", text, re.MULTILINE) for name in ("__version__", "cuda")]
        return tuple(match[1] if match else "?" for match in found)  # type: ignore[return-value]
    return "?", "?"


def running(environment: Path) -> set[str]:
    """Processes of this environment's interpreter that are alive."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words and words[0].startswith(str(environment)):
            found.add(f"{process.pid} {' '.join(words)[:60]}")
    return found


def boot(release: EngineRelease, gpus: int, detail: str, options: argparse.Namespace) -> Row:
    """Starts, asks and ends one server."""
    environment = folder_of(release)
    before = running(environment)  # others may use it, too
    torch, cuda = versions_in(environment)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    with tempfile.TemporaryDirectory(prefix="hyperlapse-compat-") as temporary:
        folder, trace = Path(temporary, "out"), Path(temporary, "requests.jsonl")
        requests = ({"arrival_s": index / 100, "prompt_tokens": 256, "output_tokens": 16} for index in range(12))
        trace.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
        flags = ["--", *options.engine_flags] if options.engine_flags else []
        ended = command(
            *("bench", "--engine", release.name, "--detail", detail, "--model", options.model, "--gpu", options.gpu),
            *("--gpus", str(gpus), "--trace", str(trace), "--json"),
            *("--output", str(folder), "--report", str(Path(temporary, "report")), *flags),
            limit_s=BOOT_LIMIT_S,
        )
        log = folder / "server.log"
        calls = sorted(set(UNSUPPORTED.findall(log.read_text("utf-8", "replace")))) if log.is_file() else []
        runner = engine_statistics(folder).model_runner or "?"
    left = sorted(running(environment) - before)
    if ended.returncode != 0:
        cells = (
            release.version,
            str(gpus),
            detail,
            torch,
            cuda,
            runner,
            "-",
            "-",
            ", ".join(calls) or "none",
            "-",
            "-",
            "-",
            today,
        )
        return Row(cells, 0, f"FAILED: {reason(ended.stderr)}")
    result = json.loads(ended.stdout)
    unknown, blocks = result["coverage"]["unknown"], int(result["kv_blocks"])
    problems = []
    if calls:
        problems.append("unsupported calls were met")
    if unknown is None or unknown > UNKNOWN_LIMIT:
        problems.append("too much device time is unknown")
    if left:
        problems.append(f"still running: {'; '.join(left)}")
    cells = (
        release.version, str(gpus), detail, torch, cuda, runner, f"{blocks:,}", "?" if unknown is None else f"{unknown:.2%}",
        ", ".join(calls) or "none", f"{result['metrics']['tpot_ms']['mean']:.2f}",
        f"{result['startup_s'] + result['real_s']:.0f}", result["provenance"]["engine_profile"] or "?", today,
    )  # fmt: skip
    return Row(cells, blocks, f"FAILED: {'; '.join(problems)}" if problems else "")


def try_release(release: EngineRelease, options: argparse.Namespace) -> list[Row]:
    """Both details of a release, and its environment made and (unless it is to be kept) deleted."""
    print(f"{release.name}: making its environment", flush=True)
    known = {found.folder for found in cached_environments() if found.complete}
    made = command("engines", "add", release.name, limit_s=BOOT_LIMIT_S)
    if made.returncode != 0:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return [Row((release.version, *("-",) * 11, today), 0, f"REFUSED: {reason(made.stderr)}")]
    rows = []
    for gpus in (1, 2) if release.version in ON_TWO_GPUS else (1,):
        both = []
        for detail in DETAILS:
            print(f"{release.name}: {detail} detail, {gpus} GPU{'s' * (gpus > 1)}", flush=True)
            row = boot(release, gpus, detail, options)
            print(row.line(), flush=True)
            both.append(row)
        if len({row.blocks for row in both}) > 1 and all(row.blocks for row in both):
            other = "FAILED: the details have other block counts"
            both = [Row(row.cells, row.blocks, row.problem or other) for row in both]
        rows += both
    if not options.keep and folder_of(release) not in known:
        command("engines", "remove", release.name, limit_s=600)
    return rows


def write_page(rows: Sequence[Row]) -> None:
    """The page with these rows, those that it has of other releases, and its section of models (models.py)."""
    kept, models = [], ""
    if PAGE.is_file():
        fresh = {row.cells[0] for row in rows}
        releases, title, section = PAGE.read_text(encoding="utf-8").partition("## Models")
        models = "\n" + title + section if title else ""
        for line in releases.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == len(COLUMNS) and re.match(r"\d", cells[0]) and cells[0] not in fresh:
                kept.append(line)
    lines = sorted([*kept, *(row.line() for row in rows)], key=_order)
    table = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *lines]
    PAGE.write_text(HEAD + "\n".join(table) + "\n" + models, encoding="utf-8")


def _order(line: str) -> tuple[list[int], str, bool]:
    version, gpus, detail = (cell.strip() for cell in line.strip("|").split("|")[:3])
    return [-int(part) for part in re.findall(r"\d+", version)], gpus, detail != DETAILS[0]


def main() -> None:
    engine = default_engine()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=list(reversed(engine.tested_versions)), metavar="VERSION")
    parser.add_argument("--keep", action="store_true", help="leave the environments that are made here")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--gpu", default=GPU)
    parser.add_argument("engine_flags", nargs="*", metavar="-- ENGINE_FLAGS")
    options = parser.parse_args()
    standard = (options.model, options.gpu, options.engine_flags) == (MODEL, GPU, [])
    rows: list[Row] = []
    for version in options.versions:
        release = parse_release(f"{engine.name}=={version}")
        assert release is not None
        rows += try_release(release, options)
        if standard:
            write_page(rows)
    print("\n".join(("", f"| {' | '.join(COLUMNS)} |", *(row.line() for row in rows))))
    if standard:
        print(f"written: {PAGE.relative_to(ROOT)}")
    finish(not any(row.problem for row in rows))


if __name__ == "__main__":
    main()
