"""The stand-ins for kernels that are compiled for their shape: the real names, each with a price of that shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperlapse.integrations.vllm.deep_gemm_kernels import kernel_name
from hyperlapse.integrations.vllm.flashinfer_modules import _BlockScaleModule
from hyperlapse.predictor.kernels import KernelMap

KERNELS = KernelMap.load([Path(__file__).parents[2] / "integrations" / "vllm" / "kernels.yaml"])


@pytest.mark.parametrize("capability", [9, 10, 12])
def test_the_name_has_the_shape(capability: int) -> None:
    name = kernel_name(24576, 4096, capability)
    rule = KERNELS.find(name)
    assert rule is not None
    assert rule.operator == "quantised_product"
    found = rule.pattern.search(name)
    assert found is not None
    assert (found["n"], found["k"]) == ("24576", "4096")
    assert len("sm90_fp8_gemm_1d2d_impl") == 23  # the length that stands before it
    assert kernel_name(512, 256, 9).startswith("_ZN9deep_gemm23sm90_fp8_gemm_1d2d_implI")


def test_a_device_without_such_kernels_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"capability 8\.x"):
        kernel_name(512, 256, 8)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("_ZN9deep_gemm22fp8_gemm_kernel_swapABILj6144ELj4096E", "quantised_product"),
        ("_ZN9deep_gemm15fp8_gemm_kernelILj6144ELj4096E", "quantised_product"),
        ("_ZN12tensorrt_llm7kernels19fp8_blockscale_gemm18scale_1x128_kernelI", "included"),
        ("_ZN7cutlass13device_kernelIN4vllm24cutlass_3x_gemm_sm90_fp8INS_12float_e4m3_tE", "quantised_product"),
        ("triton_red_fused__to_copy_abs_amax_clamp_cutlass_scaled_mm_div_mul_reciprocal_unsqueeze_view_0", "included"),
        ("triton_red_fused__to_copy_abs_amax_clamp_cutlass_scaled_mm_div_fused_add_rms_norm_mul_1", "input_norm"),
        ("triton_red_fused__to_copy_abs_amax_clamp_cutlass_scaled_mm_div_mul_silu_slice_2", "silu_mul"),
        ("_ZN4vllm27concat_and_cache_mla_kernelI13__nv_bfloat16S1_E", "kv_cache_write"),
        ("_ZN4vllm18act_and_mul_kernelIN3c108BFloat16E", "expert_activation"),
    ],
)
def test_kernels_of_quantised_and_latent_models(name: str, operator: str) -> None:
    rule = KERNELS.find(name)
    assert rule is not None
    assert rule.operator == operator


# As torch and FlashAttention 3 mangle them on an H100: latent vectors, keys of a long prompt, and ordinary heads.
FORWARD = (
    "_ZN7cutlass13device_kernelIN5flash20enable_sm90_or_laterINS1_16FlashAttnFwdSm90INS1_25CollectiveMainloopFwdSm90"
)
TILE = "ILi2EN4cute5tupleIJNS5_1CILi1EEES8_S8_EEENS6_IJNS7_ILi64EEE"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{FORWARD}{TILE}SA_SA_EEELi512ENS_10bfloat16_t", "decodes"),
        (f"{FORWARD}{TILE}NS7_ILi128EEENS7_ILi192EEEEEELi128ENS_10bfloat16_t", "prefills"),
        (f"{FORWARD}{TILE}NS7_ILi128EEESB_EEELi128ENS_10bfloat16_t", ""),
    ],
)
def test_kernels_of_attention(name: str, part: str) -> None:
    rule = KERNELS.find(name)
    assert rule is not None
    assert (rule.operator, rule.part) == ("attention", part)


def test_the_workspace_of_block_scaled_products() -> None:
    """Of its three runners the one that quantises weights takes most: their bytes and scales, beside the rows'."""
    module = _BlockScaleModule()
    assert module.get_workspace_size(1, 4096, 4096) == 4 * 4096 + 32 * 32 * 4 + 4096 * 4096 + 32 * 32 * 4
    with pytest.raises(NotImplementedError, match=r"fp8_blockscale_gemm\.moe_gemm"):
        module.moe_gemm()
