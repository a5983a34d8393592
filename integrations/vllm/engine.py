"""vLLM, as the commands know it (hyperlapse.integrations.engines). Imports neither vLLM nor torch."""

from __future__ import annotations

from pathlib import Path

from hyperlapse.integrations.engines import Engine
from hyperlapse.integrations.environments import EngineReleaseError
from hyperlapse.integrations.vllm.command import ENGINE as NAME
from hyperlapse.integrations.vllm.command import adapt_command, serve_args
from hyperlapse.integrations.vllm.versions import TESTED_VERSIONS, UnsupportedVersionError, verdict


def check_sources(version: str, package: Path) -> None:
    try:
        verdict(version, package)
    except UnsupportedVersionError as error:
        raise EngineReleaseError(str(error)) from None


def check_client(version: str, package: Path) -> None:
    """`vllm bench serve` saves when it sent each request in 0.15.1, and not in 0.12.0; the sources tell."""
    path = package / "benchmarks" / "serve.py"
    if not path.is_file() or '"start_times"' not in path.read_text(encoding="utf-8"):
        raise EngineReleaseError(
            f"the load generator of vLLM {version} does not save when it sent its requests, so nothing can be measured with "
            "it: name the requests in a file with --trace, which another client sends (docs/bench.md)"
        )


ENGINE = Engine(
    name=NAME,
    title="vLLM",
    module="vllm.entrypoints.cli.main",
    imports=("vllm.v1.engine.core", "vllm.v1.worker.gpu_worker", "vllm.entrypoints.openai.api_server"),
    beside=("torch", "hyperlapse", "aiohttp", "transformers"),
    tested_versions=TESTED_VERSIONS,
    adapt_command=adapt_command,
    serve_args=serve_args,
    check_sources=check_sources,
    check_client=check_client,
)
