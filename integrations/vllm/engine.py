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


ENGINE = Engine(
    name=NAME,
    title="vLLM",
    module="vllm.entrypoints.cli.main",
    beside=("torch", "hyperlapse", "aiohttp", "transformers"),
    tested_versions=TESTED_VERSIONS,
    adapt_command=adapt_command,
    serve_args=serve_args,
    check_sources=check_sources,
)
