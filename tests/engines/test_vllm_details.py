"""Both details of one server agree: the same KV cache, the same ids; and kernels have prices. For each engine version."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlapse.cli.device_time import device_time_ns
from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.result import coverage_shares
from hyperlapse.validation.residency import RECORDED_KV_BLOCKS
from tests.engines.serving import prompt, serving

pytestmark = pytest.mark.engine

RECORDED = {"0.23.0": RECORDED_KV_BLOCKS}
"""KV blocks of Qwen3-14B at vLLM's defaults on a real H100, by version."""


def test_both_details_find_the_same_kv_cache_and_give_the_same_ids(
    each_engine: EngineEnvironment, tmp_path: Path
) -> None:
    blocks, ids, shares = {}, {}, {}
    for detail in ("kernel", "step"):
        folder = tmp_path / detail
        folder.mkdir()
        with serving(each_engine, folder, detail, fixed_step=None) as server:
            blocks[detail] = server.record("engine")["kv_blocks"]
            before = device_time_ns(server.run.directory)
            ids[detail] = [server.complete(prompt(8, 600), 12), server.complete(prompt(9, 30), 12, temperature=0)]
            after = device_time_ns(server.run.directory)
            shares[detail] = coverage_shares({name: after[name] - before[name] for name in after})
            assert "is not supported" not in server.log.read_text(encoding="utf-8", errors="replace")
            profile = server.record("worker")
            assert profile["detail"] == detail
    assert blocks["kernel"] == blocks["step"]
    assert ids["kernel"] == ids["step"]
    recorded = RECORDED.get(each_engine.version)
    assert recorded in (None, blocks["step"])
    for share in shares.values():
        assert share["unknown"] is not None
        assert share["unknown"] < 0.01, shares
