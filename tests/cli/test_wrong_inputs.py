"""Wrong inputs, full disks and interrupts: each gives a message that says what to do, a status that is not 0, and leaves
nothing running and nothing half-written.

The table runs in this process and starts no engine. The stages run the whole command, its real clock and time-keeper and
a small server in the engine's place, as processes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from hyperlapse.cli.main import cli
from hyperlapse.shim.models import resolve_model

SERVER = Path(__file__).with_name("completions_server.py")
CONTAINER = Path(__file__).with_name("container.py")
LIMIT_S = 240
FAILURE, USAGE, INTERRUPTED = 1, 2, 130

TABLE = [
    # names
    ("benhc --rate 4", USAGE, "Did you mean bench?"),
    ("nonsense", USAGE, "No such command 'nonsense'"),
    ("bench --modle qwen3-14b", USAGE, "No such option '--modle'"),
    ("bench --model qwen3-15b", USAGE, "qwen3-15b"),
    ("bench --model ünïcödé/模型", USAGE, "模型"),
    ("bench --gpu h100", USAGE, "h100-sxm-80gb"),
    ("bench --gpu ''", USAGE, "unknown GPU ''"),
    ("run --gpu h101 -- true", USAGE, "h100-sxm-80gb"),
    ("predict --model qwen3-14b --batch 1:1 --gpu nosuch", USAGE, "unknown GPU 'nosuch'"),
    ("bench --engine vlm==1", USAGE, "vlm is no engine that hyperlapse knows"),
    ("bench --engine sglang==0.5", USAGE, "sglang is not supported yet"),
    ("bench --engine vllm==new", USAGE, "name one release, for example vllm=="),
    ("engines add ./vllm", USAGE, "name a release, for example vllm=="),
    ("engines remove vllm==0.0.1", USAGE, "no environment vllm==0.0.1; there are: none"),
    # files
    ("bench --model empty", USAGE, "no config.json"),
    ("bench --model broken", USAGE, "broken/config.json:1: not valid JSON"),
    ("bench --model list", USAGE, "a model's description is a JSON object, this is a list"),
    ("bench --model file", USAGE, "file"),
    ("bench --gpu broken.yaml", USAGE, "broken.yaml"),
    ("bench --gpu part.yaml", USAGE, "part.yaml: a device profile is a mapping with `name` and `facts`"),
    ("bench --engine nowhere", USAGE, "there is no Python at nowhere"),
    ("bench --engine empty", USAGE, "there is no Python at empty/bin/python"),
    ("bench --engine file", USAGE, "there is no Python at file"),
    ("bench --engine fails", USAGE, "does not run: exit status 3"),
    ("bench --engine junk", USAGE, "Exec format error"),
    ("run --engine nowhere -- true", USAGE, "there is no Python at nowhere"),
    ("bench --trace nowhere.jsonl", USAGE, "nowhere.jsonl: No such file"),
    ("bench --trace empty", USAGE, "empty: Is a directory"),
    ("bench --trace nothing.jsonl", USAGE, "nothing.jsonl:1: no request in the file"),
    ("bench --trace bytes.jsonl", USAGE, "bytes.jsonl:1: not UTF-8 text"),
    ("bench --trace huge.jsonl", USAGE, "huge.jsonl:2: 'prompt_tokens' must be a whole number"),
    ("bench --trace long.jsonl", USAGE, "the longest sequence that is served is 40960"),
    ("bench --output file", USAGE, "--output file: Not a directory"),
    ("bench --output full", USAGE, "the folder is not empty; results are never overwritten"),
    ("bench --output /proc/results", USAGE, "--output /proc/results: No such file"),
    ("bench --output file/results", USAGE, "--output file/results: Not a directory"),
    ("clock empty frozen", USAGE, "empty is no run directory"),
    ("clock nowhere frozen", USAGE, "Directory 'nowhere' does not exist"),
    ("run -- ./file", 126, "./file: Permission denied"),
    ("run -- ./junk", 126, "./junk: Exec format error"),
    ("run -- nosuchprogram", 127, "nosuchprogram: command not found"),
    # flags
    ("bench --detail instruction", USAGE, "is not one of 'kernel', 'step'"),
    ("bench --clock fast", USAGE, "is not one of 'frozen', 'flow'"),
    ("bench --trace x.jsonl --rate 4", USAGE, "--rate has no meaning with --trace"),
    ("bench --max-in-flight 4", USAGE, "--max-in-flight belongs to --trace"),
    ("bench typo", USAGE, "unexpected argument 'typo'; the engine's own flags stand after --"),
    ("bench -- --port 80", USAGE, "--port is set by hyperlapse bench"),
    ("bench -- --api_key=x", USAGE, "--api-key: the load generator of a benchmark speaks plain HTTP"),
    ("run", USAGE, "Start COMMAND on virtual GPUs"),
    ("run --unsupported ignore -- true", USAGE, "is not one of 'abort', 'warn', 'error'"),
    ("bench --unsupported ignore", USAGE, "is not one of 'abort', 'warn', 'error'"),
    ("run --compile-cache tepid -- true", USAGE, "is not one of 'warm', 'cold'"),
    ("bench --compile-cache tepid", USAGE, "is not one of 'warm', 'cold'"),
    ("run -- vllm serve m --enable-lora", USAGE, "--enable-lora: LoRA adapters are not priced"),
    ("run -- ''", USAGE, "no command given; write it after --"),
    ("run --freeze soon -- true", USAGE, "expected start, ready=URL or manual"),
    ("run --freeze ready=8000 -- true", USAGE, "'8000' is no URL"),
    ("predict --model qwen3-14b", USAGE, "Missing option '--batch'"),
    ("predict --model qwen3-14b --batch four", USAGE, "'four' is not <new tokens>:<context tokens>"),
    ("predict --model qwen3-14b --batch 1:1 --dtype int3", USAGE, "weights of type int3 cannot be priced yet"),
    # numbers
    ("bench --gpus 0", USAGE, "0 is not in the range"),
    ("bench --gpus two", USAGE, "'two' is not a valid integer"),
    ("bench --rate 0", USAGE, "0 is not above 0"),
    ("bench --rate nan", USAGE, "nan is not above 0"),
    ("bench --rate 1e400", USAGE, "1e400 is not above 0"),
    ("bench --rate 1e-300", USAGE, "would take more than a year to arrive"),
    ("bench --requests 0", USAGE, "0 is not in the range"),
    ("bench --requests 99999999999999999999", USAGE, "is not in the range"),
    ("bench --requests 1.5", USAGE, "'1.5' is not a valid integer"),
    ("bench --input-len 99999999999", USAGE, "the longest sequence that is served is 40960 tokens"),
    ("bench -- --max-model-len 100", USAGE, "the longest sequence that is served is 100 tokens"),
    ("bench --output-len 0", USAGE, "0 is not in the range"),
    ("bench --seed -1", USAGE, "-1 is not in the range"),
    ("bench --seed 99999999999", USAGE, "is not in the range"),
    ("bench --concurrency 0", USAGE, "0 is not in the range"),
    ("run --gpus 17 -- true", USAGE, "17 is not in the range 1<=x<=16"),
    ("run --no-progress -1 -- true", USAGE, "-1 is not in the range"),
    ("predict --model qwen3-14b --batch 1:99999999999999999999", USAGE, "is not <new tokens>"),
]


def stand_in_engine(folder: Path) -> None:
    """An environment whose `vllm` is a small server and whose packages are said to be an engine's."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    versions = json.dumps({"versions": {"python": "3", "vllm": "0.23.0", "hyperlapse": "0"}, "folders": {}})
    answer = f"""case "$*" in *importlib.metadata*) echo '{versions}'; exit;; esac"""
    serve = f"""export TEST_RUN_DIR="$HYPERLAPSE_RUN_DIR"
exec {sys.executable} {SERVER} "$@" $STAND_IN_OPTIONS"""
    for name, text in (("python", f'{answer}\nexec {sys.executable} "$@"'), ("vllm", serve)):
        (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
        (binaries / name).chmod(0o755)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    stand_in_engine(folder / "engine")
    for name in ("empty", "broken", "list", "full"):
        (folder / name).mkdir()
    (folder / "full" / "result.json").write_text("{}")
    (folder / "broken" / "config.json").write_text("{,")
    (folder / "list" / "config.json").write_text("[]")
    (folder / "file").write_text("text")
    for name, content in (("fails", b"#!/bin/sh\nexit 3\n"), ("junk", b"\x7fELF and nothing more")):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    (folder / "broken.yaml").write_text("facts: [")
    (folder / "part.yaml").write_text("name: part\n")
    good = '{"arrival_s": 0, "prompt_tokens": 8, "output_tokens": 4}\n'
    (folder / "nothing.jsonl").write_text("\n\n")
    (folder / "bytes.jsonl").write_bytes(b"\xff\xfe")
    (folder / "huge.jsonl").write_text(good + good.replace("8", "1e99"))
    (folder / "long.jsonl").write_text(good + good.replace("8", "99999"))
    return folder


@pytest.fixture
def quiet(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process as it was: commands install signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.chdir(inputs)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HYPERLAPSE_ENGINE_PYTHON", str(inputs / "engine"))
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert not (tmp_path / "XDG_STATE_HOME").exists(), "no run was begun"


@pytest.mark.parametrize(("line", "status", "message"), TABLE, ids=[line for line, _, _ in TABLE])
def test_a_wrong_input_is_named_and_nothing_is_begun(quiet: None, line: str, status: int, message: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    result = CliRunner().invoke(cli, shlex.split(line))
    assert result.exit_code == status, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert set(psutil.Process().children(recursive=True)) <= before


# --- the whole command, with a small server in the engine's place ---


@dataclass
class Command:
    """A started command, and the folder of its run in shared memory once it has one."""

    process: subprocess.Popen[str]
    folder: Path
    marker: str
    errors: list[str]
    reader: threading.Thread

    def wait_for(self, text: str) -> None:
        limit = time.monotonic() + LIMIT_S
        while not any(text in line for line in list(self.errors)):
            assert self.process.poll() is None, "".join(self.errors)
            assert time.monotonic() < limit, "".join(self.errors)
            time.sleep(0.01)

    def run_directory(self) -> Path:
        """The folder that the time-keeper was given."""
        limit = time.monotonic() + LIMIT_S
        while time.monotonic() < limit:
            for child in psutil.Process(self.process.pid).children():
                if len(words := child.cmdline()) > 1 and Path(words[0]).name == "hyperlapse-keeper":
                    return Path(words[1])
            time.sleep(0.01)
        raise AssertionError("no time-keeper")

    def end(self) -> tuple[int, str]:
        status = self.process.wait(LIMIT_S)
        self.reader.join(LIMIT_S)
        return status, "".join(self.errors)

    def left(self) -> list[str]:
        """Processes that the command started, or their children, and that live on."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            try:
                if (
                    process.info["status"] != psutil.STATUS_ZOMBIE
                    and process.environ().get("TEST_MARKER") == self.marker
                ):
                    found.append(f"{process.info['pid']}: {process.info['cmdline']}")
            except psutil.Error:
                continue
        return found

    def expect_nothing_left(self, run_directory: Path) -> None:
        limit = time.monotonic() + LIMIT_S
        while (left := self.left()) or run_directory.exists():
            assert time.monotonic() < limit, (left, run_directory)
            time.sleep(0.05)


class Stage:
    """Starts `hyperlapse bench` with a stand-in engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Command] = []
        stand_in_engine(folder / "engine")

    def trace(self, requests: int) -> Path:
        path = self.folder / "trace.jsonl"
        line = {"prompt_tokens": 20, "output_tokens": 16}
        path.write_text("".join(json.dumps({"arrival_s": 0.01 * n, **line}) + "\n" for n in range(requests)))
        return path

    def start(self, *arguments: str, requests: int = 4, server: str = "", prefix: tuple[str, ...] = ()) -> Command:
        marker = f"{self.folder}-{len(self.started)}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HYPERLAPSE_")}
        environment |= {
            "TEST_MARKER": marker,
            "STAND_IN_OPTIONS": server,
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        bench = ["bench", "--engine", str(self.folder / "engine"), "--trace", str(self.trace(requests)), "--json"]
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "hyperlapse.cli.main", *bench, "--step-fixed", "10ms,40us", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        errors: list[str] = []
        assert process.stderr is not None
        reader = threading.Thread(target=errors.extend, args=(process.stderr,))
        reader.start()
        command = Command(process, self.folder, marker, errors, reader)
        self.started.append(command)
        return command

    def results(self) -> list[Path]:
        return sorted((self.folder / "state").rglob("result.json"))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    pytest.importorskip("aiohttp", reason="the client needs aiohttp, which the engine's environment has")
    found = Stage(tmp_path)
    yield found
    for command in found.started:
        if command.process.poll() is None:
            command.process.kill()
        command.end()
        assert command.process.stdout is not None
        command.process.stdout.close()
        assert command.process.stderr is not None
        command.process.stderr.close()


def test_the_stand_in_gives_a_result(stage: Stage) -> None:
    """Else the tests below would prove nothing."""
    command = stage.start()
    assert command.process.stdout is not None
    output = command.process.stdout.read()
    status, errors = command.end()
    assert status == 0, errors
    assert json.loads(output)["requests"] == 4
    assert len(stage.results()) == 1
    assert command.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("phase", "server", "requests"),
    [
        ("starting the pricing service", "", 4),
        ("starting vllm serve", "--never-ready", 4),
        ("measuring", "", 3000),
    ],
)
def test_an_interrupt_ends_everything(
    stage: Stage, number: signal.Signals, phase: str, server: str, requests: int
) -> None:
    command = stage.start(server=server, requests=requests)
    command.wait_for(phase)
    run_directory = command.run_directory()
    command.process.send_signal(number)
    command.process.send_signal(number)  # impatient
    status, errors = command.end()
    assert status == INTERRUPTED, errors
    assert "interrupted; everything that was started has been ended" in errors
    assert "Traceback" not in errors
    command.expect_nothing_left(run_directory)
    assert stage.results() == []


