"""Runs the pricing service of a run in a process of its own: `python -m hyperlapse.cli.pricing_process`.

Why: the pricing service needs numpy, pyarrow and the kernel database, and it must answer while every participant of the
run waits for it; so it is no participant, has no shim loaded, and shares nothing with the launcher but the run
directory. It must never outlive the launcher, even one that was killed. Rejected: a thread of the launcher, which would
share the interpreter's lock with the progress display.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from hyperlapse.cli.log_follower import last_lines

READY_LINE = "ready"
READY_TIMEOUT_S = 120.0
PARENT_CHECK_S = 1.0


class PricingError(Exception):
    """The pricing service did not start; the text says where its messages are."""


class ServiceStarter(Protocol):
    """The part of hyperlapse.shim.launcher.Run that is needed here."""

    directory: Path
    gpu: str | None

    def spawn_service(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]: ...


@dataclass(frozen=True, slots=True)
class PricingProcess:
    """A started pricing service. The run ends it."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        run: ServiceStarter,
        fixed_step: str | None = None,
        log: Path | None = None,
        *,
        models: Sequence[Path] = (),
        tensor_parallel_size: int = 1,
        summary: Path | None = None,
        wait: bool = True,
    ) -> PricingProcess:
        """Starts the service for the run's GPU.

        fixed_step: `10ms,40us` (hyperlapse.cli.fixed_step), None for the real predictor; models: config.json files
        whose kernels may be launched (the models of steps come with the steps), on tensor_parallel_size GPUs together;
        log: where its messages go, None for standard error; summary: the file that gets, when the service ends, what it
        priced and how wrong that may be; wait: return only when it answers. Raises PricingError when it does not start.
        """
        command = [sys.executable, "-m", "hyperlapse.cli.pricing_process", "--run-dir", str(run.directory)]
        command += ["--gpu", run.gpu or ""]
        for model in models:
            command += ["--model", str(model)]
        command += ["--tensor-parallel-size", str(tensor_parallel_size)]
        if fixed_step is not None:
            command += ["--fixed-step", fixed_step]
        if summary is not None:
            command += ["--summary", str(summary)]
        errors: IO[bytes] | None = None if log is None else log.open("wb")
        try:
            process = run.spawn_service(command, stdout=subprocess.PIPE if wait else subprocess.DEVNULL, stderr=errors)
        finally:
            if errors is not None:
                errors.close()
        if wait and not _answers(process):
            where = f"its messages are in {log}" if log is not None else "its messages are above"
            said = [line for line in last_lines(log, 1) if line] if log is not None else []
            raise PricingError(f"the pricing service did not start{''.join(f': {line}' for line in said)}; {where}")
        return cls(process)


def _answers(process: subprocess.Popen[bytes]) -> bool:
    output = process.stdout
    assert output is not None
    # A reader thread, because a plain readline would wait for ever for a service that hangs.
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(output.readline()), daemon=True)
    reader.start()
    reader.join(READY_TIMEOUT_S)
    return bool(lines) and lines[0].strip() == READY_LINE.encode()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="answer the price questions of one run")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--gpu", required=True)
    parser.add_argument("--model", type=Path, action="append", default=[], help="config.json of a model that is served")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="GPUs that share a layer of these models")
    parser.add_argument("--fixed-step", help="STEP,PER_PROMPT_TOKEN: price every step by this rule")
    parser.add_argument("--summary", type=Path, help="written at the end: what was priced, and its error")
    options = parser.parse_args(arguments)

    from hyperlapse.shim import pricing

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    threading.Thread(target=_stop_without_parent, args=(stop, os.getppid()), daemon=True).start()
    try:
        predictor = _predictor(options.gpu, options.model, options.tensor_parallel_size, options.fixed_step)
    except _wrong_input() as error:
        print(error, file=sys.stderr)
        return 2
    print(READY_LINE, flush=True)
    pricing.serve(options.run_dir, predictor, stop)
    if options.summary is not None:
        _write_summary(options.summary, predictor)
    return 0


def _wrong_input() -> tuple[type[Exception], ...]:
    """What a predictor says on purpose: a product, a model or tables that it does not know."""
    from hyperlapse.predictor.prediction import PredictorError
    from hyperlapse.shim.devices import DeviceProfileError, UnknownDeviceError

    return (PredictorError, DeviceProfileError, UnknownDeviceError)


def _write_summary(path: Path, predictor: Any) -> None:
    """What was priced and how wrong it may be (hyperlapse.predictor.uncertainty); nothing for a fixed step."""
    priced = getattr(predictor, "priced", None)
    if priced is not None:
        path.write_text(json.dumps(priced.as_dict(predictor.notes), indent=2) + "\n", encoding="utf-8")


def _predictor(gpu: str, models: Sequence[Path], tensor_parallel_size: int, fixed_step: str | None) -> Any:
    if fixed_step is not None:
        from hyperlapse.cli.fixed_step import parse_fixed_step

        return parse_fixed_step(fixed_step)
    from hyperlapse.cli.priced_device import engine_predictor

    return engine_predictor(gpu, models, tensor_parallel_size=tensor_parallel_size)


def _stop_without_parent(stop: threading.Event, parent: int) -> None:
    while not stop.wait(PARENT_CHECK_S):
        if os.getppid() != parent:
            stop.set()


if __name__ == "__main__":
    sys.exit(main())
