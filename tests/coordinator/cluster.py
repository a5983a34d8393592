"""Several "hosts" on this machine: runs of their own, each with its time-keeper and node agent, and a coordinator.

In network namespaces, joined by a virtual cable, where the machine lets us make them (root); else on loopback addresses
of their own, where programs must bind to the address of their node.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

PROGRAMS = Path(__file__).parent / "programs"
HYPERLAPSE = [sys.executable, "-m", "hyperlapse.cli.main"]
LIMIT_S = 120
_LISTENING = re.compile(r"listening on \S+:(\d+)")


class Part:
    """A process of the cluster and what it printed."""

    def __init__(self, command: Sequence[str], directory: Path, **options: Any) -> None:
        self._output = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed with the part
        self._errors = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._errors, **options
        )

    @staticmethod
    def _text(file: IO[bytes]) -> str:
        return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def output(self) -> str:
        return self._text(self._output)

    @property
    def errors(self) -> str:
        return self._text(self._errors)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """The exit status; a part that hangs fails the test."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.process.args} hangs\n{self.errors}")

    def wait_for(self, text: str, limit_s: float = 60) -> str:
        """Returns what was printed so far, when the text is in it."""
        limit = time.monotonic() + limit_s
        while text not in self.errors + self.output:
            if time.monotonic() > limit or (self.process.poll() is not None and text not in self.errors + self.output):
                pytest.fail(f"{text!r} does not come from {self.process.args}\n{self.errors}")
            time.sleep(0.02)
        return self.errors + self.output

    def children(self, name: str) -> list[psutil.Process]:
        """Its direct children whose command line has this word."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if name in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.resume()
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._output.close()
        self._errors.close()


class Cluster:
    """``nodes`` hosts. namespaces: each has a network of its own (two nodes only)."""

    def __init__(self, directory: Path, nodes: int = 2, *, namespaces: bool = False) -> None:
        self.nodes, self.directory = nodes, directory
        self._parts: list[Part] = []
        self._namespaces: list[str] = []
        self.port = 0
        self.token = directory / "token"
        self.token.write_text(secrets.token_urlsafe())
        if namespaces:
            self._namespaces = [f"hyperlapse-{os.getpid()}-{rank}" for rank in range(nodes)]
            self.addresses = [f"10.213.0.{rank + 1}" for rank in range(nodes)]
            self._make_namespaces()
        else:
            self.addresses = [f"127.0.2.{rank + 1}" for rank in range(nodes)]

    def _make_namespaces(self) -> None:
        one, other = self._namespaces
        commands = [
            f"ip netns add {one}",
            f"ip netns add {other}",
            f"ip link add cable netns {one} type veth peer name cable netns {other}",
        ]
        for name, address in zip(self._namespaces, self.addresses, strict=True):
            commands += [
                f"ip -n {name} addr add {address}/24 dev cable",
                f"ip -n {name} link set lo up",
                f"ip -n {name} link set cable up",
            ]
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode != 0:
                self.close()
                pytest.skip(f"this machine lets us make no network namespaces: {command}: {done.stderr.strip()}")

    def _inside(self, rank: int) -> list[str]:
        return ["ip", "netns", "exec", self._namespaces[rank]] if self._namespaces else []

    def _start(self, command: Sequence[str]) -> Part:
        part = Part(command, self.directory)
        self._parts.append(part)
        return part

    def coordinator(self, *options: str, program: Sequence[str] = (*HYPERLAPSE, "coordinator")) -> Part:
        """Starts the coordinator on the first host and waits until it listens."""
        host = self.addresses[0] if self._namespaces else "127.0.0.1"
        command = [*self._inside(0), *program, "--listen", f"{host}:0", "--nodes", str(self.nodes)]
        command += ["--token-file", str(self.token), *options]
        part = self._start(command)
        found = _LISTENING.search(part.wait_for("listening on"))
        assert found is not None
        self.port = int(found.group(1))
        self.host = host
        return part

    def node(self, rank: int, command: Sequence[str], *options: str) -> Part:
        """Starts a node with its command."""
        started = [*self._inside(rank), *HYPERLAPSE, "run", "--gpu", "none"]
        started += ["--coordinator", f"{self.host}:{self.port}", "--node-rank", str(rank), "--nodes", str(self.nodes)]
        started += ["--token-file", str(self.token)]
        if not self._namespaces:
            started += ["--node-address", self.addresses[rank]]
        return self._start([*started, *options, "--", *command])

    def program(self, rank: int, name: str, *arguments: str) -> list[str]:
        """A program of this folder, told the addresses of its own node and of the first and second one."""
        return [sys.executable, str(PROGRAMS / f"{name}.py"), self.addresses[rank], *self.addresses[:2], *arguments]

    def close(self) -> None:
        for part in self._parts:
            part.close()
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes on loopback addresses."""
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["loopback", "namespaces"])
def any_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes, on loopback addresses and in network namespaces."""
    made = Cluster(tmp_path, namespaces=request.param == "namespaces")
    yield made
    made.close()
