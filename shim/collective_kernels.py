"""Kernels in which the GPUs of a group meet without NCCL, told to the C side of a run.

Why: on the card such a kernel spins until its peers' flags arrive, so its duration is not its own: it ends for all ranks
together. The C side (csrc/bridge/collective.c) puts it on the timeline as a collective, when it knows which kernels these
are and what their arguments mean. That is knowledge about the programs, so it comes as YAML: torch's own kernels from
here, an engine's from its integration.

    version: 1
    kernels:
      - name: all_reduce.*Li([0-9]+)E        # POSIX extended, searched in the mangled name; its group: the number of ranks
        operation: kernel_all_reduce         # what the predictor prices, from the message's bytes and the ranks
        peers: {argument: 1, in: value}      # pointers to the peers' memory: in the argument, or in `memory` it points to
        ranks: {argument: 4, type: int64}    # where the name does not say it
        size: {argument: 5, type: int32, unit_bytes: 16}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OWN = Path(__file__).with_name("collective_kernels.yaml")
FILE = "collective-kernels"  # in the run directory; csrc/bridge/collective.c reads it

_FIELDS = {"name", "operation", "peers", "ranks", "size", "note"}
_PLACES = {"value": "v", "memory": "m"}
_BYTES = {"int32": 4, "int64": 8}


class CollectiveKernelsError(ValueError):
    """A file of collective kernels that does not follow its schema; the message names file and rule."""


def publish(run_directory: Path, files: Iterable[Path] = ()) -> None:
    """Writes the rules of these files, after the bundled ones, for the processes of a run. Call it before any starts.

    Raises CollectiveKernelsError, OSError.
    """
    lines = [line for path in (OWN, *files) for line in _lines(path)]
    (run_directory / FILE).write_text("".join(line + "\n" for line in lines), encoding="ascii")


def _lines(path: Path) -> list[str]:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("kernels"), list):
        raise CollectiveKernelsError(f"{path}: must be a mapping with `version: 1` and a list `kernels`")
    return [_line(entry, f"{path}, kernel {number}") for number, entry in enumerate(content["kernels"], start=1)]


def _line(entry: Any, where: str) -> str:
    if not isinstance(entry, dict) or not {"name", "operation", "peers", "size"} <= set(entry):
        raise CollectiveKernelsError(f"{where}: needs `name`, `operation`, `peers` and `size`")
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise CollectiveKernelsError(f"{where}: unknown field `{unknown[0]}` (known: {', '.join(sorted(_FIELDS))})")
    name, operation = str(entry["name"]), str(entry["operation"])
    if not name.isprintable() or not re.fullmatch(r"\w{1,63}", operation):
        raise CollectiveKernelsError(f"{where}: `name` must be one line, `operation` a word of up to 63 letters")
    peers = entry["peers"]
    if not isinstance(peers, dict) or set(peers) != {"argument", "in"} or peers["in"] not in _PLACES:
        raise CollectiveKernelsError(f"{where}: `peers` must be {{argument: N, in: {' or '.join(_PLACES)}}}")
    ranks = (-1, 4)
    if "ranks" in entry:
        ranks = _integer(entry["ranks"], f"{where}: `ranks`")
    elif "(" not in name:
        raise CollectiveKernelsError(f"{where}: needs `ranks`, or a group in `name` that matches their number")
    size = _integer(entry["size"], f"{where}: `size`", "unit_bytes")
    parts = (operation, _argument(peers, where), _PLACES[peers["in"]], *ranks, *size, int(entry["size"]["unit_bytes"]))
    return name + "\t" + " ".join(map(str, parts))


def _integer(entry: Any, where: str, *more: str) -> tuple[int, int]:
    if not isinstance(entry, dict) or set(entry) != {"argument", "type", *more} or entry["type"] not in _BYTES:
        fields = ", ".join(["argument: N", f"type: {' or '.join(_BYTES)}", *(f"{each}: N" for each in more)])
        raise CollectiveKernelsError(f"{where} must be {{{fields}}}")
    return _argument(entry, where), _BYTES[entry["type"]]


def _argument(entry: Mapping[str, Any], where: str) -> int:
    number = entry["argument"]
    if not isinstance(number, int) or not 0 <= number < 64:
        raise CollectiveKernelsError(f"{where}: `argument` must be a number from 0 to 63")
    return number
