"""Engine environments of the cache, made by the real uv from an index of tiny packages."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from hyperlapse.cli import engine_cache, own_wheel
from hyperlapse.cli.engine_environment import find_engine
from hyperlapse.cli.uv import UvError, find_uv
from hyperlapse.integrations import default_engine
from hyperlapse.integrations.environments import EngineRelease, EngineReleaseError, parse_release

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
NEWEST = default_engine().tested_versions[-1]
BROKEN = default_engine().tested_versions[0]  # fits by its number, and has no modules

# A package whose build says that it has begun and then goes on until it is ended.
SLOW_BUILD = """
import os, pathlib, time
def build_wheel(*arguments):
    pathlib.Path(os.environ["BUILD_BEGAN"]).write_text(str(os.getpid()))
    while True:
        time.sleep(60)
"""


def wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = (), modules: tuple[str, ...] = ()) -> None:
    information = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    files = {
        f"{name}/__init__.py": "",
        **{f"{module.replace('.', '/')}.py": "" for module in modules},  # their folders are packages without a file
        f"{information}/METADATA": metadata + "".join(f"Requires-Dist: {text}\n" for text in requires),
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(text)}")
            archive.writestr(path, text)
        archive.writestr(f"{information}/RECORD", "\n".join([*lines, f"{information}/RECORD,,", ""]))


def slow_package(folder: Path, name: str, version: str) -> None:
    metadata = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"
    files = {
        "pyproject.toml": f'[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
        "slow.py": SLOW_BUILD,
        "PKG-INFO": metadata,
    }
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


@dataclass
class Cache:
    """A user with an empty cache and a package index of files."""

    home: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.home / "cache" / "hyperlapse" / "engines"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hyperlapse.cli.main", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=LIMIT_S)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def environments(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(self.run("engines", "list", "--json").stdout)
        return found


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    try:
        uv = find_uv()
    except UvError as error:
        pytest.fail(str(error))
    index = tmp_path / "index"
    index.mkdir()
    for version in ("0.5.0", "0.6.0", NEWEST):
        wheel(index, "vllm", version, ("numpy", "cffi"), default_engine().imports)
    wheel(index, "vllm", BROKEN, ("numpy", "cffi"))
    wheel(index, "vllm", "0.4.0", ("numpy", "cffi", "nvidia-cuda-runtime-cu11"))
    slow_package(index, "vllm", "0.7.0")
    newest = parse_release("vllm")
    assert newest is not None
    pins = [tuple(text.split("==")) for text in newest.requirements if "==" in text and not text.startswith("vllm==")]
    for name, version in (("numpy", "2.3.0"), ("cffi", "1.17"), *pins):
        wheel(index, name.replace("-", "_"), version)
    (tmp_path / "uv.toml").write_text(f'no-index = true\nfind-links = ["{index}"]\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").symlink_to(uv)
    # Only what is asked for here may decide: no index, cache or engine of this machine.
    names = ("UV_", "PIP_", "HYPERLAPSE_", "XDG_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment |= {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_CONFIG_FILE": str(tmp_path / "uv.toml"),
        "UV_LINK_MODE": "copy",
        "BUILD_BEGAN": str(tmp_path / "began"),
    }
    return Cache(tmp_path, environment)


def test_an_engine_that_cannot_be_imported_leaves_no_environment(cache: Cache) -> None:
    found = cache.run("engines", "add", f"vllm=={BROKEN}")
    assert found.returncode == 2
    assert f"vllm=={BROKEN} was installed and cannot be imported" in found.stderr
    assert "No module named" in found.stderr
    assert not list((cache.home / "cache").glob("hyperlapse/engines/vllm-*"))


def test_an_environment_is_made_once_with_this_hyperlapse_in_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.run("engines", "add", f"vllm=={NEWEST}")
    assert first.returncode == 0, first.stderr
    python = Path(first.stdout.strip().rpartition(" ")[2])
    assert "resolving" in first.stderr
    second = cache.run("engines", "add", "vllm")
    assert (second.stdout, second.stderr) == (first.stdout, ""), "vllm alone is the newest tested release, and is there"
    found = cache.environments()
    assert [(row["version"], row["complete"], row["hyperlapse_matches"]) for row in found] == [(NEWEST, True, True)]
    files = list((python.parent.parent / "lib").glob("python*/site-packages/hyperlapse-*.dist-info/entry_points.txt"))
    assert len(files) == 1
    assert "vllm.general_plugins" in files[0].read_text()
    for name, value in cache.environment.items():
        monkeypatch.setenv(name, value)
    inspected = find_engine(f"vllm=={NEWEST}", {})
    assert (inspected.python, inspected.version) == (python, NEWEST)
    monkeypatch.chdir(cache.home)
    assert find_engine(None, {}).python == python, "where there is no other engine, the cache's is taken"


def test_another_hyperlapse_in_the_environment_is_replaced_by_this_one(cache: Cache) -> None:
    made = cache.run("engines", "add", "vllm")
    folder = Path(made.stdout.strip().rpartition(" ")[2]).parent.parent
    record = folder / engine_cache.RECORD
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "hyperlapse_sha256": "another"}))
    (main,) = folder.glob("lib/python*/site-packages/hyperlapse/cli/main.py")
    main.write_text("raise SystemExit('old')")
    assert [row["hyperlapse_matches"] for row in cache.environments()] == [False]
    again = cache.run("engines", "add", "vllm")
    assert again.returncode == 0, again.stderr
    assert "bringing hyperlapse" in again.stderr
    assert main.read_bytes() == (ROOT / "cli" / "main.py").read_bytes()
    assert [row["hyperlapse_matches"] for row in cache.environments()] == [True]


def test_a_release_that_was_never_tested_is_told(cache: Cache) -> None:
    refused = cache.run("engines", "add", "vllm==0.6.0")
    assert "was never tested with this version" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_creation_leaves_nothing(cache: Cache, number: signal.Signals) -> None:
    process = cache.start("engines", "add", "vllm==0.7.0")
    builder = wait_for_builder(cache, process)
    assert [row["complete"] for row in cache.environments()] == [False]
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "interrupted; the unfinished environment has been removed" in errors
    assert cache.environments() == []
    wait_for_end(builder)


def test_what_a_killed_creation_leaves_is_never_used_and_can_be_removed(cache: Cache) -> None:
    process = cache.start("engines", "add", "vllm==0.7.0")
    builder = wait_for_builder(cache, process)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    (left,) = cache.environments()
    assert left["complete"] is False
    refused = cache.run("engines", "remove", Path(str(left["folder"])).name)
    assert refused.returncode == 1, "uv is still at work, and has the lock"
    assert "is being made or used" in refused.stderr
    os.killpg(os.getpgid(builder), signal.SIGKILL)
    limit = time.monotonic() + LIMIT_S
    while (removed := cache.run("engines", "remove", Path(str(left["folder"])).name)).returncode:
        assert time.monotonic() < limit, removed.stderr
    assert cache.environments() == []


def wait_for_builder(cache: Cache, process: subprocess.Popen[str]) -> int:
    began, limit = Path(cache.environment["BUILD_BEGAN"]), time.monotonic() + LIMIT_S
    while not began.exists() or not began.read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)
    return int(began.read_text())


def wait_for_end(pid: int) -> None:
    limit = time.monotonic() + LIMIT_S
    while psutil.pid_exists(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        assert time.monotonic() < limit, f"process {pid} goes on"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("release", "message"),
    [
        ("vllm==0.5.9", "there is no vllm==0.5.9 for Python 3.{minor}: the nearest are 0.5.0, 0.6.0"),
        ("vllm==99", "the nearest are " + NEWEST),
        ("vllm==0.4.0", "vllm==0.4.0 cannot be installed here."),
        ("vllm==0.6.0", "vLLM 0.6.0 does not fit this version of Hyperlapse, which needs"),
        ("vllm==zero", "name one release, for example vllm==" + NEWEST),
        ("vllm>=0.5", "name one release, for example vllm==" + NEWEST),
        ("sglang==0.5.9", "sglang is not supported yet"),
        ("vlm==1", "vlm is no engine that hyperlapse knows: it knows vllm"),
    ],
)
def test_what_cannot_be_made_says_why(cache: Cache, release: str, message: str) -> None:
    result = cache.run("engines", "add", release)
    assert result.returncode == 2
    assert message.format(minor=sys.version_info.minor) in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert cache.environments() == []
    assert cache.run("bench", "--engine", release).returncode == 2


def test_a_cache_that_cannot_be_written_is_named(cache: Cache) -> None:
    (cache.home / "cache").write_text("a file")
    result = cache.run("engines", "add", "vllm==0.6.0")
    assert result.returncode == 2
    assert "Not a directory; the folder of engine environments is" in result.stderr


@pytest.fixture
def here(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> EngineRelease:
    """The newest release, to be made by this process with the user's cache and index."""
    for name, value in cache.environment.items():
        monkeypatch.setenv(name, value)
    release = parse_release("vllm")
    assert release is not None
    return release


