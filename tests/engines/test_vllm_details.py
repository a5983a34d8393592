"""Both details of one server agree: the same KV cache, the same ids, the same batches; and kernels have prices. For each
engine version. The device memory of the kernel detail is poisoned: it holds another byte than 0 wherever only kernels, which do
not run, would have written (csrc/core/poison.h; all poisons: benchmarks/poison.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlapse.cli.device_time import device_time_ns
from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.result import coverage_shares
from hyperlapse.shim.models import bundled_models
from hyperlapse.validation.residency import RECORDED_KV_BLOCKS
from tests.engines.serving import prompt, serving

pytestmark = pytest.mark.engine

RECORDED = {"0.23.0": RECORDED_KV_BLOCKS}
"""KV blocks of Qwen3-14B at vLLM's defaults on a real H100, by version."""
POISON = {"kernel": {"HYPERLAPSE_POISON": "0xa5"}, "step": {}}
BATCH = (
    "running",
    "waiting",
    "kv_usage",
    "prompt_tokens",
    "output_tokens",
    "finished",
    "prefix_queries",
    "prefix_hits",
)


@dataclass(frozen=True, slots=True)
class Served:
    """What a server found and gave. shares: of the device time of its requests, by coverage; batches: of each step."""

    blocks: int
    ids: list[list[list[int]]]
    shares: dict[str, float | None]
    attention: list[str]
    events: set[str]
    batches: list[list[float | None]]


def served(
    engine: EngineEnvironment,
    folder: Path,
    detail: str,
    gpu: str,
    *flags: str,
    gpus: int = 1,
    model_name: str = "qwen3-14b",
) -> Served:
    folder.mkdir()
    with serving(
        engine,
        folder,
        detail,
        *flags,
        fixed_step=None,
        gpu=gpu,
        gpus=gpus,
        environment=POISON[detail],
        model_name=model_name,
    ) as server:
        before = device_time_ns(server.run.directory)
        ids = [server.complete(prompt(8, 600), 12), server.complete(prompt(9, 30), 12, temperature=0)]
        after = device_time_ns(server.run.directory)
        assert "is not supported" not in server.log.read_text(encoding="utf-8", errors="replace")
        worker = server.record("worker")
        assert worker["detail"] == detail
        spent_ns = {name: after[name] - before[name] for name in after}
        steps = [each for each in server.records() if each["kind"] == "step" and each.get("output_tokens")]
        batches = [[step.get(name) for name in BATCH] for step in steps]
        blocks = server.record("engine")["kv_blocks"]
        events = {event.kind for event in server.run.events()}
        return Served(blocks, ids, coverage_shares(spent_ns), worker["attention"], events, batches)


def check_agreement(kernel: Served, step: Served) -> None:
    assert kernel.blocks == step.blocks
    assert kernel.ids == step.ids
    assert kernel.batches == step.batches
    assert len(step.batches) == 24
    for share in (kernel.shares, step.shares):
        assert share["unknown"] is not None
        assert share["unknown"] < 0.01, share


def test_both_details_find_the_same_kv_cache_and_give_the_same_ids(
    each_engine: EngineEnvironment, tmp_path: Path
) -> None:
    kernel, step = (served(each_engine, tmp_path / name, name, "h100-sxm-80gb") for name in ("kernel", "step"))
    check_agreement(kernel, step)
    recorded = RECORDED.get(each_engine.version)
    assert recorded in (None, step.blocks)


def test_both_details_agree_where_attention_is_flashinfers(engine: EngineEnvironment, tmp_path: Path) -> None:
    """A B200: attention whose kernels would be compiled and downloaded. Eager, since compiling takes minutes; every product
    with its graphs: benchmarks/products.py.
    """
    kernel, step = (
        served(engine, tmp_path / name, name, "b200-sxm-180gb", "--enforce-eager") for name in ("kernel", "step")
    )
    check_agreement(kernel, step)
    assert kernel.attention == step.attention == ["FLASHINFER"]


def test_both_details_agree_where_two_gpus_share_each_layer(engine: EngineEnvironment, tmp_path: Path) -> None:
    """Real ranks, which meet in the engine's own all-reduce, and in NCCL's gathering of the logits."""
    kernel, step = (
        served(engine, tmp_path / name, name, "h100-sxm-80gb", "--enforce-eager", gpus=2) for name in ("kernel", "step")
    )
    check_agreement(kernel, step)
    assert "flashinfer-all-reduce" in kernel.events, "what the card might have taken instead is counted"
    assert not {"collective-kernel", "memory-profile"} & kernel.events, "each all-reduce was a meeting"


def test_kernels_of_latent_attention_and_shared_experts_have_prices(engine: EngineEnvironment, tmp_path: Path) -> None:
    """Three layers of DeepSeek-V2-Lite, compiled (eager rotation would be FlashInfer's) and without graphs: a prompt that has
    keys and values made of it, one that has not, and decodes. Whole models with their graphs, in both details:
    benchmarks/models.py.
    """
    model = tmp_path / "lite"
    model.mkdir()
    config = json.loads((bundled_models()["deepseek-v2-lite"] / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}), encoding="utf-8")
    flags = ("--compilation-config", '{"cudagraph_mode": "NONE"}', "--max-model-len", "4096")
    kernel = served(engine, tmp_path / "kernel", "kernel", "h100-sxm-80gb", *flags, model_name=str(model))
    assert kernel.attention == ["FLASH_ATTN_MLA"]
    assert kernel.blocks > 10_000
    assert [len(choice) for answer in kernel.ids for choice in answer] == [12, 12]
    assert kernel.shares["unknown"] == 0
