"""The binding of the core library: which copy it takes, and that finding it starts nothing."""

from __future__ import annotations

import subprocess
import sys

_NO_PROCESSES = """
import sys
from hyperlapse.shim._core import core

def refuse(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
core()
"""


def test_loading_the_core_starts_no_process() -> None:
    """A launcher that has children for a moment, compilers of all things, is not what a supervisor of it expects."""
    done = subprocess.run([sys.executable, "-c", _NO_PROCESSES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
