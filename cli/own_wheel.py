"""Packs the running hyperlapse into a wheel, so that an engine's environment gets the very same one.

Why: the launcher and the engine's processes share memory whose layout they must agree on to the byte. An installed wheel
keeps no archive of itself and an editable install has no single folder, so the wheel is made again from the files that
are imported. It must never build or download anything. Rejected: a path file that points at the launcher's folder, which
would put the launcher's own dependencies, or a checkout that is being edited, in front of the engine's.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "hyperlapse"
PACKAGES = ("shim", "predictor", "coordinator", "integrations", "validation", "cli")
_LIBRARIES = "hyperlapse/shim/lib"
_METADATA = ("METADATA", "WHEEL", "entry_points.txt")


def contents_sha256() -> str:
    """The SHA-256 of all that a wheel of the running hyperlapse would hold; equal for equal code, however installed."""
    return _digest((name, path.read_bytes()) for name, path in sorted(_files().items()))


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    return digest.hexdigest()


def packed_names() -> list[str]:
    """Names of the files in the wheel, without its metadata."""
    return sorted(_files())


@dataclass(frozen=True, slots=True)
class Packed:
    """A wheel. contents_sha256: of what is in it, whatever happened to the sources since."""

    path: Path
    contents_sha256: str


def pack(folder: Path) -> Packed:
    """Writes the wheel into `folder`."""
    distribution = importlib.metadata.distribution(DISTRIBUTION)
    information = f"{DISTRIBUTION}-{distribution.version}.dist-info"
    path = folder / f"{DISTRIBUTION}-{distribution.version}-{_tag(distribution)}.whl"
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:

        def add(name: str, data: bytes, mode: int) -> None:
            entry = zipfile.ZipInfo(name)  # its date is always 1980-01-01: equal code gives an equal wheel
            entry.external_attr = (0o100000 | mode) << 16
            wheel.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")

        packed = []
        for name, file in sorted(_files().items()):
            data = file.read_bytes()
            packed.append((name, data))
            add(name, data, 0o755 if file.stat().st_mode & 0o100 else 0o644)
        for name in _METADATA:
            add(f"{information}/{name}", (distribution.read_text(name) or "").encode(), 0o644)
        record.append(f"{information}/RECORD,,")
        entry = zipfile.ZipInfo(f"{information}/RECORD")
        entry.external_attr = 0o100644 << 16
        wheel.writestr(entry, "\n".join([*record, ""]))
    return Packed(path, _digest(packed))


def _tag(distribution: importlib.metadata.Distribution) -> str:
    lines = (distribution.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(":")[2].strip() for line in lines if line.startswith("Tag:")]
    if not tags:
        raise RuntimeError("hyperlapse's own metadata names no wheel tag: install it again with pip")
    # all of them differ only in their platform: py3-none-manylinux_2_34_x86_64 beside py3-none-linux_x86_64
    return f"py3-none-{'.'.join(tag.rpartition('-')[2] for tag in tags)}"


def _files() -> dict[str, Path]:
    """Name in the wheel and file, of everything that belongs to the package."""
    found: dict[str, Path] = {}
    for package in PACKAGES:
        module = importlib.import_module(f"{DISTRIBUTION}.{package}")
        # An editable install has a folder of built files and one of sources.
        for folder in map(Path, module.__path__):
            for path in _package_files(folder):
                found.setdefault(f"{DISTRIBUTION}/{package}/{path.relative_to(folder).as_posix()}", path)
    from hyperlapse.shim._core import CORE_LIBRARY, library

    libraries = library(CORE_LIBRARY).parent
    found = {name: path for name, path in found.items() if not name.startswith(_LIBRARIES + "/")}
    found.update({f"{_LIBRARIES}/{path.name}": path for path in libraries.iterdir() if _is_ours(path)})
    return found


def _package_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if _is_ours(path) and "__pycache__" not in path.parts:
            yield path


def _is_ours(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix != ".pyc"
