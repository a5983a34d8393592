"""Which workers make a step together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hyperlapse.integrations.vllm.virtual import Peers


def config(instance: str, ranks: int, replica: int = 0) -> Any:
    return SimpleNamespace(
        instance_id=instance,
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks, data_parallel_rank=0, data_parallel_index=replica),
    )


def test_one_gpu_has_no_peers() -> None:
    assert Peers.of(config("a", 1)) is None


def test_ranks_of_one_engine_have_one_group_and_replicas_and_other_engines_have_others() -> None:
    found = [Peers.of(config("a", 2)), Peers.of(config("a", 2)), Peers.of(config("a", 2, 1)), Peers.of(config("b", 2))]
    assert found[0] == found[1] == Peers(found[0].group, 2) if found[0] else False
    assert len({each.group for each in found if each is not None}) == 3
    assert all(each is not None and 0 < each.group < 2**64 for each in found)
