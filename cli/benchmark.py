"""One benchmark from options to result: the real server and the real load generator on the virtual clock.

Why: `hyperlapse bench`, the validation and the project's own measurements all run the same thing, so it is a function
and not a command. It must never change what it measures: the server is the engine's stock one with the user's flags,
random workloads come from its stock client, and everything else happens before the measurement or after it.
Rejected: one process that drives the engine directly; front end, HTTP and client are part of what users wait for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperlapse.cli.device_time import device_time_ns
from hyperlapse.cli.engine_environment import EngineEnvironment, EngineNotFoundError, find_engine
from hyperlapse.cli.engine_log import EngineStatistics, copy_engine_files, engine_statistics
from hyperlapse.cli.files import write_whole
from hyperlapse.cli.load import REQUESTS_FILE, LoadPlan, RandomLoad, stock_plan, stock_trace_plan, trace_plan
from hyperlapse.cli.metrics import RequestRecord, measure, unmet_lengths, write_requests
from hyperlapse.cli.pricing_process import PricingError, PricingProcess
from hyperlapse.cli.progress import Progress, Silent
from hyperlapse.cli.provenance import provenance
from hyperlapse.cli.result import BenchResult, coverage_shares
from hyperlapse.cli.serving import (
    HOST,
    Client,
    Server,
    ServingError,
    epoch_ns,
    failure,
    follow_client,
    free_port,
    loopback_environment,
    start_server,
    wait_until_registered,
)
from hyperlapse.cli.workload import TraceError, TraceRequest, check_lengths, read_trace, token_range
from hyperlapse.coordinator.host_time import environment_of
from hyperlapse.integrations import collective_kernels, engines
from hyperlapse.integrations.environments import EngineReleaseError
from hyperlapse.shim.environment import COMPILE_CACHE_VARIABLE, COMPILE_CACHES, UNSUPPORTED_VARIABLE
from hyperlapse.shim.step_log import ENVIRONMENT_VARIABLE as STEP_LOG

if TYPE_CHECKING:
    from hyperlapse.integrations import Engine
    from hyperlapse.shim.launcher import Event, Run
    from hyperlapse.shim.models import Model

OWN_FLAGS = ("--model", "--port", "--host", "--uds", "--served-model-name", "--tensor-parallel-size", "-tp")
# The load generators speak plain HTTP without a key.
REFUSED_FLAGS = ("--api-key", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--enable-ssl-refresh")
# Events after which the figures mean nothing: durations were left out.
FATAL_EVENTS = ("predictor-failed",)
SERVER_END_LIMIT_S = 3.0
FULL_DISK_BYTES = 1 << 20


class BenchError(Exception):
    """A benchmark that cannot start or did not finish; the text is for the user, `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to run. `rate` in requests/s (None: as fast as `concurrency` allows), lengths in tokens.

    With `trace`, arrivals and lengths come from the file, and `rate`, `concurrency`, `requests` and the lengths are not
    used; `stock_client` replays it with the stock client all the same, to compare the clients. `fixed_step` puts a
    known rule in the predictor's place (hyperlapse.cli.fixed_step), `host_time_ns` another host time per request in the
    place of the calibrated constant. `record_steps` keeps what a report needs: every engine step. `unsupported` is what a
    call gets that has no virtual answer (None: as the environment says). `compile_cache`: whether the engine measures its
    memory as at its very first start (`cold`) or as at any later one. `engine_flags` go to the engine's server as they
    are.
    """

    model: str = "qwen3-14b"
    gpu: str = "h100-sxm-80gb"
    gpus: int = 1
    detail: str = "step"
    clock: str = "frozen"
    engine: str | None = None
    rate: float | None = None
    concurrency: int | None = None
    requests: int = 100
    input_len: int = 1024
    output_len: int = 128
    seed: int = 0
    trace: Path | None = None
    max_in_flight: int | None = None
    output: Path | None = None
    stock_client: bool = False
    fixed_step: str | None = None
    host_time_ns: int | None = None
    record_steps: bool = False
    unsupported: str | None = None
    compile_cache: str = COMPILE_CACHES[0]
    engine_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A finished benchmark. `phases_s`: real seconds of each phase; `clock`: the time-keeper's counters over the
    measurement; `engine`: the engine's own statistics; `events`: what the run counted that a reader should know;
    `start_ns`: the virtual instant that the records count from; `device_time_ns`: launched device time by coverage.
    """

    result: BenchResult
    records: list[RequestRecord]
    folder: Path
    phases_s: Mapping[str, float]
    clock: Mapping[str, int]
    engine: EngineStatistics
    events: Sequence[Event]
    options: BenchOptions
    start_ns: int | None
    device_time_ns: Mapping[str, int]


def run_bench(options: BenchOptions, progress: Progress | None = None) -> BenchRun:
    """Runs one benchmark. Raises BenchError for everything that the user can do something about."""
    check_engine_flags(options.engine_flags)
    sharing = _check_emulated(engines().values(), options)
    # the user's own words first, in milliseconds; then what takes longer to look for
    _check_gpus(options)
    model = _resolve_model(options.model)
    trace = _check_workload(options, model)
    _check_output(options.output)
    _check_priced(options, model, sharing)
    try:
        engine = find_engine(options.engine, progress=progress)
    except EngineNotFoundError as error:
        raise BenchError(str(error), status=2) from None
    sharing = _check_emulated([engine.engine], options)
    if trace is None or options.stock_client:
        _check_client(engine)
    folder = make_folder(options.output)
    try:
        with _open_run(options) as run:
            return _Bench(run, options, engine, model, sharing, trace, folder, progress or Silent()).run_all()
    except (ServingError, PricingError) as error:
        raise BenchError(f"{error}\n{_where(folder)}") from None
    except OSError as error:
        raise BenchError(f"{error.filename or folder}: {error.strerror}\n{_where(folder)}") from error
    except RuntimeError as error:
        raise BenchError(f"{error}\n{_where(folder)}") from error


def _where(folder: Path) -> str:
    """The last line of every failure: where the logs are, and that there is no room for them if so."""
    where = f"All logs: {folder}"
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < FULL_DISK_BYTES:
            where += f"\nThe file system of {folder} is full: free some of it, or choose another one with --output"
    return where


def _check_emulated(known: Iterable[Engine], options: BenchOptions) -> int:
    """Asks the integrations, before anything is started, whether one of these engines can be emulated with the flags given,
    and how many GPUs share a layer then. Raises BenchError.
    """
    refusals = []
    for engine in known:
        try:
            return engine.serve_args(
                "m", options.detail, gpus=options.gpus, extra=options.engine_flags
            ).tensor_parallel_size
        except ValueError as error:
            refusals.append(str(error))
    raise BenchError("\n".join(refusals), status=2)


def _check_client(engine: EngineEnvironment) -> None:
    """Asks the integration whether the stock load generator saves what the figures are made of. Raises BenchError."""
    if engine.name in engine.folders:
        try:
            engine.engine.check_client(engine.version, engine.folder)
        except EngineReleaseError as error:
            raise BenchError(str(error), status=2) from None


@dataclass(slots=True)
class _Bench:
    run: Run
    options: BenchOptions
    engine: EngineEnvironment
    model: Model
    sharing: int
    trace: Sequence[TraceRequest] | None
    folder: Path
    progress: Progress

    def run_all(self) -> BenchRun:
        from hyperlapse.shim.launcher import Mode

        run, options, folder = self.run, self.options, self.folder
        began_s = time.monotonic()
        self.progress.phase("starting the pricing service")
        PricingProcess.start(
            run,
            options.fixed_step,
            folder / "pricing.log",
            models=[self.model.config_path],
            tensor_parallel_size=self.sharing,
            summary=folder / "pricing.json",
        )
        priced_s = time.monotonic()

        self.progress.phase(
            f"starting {self.engine.name} serve, {options.detail} detail (log: {folder / 'server.log'})"
        )
        run.set_mode(Mode.REAL)
        port = free_port()
        command, environment = self.server_command(port)
        server = start_server(run, command, environment, port=port, log=folder / "server.log", progress=self.progress)

        self.progress.phase("starting the client")
        run.set_mode(Mode.PARKED)
        before_ns = device_time_ns(run.directory)
        plan = self.load_plan(f"http://{HOST}:{port}")
        client_log = folder / "client.log"
        with client_log.open("wb") as output:
            client = run.spawn(
                plan.command,
                environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the launcher's to handle
            )
        wait_until_registered(run, client, client_log)
        run.set_mode(Mode.PARKED, epoch_ns=epoch_ns(run.now_ns()))
        clock_before, events_before = run.statistics(), run.events()
        run.set_mode(Mode.FROZEN if options.clock == "frozen" else Mode.FLOW)
        self.progress.phase("measuring")
        real_s = follow_client(run, server, Client(client, client_log, plan), self.progress)
        clock_after = run.statistics()

        run.set_mode(Mode.PARKED)
        self.progress.phase("collecting")
        after_ns = device_time_ns(run.directory)
        statistics, events = engine_statistics(run.directory), events_since(events_before, run.events())
        records = plan.records()
        self.check_records(records, plan, server)
        for event in events:
            if event.kind in FATAL_EVENTS:
                raise BenchError(
                    f"{event.kind}, {event.count} times: {event.text}\nThe figures would lack these durations. Logs: {folder}"
                )
        if options.record_steps:
            copy_engine_files(run.directory, folder)
        device_ns = {name: after_ns[name] - before_ns[name] for name in after_ns}
        if plan.stock:
            write_requests(folder / REQUESTS_FILE, records)
        result = BenchResult(
            engine=self.engine.name,
            engine_version=self.engine.version,
            model=self.model.name,
            gpu=options.gpu,
            gpus=options.gpus,
            detail=options.detail,
            clock=options.clock,
            compile_cache=statistics.compile_cache,
            seed=options.seed,
            metrics=measure(records),
            kv_blocks=statistics.kv_blocks,
            kv_block_size=statistics.block_size,
            preemptions=statistics.preemptions,
            real_s=real_s,
            startup_s=server.startup_s,
            coverage=coverage_shares(device_ns),
            requests_file=str(folder / REQUESTS_FILE),
            provenance=provenance(
                engine=self.engine,
                model_folder=self.model.directory,
                gpu=options.gpu,
                fixed_step=options.fixed_step,
                host_time=host_time(options, self.engine.name),
                server_command=command,
                client_command=plan.command,
                engine_flags=options.engine_flags,
                trace=options.trace,
                engine_profile=statistics.profile,
            ),
        )
        write_whole(folder / "result.json", json.dumps(result.as_json(), indent=2) + "\n")
        return BenchRun(
            result=result,
            records=records,
            folder=folder,
            phases_s={"pricing": priced_s - began_s, "server": server.startup_s, "measurement": real_s},
            clock={
                name: getattr(clock_after, name) - getattr(clock_before, name)
                for name in ("jumps", "proofs", "proofs_refused", "trigger_to_wake_ns_total", "proof_ns_total")
            },
            engine=statistics,
            events=events,
            options=options,
            start_ns=plan.start_ns(client_log),
            device_time_ns=device_ns,
        )

    def server_command(self, port: int) -> tuple[list[str], dict[str, str]]:
        options = self.options
        serve = self.engine.engine.serve_args(
            self.model.directory,
            options.detail,
            executable=self.engine.command,
            served_model_name=self.model.name,
            host=HOST,
            port=port,
            gpus=options.gpus,
            extra=options.engine_flags,
        )
        charged = environment_of(host_time(options, self.engine.name), self.folder)
        # always set: a variable of the caller's must not make another run write into its folder
        steps = {STEP_LOG: str(self.folder) if options.record_steps else ""}
        policy = {} if options.unsupported is None else {UNSUPPORTED_VARIABLE: options.unsupported}
        policy[COMPILE_CACHE_VARIABLE] = options.compile_cache
        return list(serve.argv), {**serve.environment, **loopback_environment(), **charged, **steps, **policy}

    def load_plan(self, base_url: str) -> LoadPlan:
        options = self.options
        if self.trace is not None and options.stock_client:
            return stock_trace_plan(
                self.trace,
                self.engine,
                base_url,
                self.folder,
                model=self.model.directory,
                served_name=self.model.name,
                max_in_flight=options.max_in_flight,
            )
        if self.trace is not None:
            return trace_plan(
                self.trace,
                self.engine,
                base_url,
                self.folder,
                served_name=self.model.name,
                tokens=token_range(self.model.directory),
                seed=options.seed,
                text=self.model.dummy_tokenizer,
                max_in_flight=options.max_in_flight,
            )
        load = RandomLoad(
            options.requests, options.input_len, options.output_len, options.rate, options.concurrency, options.seed
        )
        return stock_plan(
            load, self.engine, base_url, self.folder, model=self.model.directory, served_name=self.model.name
        )

    def check_records(self, records: Sequence[RequestRecord], plan: LoadPlan, server: Server) -> None:
        """Every request answered, at its full length, or there is no result."""
        bad = [record for record in records if not record.ok]
        if bad:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(SERVER_END_LIMIT_S)
            if server.process.poll() is not None:
                raise failure("the server died", server.process, server.log)
            raise BenchError(
                f"{len(bad)} of {len(records)} requests failed; the first: {bad[0].error.strip().splitlines()[-1]}\n"
                f"All logs: {self.folder}"
            )
        if len(records) != plan.total:
            raise BenchError(f"the client recorded {len(records)} of {plan.total} requests. Logs: {self.folder}")
        unmet = unmet_lengths(records, plan.wanted_tokens)
        if unmet:
            first = unmet[0]
            raise BenchError(
                f"{len(unmet)} requests have another output length than asked for (request {first.index}: "
                f"{first.output_tokens} tokens, not {plan.wanted_tokens[first.index]}): is the longest sequence "
                f"(--max-model-len) too short? Logs: {self.folder}"
            )


def check_engine_flags(flags: Sequence[str]) -> None:
    """Raises BenchError for engine flags that `bench` itself must set."""
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if name in OWN_FLAGS:
            raise BenchError(f"{name} is set by hyperlapse bench (--model, --gpus); leave it out after --", status=2)
        if name in REFUSED_FLAGS:
            raise BenchError(f"{name}: the load generator of a benchmark speaks plain HTTP without a key", status=2)


def host_time(options: BenchOptions, engine: str) -> dict[str, int]:
    """The host time that the integration charges, in nanoseconds by rule; empty for none.

    A run with a fixed step charges none: its answer must follow from the arrivals alone.
    """
    if options.host_time_ns is not None:
        return {host_time_rule(engine): options.host_time_ns} if options.host_time_ns else {}
    if options.fixed_step is not None:
        return {}
    from hyperlapse.coordinator import host_time as calibrated

    return dict(calibrated.load(engine))


def host_time_rule(engine: str) -> str:
    """The rule of the one constant that this version charges (coordinator/host_time.toml)."""
    from hyperlapse.coordinator import host_time as calibrated

    return next(iter(calibrated.load(engine)))


def make_folder(chosen: Path | None) -> Path:
    """The folder for logs and results: `chosen` (made if absent, must be empty), else a new one in the user's state
    directory. Raises BenchError.
    """
    if chosen is not None:
        _check_output(chosen)
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"--output {chosen}: {error.strerror}", status=2) from None
        return chosen.absolute()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = state / "hyperlapse" / "bench" / f"{stamp}-{os.getpid()}"
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{stamp}-{os.getpid()}-{number}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BenchError(
            f"no folder for the results: {error.filename}: {error.strerror}; name one with --output, or another place for "
            "all of them with XDG_STATE_HOME",
            status=2,
        ) from None
    return folder


def _check_output(chosen: Path | None) -> None:
    """Raises BenchError for a folder that holds something already, or is none."""
    try:
        if chosen is not None and (chosen.exists() or chosen.is_symlink()) and any(chosen.iterdir()):
            raise BenchError(f"--output {chosen}: the folder is not empty; results are never overwritten", status=2)
    except OSError as error:
        raise BenchError(f"--output {chosen}: {error.strerror}", status=2) from None


def _resolve_model(name: str) -> Model:
    from hyperlapse.shim.models import ModelError, resolve_model

    try:
        return resolve_model(name)
    except ModelError as error:
        raise BenchError(str(error), status=2) from None


def _check_workload(options: BenchOptions, model: Model) -> list[TraceRequest] | None:
    """The trace, if there is one. Raises BenchError for requests that the server would refuse in the middle of a run."""
    longest = _longest_sequence(options.engine_flags, model)
    if options.trace is None:
        if options.input_len + options.output_len > longest:
            raise BenchError(
                f"--input-len {options.input_len} + --output-len {options.output_len}: the longest sequence that is served "
                f"is {longest} tokens",
                status=2,
            )
        return None
    try:
        requests = read_trace(options.trace)
        check_lengths(options.trace, requests, longest, token_range(model.directory).end)
    except OSError as error:
        raise BenchError(f"{options.trace}: {error.strerror}", status=2) from None
    except (TraceError, ValueError) as error:
        raise BenchError(str(error), status=2) from None
    return requests


def _longest_sequence(flags: Sequence[str], model: Model) -> int:
    """Tokens of the longest sequence: --max-model-len where it is a plain number, else the model's own limit."""
    for index, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        if name.replace("_", "-") == "--max-model-len":
            value = value or "".join(flags[index + 1 : index + 2])
            if value.isdecimal():
                return int(value)
    own = model.config().get("max_position_embeddings")
    return own if isinstance(own, int) else 2**31


def events_since(before: Sequence[Event], after: Sequence[Event]) -> list[Event]:
    """What was counted between two looks. Start-up is no part of a measurement: profiling launches without a batch."""
    counts = {(event.kind, event.text): event.count for event in before}
    return [
        dataclasses.replace(event, count=event.count - counts.get((event.kind, event.text), 0))
        for event in after
        if event.count > counts.get((event.kind, event.text), 0)
    ]


def _check_gpus(options: BenchOptions) -> None:
    from hyperlapse.cli.priced_device import priced_device
    from hyperlapse.predictor.devices import UnknownDeviceError
    from hyperlapse.shim import devices

    try:
        devices.load(options.gpu)
        if options.fixed_step is None:
            priced_device(options.gpu)
    except (devices.UnknownDeviceError, devices.DeviceProfileError, UnknownDeviceError) as error:
        raise BenchError(str(error), status=2) from None


def _check_priced(options: BenchOptions, model: Model, sharing: int) -> None:
    """Raises BenchError for a model that has no durations on so many of these GPUs, before anything is started."""
    from hyperlapse.cli.priced_device import engine_predictor
    from hyperlapse.predictor.prediction import PredictorError

    if options.fixed_step is not None:
        return
    try:
        engine_predictor(options.gpu, [model.config_path], tensor_parallel_size=sharing)
    except (PredictorError, ValueError) as error:
        raise BenchError(str(error), status=2) from None


@contextlib.contextmanager
def _open_run(options: BenchOptions) -> Iterator[Run]:
    from hyperlapse.shim.launcher import Run

    with Run(options.gpu, options.gpus, collective_kernels=collective_kernels()) as run:
        yield run