def test_little_disk_is_a_warning(
    here: EngineRelease, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uv's cache may hold everything: then an environment takes next to nothing."""
    free = shutil.disk_usage("/")._replace(free=3_200_000_000)
    monkeypatch.setattr(engine_cache.shutil, "disk_usage", lambda path: free)
    assert engine_cache.ensure(here).exists()
    said = capsys.readouterr().err
    assert re.search(
        r"warning: vllm==\S+ needs about 10 GB, less what uv's cache has .* has 3\.2 GB left\. Free some", said
    )


def test_a_full_disk_is_named_and_nothing_is_left(cache: Cache) -> None:
    """The cache's folder is a file system of 512 KiB: hyperlapse itself is larger."""
    walls = ("unshare", "--user", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*walls, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces (unshare --user)")
    small = cache.home / "cache"
    small.mkdir()
    script = f'mount -t tmpfs -o size=512k tmpfs {small} && "$@"; status=$?; ls {cache.folder}; exit $status'
    add = [sys.executable, "-m", "hyperlapse.cli.main", "engines", "add", "vllm"]
    result = subprocess.run(
        [*walls, "sh", "-c", script, "sh", *add],
        env=cache.environment,
        cwd=cache.home,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert result.returncode == 2, result.stderr
    assert "is full. Free some, remove other engines (hyperlapse engines), or choose another disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == "", "nothing but the lock, whose name begins with a dot"


def test_a_hyperlapse_that_changes_while_it_is_installed_is_installed_again(
    here: EngineRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, answers = own_wheel.contents_sha256(), iter(["as it was before an edit"])
    monkeypatch.setattr(engine_cache, "contents_sha256", lambda: next(answers, true))
    assert engine_cache.ensure(here).exists()
    (found,) = engine_cache.cached_environments()
    assert found.hyperlapse_sha256 == true, "the record tells what was packed, not what was wanted"


def test_a_hyperlapse_that_never_rests_ends_with_a_message(
    here: EngineRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = itertools.count()
    monkeypatch.setattr(engine_cache, "contents_sha256", lambda: f"edit {next(versions)}")
    with pytest.raises(engine_cache.EngineCacheError, match="3 times and each time it was another one afterwards"):
        engine_cache.ensure(here)


def test_names_that_are_paths_are_no_releases() -> None:
    for text in ("/opt/engine", "./vllm/env", "env", "vllm-env/bin/python", "..", "~/vllm"):
        assert parse_release(text) is None
    for text in ("vllm==", "vllm[audio]==1", "vllm==1==2", "vllm @ file:///x"):
        with pytest.raises(EngineReleaseError):
            parse_release(text)


def test_the_packed_wheel_holds_what_the_built_one_holds(tmp_path: Path) -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = configuration["tool"]["scikit-build"]["wheel"]["packages"]
    assert packages == {f"hyperlapse/{name}": name for name in own_wheel.PACKAGES}
    packed = own_wheel.pack(tmp_path)
    assert packed.contents_sha256 == own_wheel.contents_sha256()
    with zipfile.ZipFile(packed.path) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    assert "hyperlapse/shim/lib/hyperlapse-keeper" in names
    assert "hyperlapse/integrations/vllm/environments.yaml" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    first = packed.path.read_bytes()
    assert own_wheel.pack(tmp_path).path.read_bytes() == first