def test_a_killed_command_leaves_nothing(stage: Stage) -> None:
    command = stage.start(requests=3000)
    command.wait_for("measuring")
    run_directory = command.run_directory()
    command.process.kill()
    command.end()
    command.expect_nothing_left(run_directory)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("--fail-at-start", "the server ended before it was ready (exit status 7)"),
        ("--die-after 2", "the server died (exit status 3)"),
        ("--refuse 2", "1 of 4 requests failed; the first: HTTP 400"),
    ],
)
def test_an_engine_that_fails_is_no_result(stage: Stage, server: str, message: str) -> None:
    command = stage.start(server=server)
    status, errors = command.end()
    assert status == FAILURE, errors
    assert message in errors
    assert "Traceback" not in errors
    assert command.left() == []
    assert stage.results() == []


def test_a_model_without_prices_says_which_part_is_missing(stage: Stage) -> None:
    config = resolve_model("qwen3-14b").config()
    (stage.folder / "model").mkdir()
    del config["num_attention_heads"]
    (stage.folder / "model" / "config.json").write_text(json.dumps(config))
    environment = {**os.environ, "XDG_STATE_HOME": str(stage.folder / "state")}
    words = ["bench", "--engine", str(stage.folder / "engine"), "--model", str(stage.folder / "model")]
    result = subprocess.run(
        [sys.executable, "-m", "hyperlapse.cli.main", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode in (FAILURE, USAGE), result.stderr
    assert "num_attention_heads" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_not_taken(stage: Stage) -> None:
    """The port is the system's choice; one that is given by hand is refused before anything starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        command = stage.start("--", "--port", str(taken.getsockname()[1]))
        status, errors = command.end()
    assert status == USAGE
    assert "--port is set by hyperlapse bench" in errors


def test_a_state_folder_that_cannot_be_written_is_named(stage: Stage) -> None:
    (stage.folder / "state").write_text("a file")
    status, errors = stage.start().end()
    assert status == USAGE
    assert "no folder for the results" in errors
    assert "XDG_STATE_HOME" in errors


# --- walls of a container ---


def namespaces(*more: str) -> tuple[str, ...]:
    """`unshare` with namespaces of its own; skips where this machine allows none."""
    command = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", *more)
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces (unshare --user)")
    return command


def test_a_full_disk_is_named_and_leaves_no_result(stage: Stage) -> None:
    """The results' folder is a file system of 64 KiB."""
    output = stage.folder / "small"
    output.mkdir()
    script = f'mount -t tmpfs -o size=64k tmpfs {output} && exec "$@"'
    command = stage.start(
        "--output", str(output / "out"), requests=200, prefix=(*namespaces(), "sh", "-c", script, "sh")
    )
    status, errors = command.end()
    assert status == FAILURE, errors
    assert f"The file system of {output / 'out'} is full: free some of it" in errors
    assert not list(output.glob("**/result.json"))
    assert command.left() == []


@pytest.mark.parametrize(("size", "status"), [("64m", 0), ("300k", FAILURE)])
def test_shared_memory_of_a_container(stage: Stage, size: str, status: int) -> None:
    """Docker gives 64 MiB. Behind its walls (no capability, its seccomp list, hidepid=2, own namespaces) a run works."""
    walls = (*namespaces("--net", "--ipc", "--uts"), sys.executable, str(CONTAINER), size)
    command = stage.start(prefix=walls)
    found, errors = command.end()
    assert found == status, errors
    if status:
        assert "/dev/shm has 300 KiB left and a run needs" in errors
        assert "--shm-size" in errors
    assert "Traceback" not in errors
    assert command.left() == []
