"""Device time of a run by where its durations come from, read out of the run's shared memory.

Why: the shares of measured and analytical device time belong to every result. A process can map the devices of one run
only, so a short-lived one does it (`python -m hyperlapse.cli.device_time RUN_DIR`) and the launcher can go on to
another run. It must run only while the clock may wait for it: before the measurement begins and after it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hyperlapse.cli.result import COVERAGES


def device_time_ns(run_directory: Path) -> dict[str, int]:
    """Nanoseconds of device time so far, over all virtual devices, by coverage. Raises RuntimeError."""
    from hyperlapse.shim.environment import service_environment

    command = [sys.executable, "-m", "hyperlapse.cli.device_time", str(run_directory)]
    environment = service_environment(run_directory, os.environ)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"the run's device time cannot be read: {result.stderr.strip()[-500:]}")
    values: dict[str, int] = json.loads(result.stdout)
    return values


def main() -> int:
    from hyperlapse.shim import pricing

    bound = pricing.attach(sys.argv[1])
    totals = dict.fromkeys(COVERAGES, 0)
    values = bound.ffi.new("int64_t[5]")
    for device in range(bound.lib.hl_device_count()):
        bound.lib.hl_timeline_device_time_ns(device, values)
        for index, name in enumerate(COVERAGES):
            totals[name] += values[index]
    print(json.dumps(totals))
    return 0


if __name__ == "__main__":
    sys.exit(main())
