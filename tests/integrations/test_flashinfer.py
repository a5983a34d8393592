"""The stand-ins for FlashInfer's kernels: names as the real ones, and every name has a price."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlapse.integrations.vllm.flashinfer_attention import kernel_name
from hyperlapse.predictor.kernels import KernelMap

KERNELS = Path(__file__).parents[2] / "integrations" / "vllm" / "kernels.yaml"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a name is made of."""

    shape: tuple[int, ...]
    dtype: str = "torch.bfloat16"


QUERY, KEYS, OUT = Tensor((7, 32, 128)), Tensor((1000, 8, 16, 128)), Tensor((7, 32, 128))


@pytest.mark.parametrize(("phase", "part"), [("Decode", "decodes"), ("Context", "prefills")])
def test_attention_is_priced_by_its_part_of_the_batch(phase: str, part: str) -> None:
    rule = KernelMap.load([KERNELS]).find(kernel_name(QUERY, KEYS, OUT, phase))
    assert rule is not None
    assert (rule.operator, rule.part, rule.share) == ("attention", part, 1.0)


def test_names_tell_types_and_pages() -> None:
    # as a public profile of SGLang on a B200, with pages of 64 tokens, has it
    assert kernel_name(QUERY, Tensor((1000, 8, 64, 128)), OUT, "Context") == (
        "fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalP64VarSeqQ128Kv128PersistentContext"
    )
    fp8 = Tensor(KEYS.shape, "torch.float8_e4m3fn")
    assert "QBfloat16KvE4m3OBfloat16H128PagedKvCausalP16" in kernel_name(QUERY, fp8, OUT, "Decode")
    with pytest.raises(NotImplementedError, match="uint8 has no stand-in"):
        kernel_name(QUERY, Tensor(KEYS.shape, "torch.uint8"), OUT, "Decode")
