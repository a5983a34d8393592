"""FlashInfer's attention on a virtual B200: its own Python runs, and the stand-ins launch in place of what it would download."""

from __future__ import annotations

from collections.abc import Callable

from hyperlapse.cli.engine_environment import EngineEnvironment

from .conftest import Outcome

CODE = """
import torch
from hyperlapse.integrations.vllm.flashinfer_modules import install
install(); install()
from flashinfer.decode import trtllm_batch_decode_with_kv_cache
from flashinfer.prefill import trtllm_batch_context_with_kv_cache

def tensor(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype, device="cuda")

def ints(*values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")

heads, kv_heads, size, page = 32, 8, 128, 16
cache = tuple(tensor(100, kv_heads, page, size) for _ in range(2))
workspace = tensor(128 << 20, dtype=torch.uint8)
tables = tensor(3, 8, dtype=torch.int32)
scales = {"bmm1_scale": 0.1, "bmm2_scale": 1.0, "kv_layout": "HND", "workspace_buffer": workspace, "kv_cache": cache}
query = tensor(3, heads, size)
out = trtllm_batch_decode_with_kv_cache(
    query=query, block_tables=tables, seq_lens=ints(5, 20, 90), max_seq_len=90, backend="trtllm-gen", **scales)
assert out.shape == query.shape
graph, lengths = torch.cuda.CUDAGraph(), ints(5, 20, 90)
with torch.cuda.graph(graph):
    trtllm_batch_decode_with_kv_cache(
        query=query, block_tables=tables, seq_lens=lengths,
        max_seq_len=90, out=out, backend="trtllm-gen", **scales)
graph.replay()
query = tensor(300, heads, size)
out = trtllm_batch_context_with_kv_cache(
    query=query, block_tables=tables[:2], seq_lens=ints(100, 200), max_q_len=200, max_kv_len=200, batch_size=2,
    cum_seq_lens_q=ints(0, 100, 300), cum_seq_lens_kv=ints(0, 7, 20), **scales)
assert out.shape == query.shape
torch.cuda.synchronize()

import flashinfer.prefill
def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except NotImplementedError as error:
        print(error)

wrapper, one = flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND"), torch.tensor([0, 1], dtype=torch.int32)
refused(wrapper.plan, one, one, one[:1].cuda(), one[1:], heads, kv_heads, size, page, q_data_type=torch.bfloat16)
from flashinfer.jit.cubin_loader import get_artifact
refused(get_artifact, "of/no/release.cubin", "0" * 64)
refused(lambda: flashinfer.prefill.get_trtllm_gen_fmha_module().trtllm_ragged_attention)
"""


def test_attention_launches_kernels_of_the_real_names_and_refuses_the_rest(
    run_program: Callable[..., Outcome], engine: EngineEnvironment
) -> None:
    outcome = run_program(CODE, gpu="b200-sxm-180gb", python=engine.python)
    compiled, downloaded, function = outcome.lines
    assert "module 'batch_prefill_with_kv_cache" in compiled
    assert "would download" in downloaded
    assert "of/no/release.cubin" in downloaded
    assert "fmha_gen.trtllm_ragged_attention" in function
    assert all("choose another backend for this part in vLLM's flags" in line for line in outcome.lines)
    launched = {(one.name, one.args[:4]) for one in outcome.launches if one.name.startswith("fmha")}
    prefix = "fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalP16"
    assert launched == {
        (prefix + "MultiCtasKvCgaVarSeqQ8Kv128StaticSwapsAbForGen", (1, 8, 3, 384)),
        (prefix + "VarSeqQ128Kv128PersistentContext", (3, 32, 1, 512)),
    }
