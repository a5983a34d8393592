"""Generates ``hosts_pb2.py`` and its types from ``hosts.proto`` (needs grpcio-tools, of the development environment).

The generated files are checked in, so that an installation needs no compiler of protocol buffers.

    python -m hyperlapse.coordinator.generate            write the generated files
    python -m hyperlapse.coordinator.generate --check    exit 1 when one is stale
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROTO = "hosts.proto"
GENERATED = ("hosts_pb2.py", "hosts_pb2.pyi")


def generate(source: Path) -> dict[str, str]:
    """File name -> text. Raises RuntimeError when the compiler refuses the file."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory(prefix="hyperlapse-proto-") as scratch:
        # relative to the folder of the file: the generated code then names no package that it lies in
        arguments = ["protoc", f"-I{source.parent}", f"--python_out={scratch}", f"--pyi_out={scratch}", source.name]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"{source} cannot be compiled; see the message above")
        return {name: (Path(scratch) / name).read_text(encoding="utf-8") for name in GENERATED}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="generate", description="Generate the code of the hosts protocol.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="source tree")
    options = parser.parse_args(arguments)
    folder: Path = options.root / "coordinator"
    stale = 0
    for name, text in generate(folder / PROTO).items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            print(f"coordinator/{name} is stale: run python -m hyperlapse.coordinator.generate", file=sys.stderr)
            stale += 1
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
