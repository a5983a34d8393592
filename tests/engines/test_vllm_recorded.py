"""Real input: the beginning of a recorded run, emulated beside the recording. benchmarks/replay_residency.py has all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlapse.cli.benchmark import BenchOptions
from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.validation.replay import replay
from tests.validation.conftest import recordings

__all__ = ["recordings"]

pytestmark = [pytest.mark.engine, pytest.mark.recorded]

SECONDS = 30.0


RECORDED_VERSION = "0.23.0"


@pytest.fixture
def recorded_engine(request: pytest.FixtureRequest) -> EngineEnvironment:
    """The version that the recordings were made with, whichever of the two environments holds it."""
    for name in ("engine", "previous_engine"):
        found: EngineEnvironment = request.getfixturevalue(name)
        if found.version == RECORDED_VERSION:
            return found
    pytest.skip(f"no environment with vLLM {RECORDED_VERSION}, which the recordings were made with")


def test_a_recorded_run_is_met(recorded_engine: EngineEnvironment, recordings: Path, tmp_path: Path) -> None:
    """4 requests/s on a real H100, the means of a short run: its percentiles are those of single requests."""
    done = replay(recordings, "agg_4rps", SECONDS, BenchOptions(output=tmp_path, engine=str(recorded_engine.python)))
    means = [row for row in done.comparisons if row.name.startswith("mean ")]
    assert len(means) == 3
    assert all(row.within for row in means), means
