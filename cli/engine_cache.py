"""Makes, keeps, shows and removes the engine environments of `--engine NAME==VERSION`, in the user's cache folder.

Why: comparing releases of an engine means having several environments, each with the shim of the very hyperlapse that
runs. An environment is made in its final place, because its scripts hold that path, and counts only once its record is
written, which is the last thing done: what a killed creation leaves is never used and the next one starts over. One lock
per environment is held by who makes or refreshes it (alone) and by every run that uses it (together). uv inherits the
lock, so that an installer which outlives a killed launcher still keeps others out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hyperlapse.cli.own_wheel import contents_sha256, pack
from hyperlapse.cli.progress import Progress, Silent
from hyperlapse.cli.uv import UvError, find_uv, run_uv
from hyperlapse.integrations import engines
from hyperlapse.integrations.environments import EngineReleaseError

if TYPE_CHECKING:
    from hyperlapse.integrations.environments import EngineRelease

RECORD = "hyperlapse-engine.json"
LOCKED_REQUIREMENTS = "hyperlapse-requirements.txt"
_ROUNDS = 3
_NO_SPACE = os.strerror(errno.ENOSPC)
_MAKE_ROOM = "Free some, remove other engines (hyperlapse engines), or choose another disk with XDG_CACHE_HOME (and UV_CACHE_DIR)"
_held: list[IO[str]] = []  # locks of the environments that this process uses, until it ends


class EngineCacheError(Exception):
    """An environment that cannot be made or removed; the text is for the user."""


@dataclass(frozen=True, slots=True)
class CachedEnvironment:
    """An environment in the cache. `hyperlapse_sha256`: of the hyperlapse in it; empty texts: it was never finished."""

    folder: Path
    engine: str = ""
    version: str = ""
    python_version: str = ""
    hyperlapse_sha256: str = ""
    created: str = ""

    @property
    def complete(self) -> bool:
        return bool(self.version)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def size_bytes(self) -> int:
        """Bytes on disk, each file once. uv shares files with its own cache where both are on one file system."""
        seen: set[tuple[int, int]] = set()
        total = 0
        for root, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = (Path(root) / name).lstat()
                    if (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        total += status.st_blocks * 512
        return total


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/hyperlapse/engines."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "hyperlapse" / "engines"


def folder_of(release: EngineRelease) -> Path:
    version = re.sub(r"[^0-9A-Za-z.]", "_", release.version)
    return cache_folder() / f"{release.engine}-{version}-py{sys.version_info.major}.{sys.version_info.minor}"


def cached_environments() -> list[CachedEnvironment]:
    """Everything in the cache, unfinished environments too, by name."""
    folder = cache_folder()
    if not folder.is_dir():
        return []
    return [_read(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def newest_complete() -> CachedEnvironment | None:
    """The environment with the highest release, of this Python's version."""
    own = f"-py{sys.version_info.major}.{sys.version_info.minor}"
    usable = [found for found in cached_environments() if found.complete and found.folder.name.endswith(own)]
    return max(usable, key=lambda found: [int(part) for part in re.findall(r"\d+", found.version)], default=None)


def _read(folder: Path) -> CachedEnvironment:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return CachedEnvironment(folder, **record)
    except (OSError, ValueError, TypeError):
        return CachedEnvironment(folder)


def ensure(release: EngineRelease, progress: Progress | None = None) -> Path:
    """The Python of the release's environment, made or brought up to date where needed. No other process changes it
    before this one has ended. Raises EngineCacheError.
    """
    progress = progress or Silent()
    folder = folder_of(release)
    with _as_cache_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(folder)
    for made in range(_ROUNDS + 1):
        _lock(lock, fcntl.LOCK_SH, folder, progress)
        wanted = contents_sha256()  # each time: the sources of an editable install may change while this one works
        found = _read(folder)
        if found.complete and found.hyperlapse_sha256 == wanted and found.python.exists():
            _held.append(lock)
            return found.python
        fcntl.flock(lock, fcntl.LOCK_UN)
        if made == _ROUNDS:
            break
        _lock(lock, fcntl.LOCK_EX, folder, progress)
        try:
            with _as_cache_error(folder):
                found = _read(folder)  # another process may have done it meanwhile
                if not found.complete or not found.python.exists():
                    _make(release, folder, lock, progress)
                elif found.hyperlapse_sha256 != wanted:
                    _refresh(found, lock, progress)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
    lock.close()
    raise EngineCacheError(
        f"{folder.name}: hyperlapse was put into it {_ROUNDS} times and each time it was another one afterwards: are its "
        "sources being edited, or does another version of hyperlapse use the same environment? Try again when they rest, "
        "or choose another folder with XDG_CACHE_HOME"
    )


def remove(folder: Path) -> None:
    """Deletes an environment. Raises EngineCacheError while a run uses it."""
    with _as_cache_error(folder), _lock_file(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineCacheError(
                f"{folder.name} is being made or used by another hyperlapse; end that first"
            ) from None
        _delete(folder)


def _delete(folder: Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)  # first, so that half a folder never counts
    if folder.exists():
        shutil.rmtree(folder)


def _lock_file(folder: Path) -> IO[str]:
    # never deleted: a lock on a deleted file keeps nobody out
    return folder.with_name(f".{folder.name}.lock").open("a")


def _lock(lock: IO[str], kind: int, folder: Path, progress: Progress) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.phase(f"waiting for another hyperlapse that makes or uses {folder.name}")
        fcntl.flock(lock, kind)


@contextlib.contextmanager
def _as_cache_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except (UvError, EngineReleaseError) as error:
        full = (
            f"\nThe disk of {folder.parent} or of uv's cache is full. {_MAKE_ROOM}" if _NO_SPACE in str(error) else ""
        )
        raise EngineCacheError(f"{error}{full}") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise EngineCacheError(f"The disk of {error.filename or folder.parent} is full. {_MAKE_ROOM}") from None
        raise EngineCacheError(
            f"{error.filename or folder}: {error.strerror}; the folder of engine environments is {folder.parent}, and "
            "XDG_CACHE_HOME chooses another one"
        ) from None


def _make(release: EngineRelease, folder: Path, lock: IO[str], progress: Progress) -> None:
    uv = find_uv()
    progress.phase(f"resolving {release.name}")
    _delete(folder)  # what a killed creation left
    _warn_of_space(release, folder.parent)
    try:
        requirements = _resolve(uv, release, lock)
        if not release.tested:
            print(
                f"hyperlapse: warning: {release.name} was never tested with this version of hyperlapse (tested: "
                f"{', '.join(release.tested_versions)})",
                file=sys.stderr,
            )
        progress.phase(f"making the environment of {release.name} (once)")
        run_uv([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], lock)
        (folder / LOCKED_REQUIREMENTS).write_text(requirements, encoding="utf-8")
        install = [uv, "pip", "install", "--python", str(folder / "bin" / "python")]

        def tell(line: str) -> None:
            _tell(progress, release, line)

        # the engine alone first: whether it fits is known before gigabytes of torch and CUDA come
        run_uv([*install, "--no-deps", release.name], lock, tell)
        for package in folder.glob(f"lib/python*/site-packages/{release.engine}"):
            engines()[release.engine].check_sources(release.version, package)
        run_uv([*install, "--no-deps", "--requirements", str(folder / LOCKED_REQUIREMENTS)], lock, tell)
        own_sha256 = _install_own(uv, folder, lock)
        _compile(release, folder, lock, progress)
        _write_record(
            CachedEnvironment(
                folder,
                release.engine,
                release.version,
                f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
                own_sha256,
                datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )
    except BaseException:
        # a second Ctrl-C must not leave gigabytes behind
        with _uninterrupted(), contextlib.suppress(OSError):
            _delete(folder)
        raise


def _tell(progress: Progress, release: EngineRelease, line: str) -> None:
    if line.startswith(("Downloading", "Downloaded", "Building", "Built", "Prepared", "Installed")):
        progress.phase(f"making the environment of {release.name}: {line[0].lower()}{line[1:]}")


def _refresh(found: CachedEnvironment, lock: IO[str], progress: Progress) -> None:
    progress.phase(f"bringing hyperlapse in {found.folder.name} up to date")
    (found.folder / RECORD).unlink()
    own_sha256 = _install_own(find_uv(), found.folder, lock)
    _write_record(dataclasses.replace(found, hyperlapse_sha256=own_sha256))


def _install_own(uv: str, folder: Path, lock: IO[str]) -> str:
    """The SHA-256 of the hyperlapse that was installed."""
    with tempfile.TemporaryDirectory(prefix="hyperlapse-wheel-") as temporary:
        wheel = pack(Path(temporary))
        target = ["--python", str(folder / "bin" / "python"), "--reinstall-package", "hyperlapse", str(wheel.path)]
        run_uv([uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--no-cache", *target], lock)
        return wheel.contents_sha256


def _compile(release: EngineRelease, folder: Path, lock: IO[str], progress: Progress) -> None:
    """Imports once what every start of the engine imports, so that its bytecode is kept, also where PYTHONDONTWRITEBYTECODE
    is set, as it is in many containers: there each process of each start would compile it again (0.32.0 of vLLM: 20 s of CPU
    time instead of 8). Raises EngineCacheError when it cannot be imported at all.
    """
    progress.phase(f"compiling the Python modules of {release.name} (once)")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    modules = ", ".join(engines()[release.engine].imports)
    result = subprocess.run(
        [str(folder / "bin" / "python"), "-c", f"import {modules}"],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=[lock.fileno()],  # who else wants the environment waits for this process too
        check=False,
    )
    if result.returncode != 0:
        said = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise EngineCacheError(f"{release.name} was installed and cannot be imported:\n{said}")


def _write_record(environment: CachedEnvironment) -> None:
    record = dataclasses.asdict(environment)
    del record["folder"]
    temporary = environment.folder / f".{RECORD}"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(environment.folder / RECORD)


def _warn_of_space(release: EngineRelease, folder: Path) -> None:
    """A warning only: what uv's cache holds already takes nothing more on the same file system."""
    free = shutil.disk_usage(folder).free
    if free < release.disk_bytes:
        print(
            f"hyperlapse: warning: {release.name} needs about {release.disk_bytes / 1e9:.0f} GB, less what uv's cache has on "
            f"the same disk, and {folder} has {free / 1e9:.1f} GB left. {_MAKE_ROOM}",
            file=sys.stderr,
        )


def _resolve(uv: str, release: EngineRelease, lock: IO[str]) -> str:
    """The exact packages, before anything large is downloaded."""
    compile_ = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", sys.executable, "-"]
    try:
        return run_uv(compile_, lock, text="\n".join(release.requirements))
    except UvError as error:
        near = _nearest(uv, release, lock)
        if near is not None and release.version not in near:
            raise EngineCacheError(
                f"there is no {release.name} for Python {sys.version_info.major}.{sys.version_info.minor}: "
                + (f"the nearest are {', '.join(near)}" if near else f"the index has no {release.engine} at all")
                + f" (tested: {', '.join(release.tested_versions)})"
            ) from None
        raise EngineCacheError(f"{release.name} cannot be installed here.\n{error}") from None


def _nearest(uv: str, release: EngineRelease, lock: IO[str]) -> list[str] | None:
    """The next lower and the next higher release; None when the index cannot be asked."""
    found = []
    compile_ = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--no-deps",
        "--python",
        sys.executable,
    ]
    for bound, order in (("<=", "highest"), (">=", "lowest")):
        try:
            answer = run_uv(
                [*compile_, "--resolution", order, "-"], lock, text=f"{release.engine}{bound}{release.version}"
            )
        except UvError as error:
            if "unsatisfiable" in str(error):
                continue
            return None
        found += re.findall(rf"^{release.engine}==(\S+)", answer, re.MULTILINE)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
