"""What the integration takes for granted about vLLM's insides, asked of the installed vLLM. No GPU, no run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.engine


def test_graph_table_answers_as_the_engines_dispatcher(in_each: Callable[[str], str]) -> None:
    """Every mode that vLLM resolves to, every number of rows and tokens around each size."""
    printed = in_each(
        """
        import inspect
        from types import SimpleNamespace as N
        from hyperlapse.integrations.vllm.dispatch import GraphTable, graph_name, manager_table
        from hyperlapse.integrations.vllm.runner_v2 import dispatch
        from vllm.config.compilation import CUDAGraphMode
        from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

        compared = graphs = 0
        for mode in (CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL,
                     CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.NONE):
            manager = CudaGraphManager.__new__(CudaGraphManager)
            manager.compilation_config = N(cudagraph_capture_sizes=[1, 2, 4, 8, 16, 24, 32], max_cudagraph_capture_size=32)
            manager.vllm_config = N(speculative_config=None, cache_config=N(use_kda_recoverssm=False))
            manager.cudagraph_mode, manager.max_num_reqs, manager.decode_query_len = mode, 20, 1
            manager.varlen_decode, manager.ubatch_runner, manager.lora_capture_cases = False, None, [0]
            manager._lora_dispatch_map, manager._max_lora_case = {}, 0
            by_lora = "num_active_loras" in inspect.signature(CudaGraphManager.dispatch).parameters
            manager._candidates = {} if by_lora else []
            manager._capture_descs, manager._graphs_captured = {}, True
            manager._init_candidates()
            table = GraphTable.from_json(manager_table(manager).to_json())
            for rows in range(1, 21):
                for tokens in range(rows, 40):
                    for uniform in {None, 1 if tokens == rows else None, tokens // rows if tokens % rows == 0 else None}:
                        desc = dispatch(manager, rows, tokens, uniform)
                        found = table.dispatch(rows, tokens, uniform)
                        assert found == (graph_name(desc.cg_mode), desc.num_tokens), (mode, rows, tokens, uniform)
                        compared += 1
                        graphs += found[0] != "none"
        print(compared, graphs)
        """
    )
    compared, graphs = (int(word) for word in printed.split()[-2:])
    assert compared > 3000
    assert graphs > compared // 3


def test_uniform_tokens_are_the_engines(in_each: Callable[[str], str]) -> None:
    """Batches of decodes, whole prompts, chunks, last tokens of prompts, and prompts of one token."""
    printed = in_each(
        """
        import itertools
        from types import SimpleNamespace as N
        import numpy as np
        from hyperlapse.integrations.vllm.composition import Step
        from hyperlapse.integrations.vllm.versions import prefills_are_uniform
        from vllm.v1.worker.gpu import cudagraph_utils
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner

        kinds = [(5, 5, 1), (5, 9, 1), (7, 0, 7), (7, 3, 2), (7, 0, 2), (7, 6, 1), (1, 0, 1)]  # prefill, computed, new

        def engines(batch):
            new = {str(row): count for row, (_, _, count) in enumerate(batch)}
            tokens, longest = sum(new.values()), max(new.values())
            if hasattr(cudagraph_utils, "get_uniform_token_count"):
                return cudagraph_utils.get_uniform_token_count(len(batch), tokens, longest)
            prefill = np.array([length for length, _, _ in batch])
            states = N(req_id_to_index={row: int(row) for row in new}, prefill_len=N(np=prefill),
                       num_computed_prefill_tokens=np.minimum([computed for _, computed, _ in batch], prefill))
            runner = N(req_states=states, decode_query_len=1, use_pp=False, adaptive_verification=None, pcp_manager=None)
            output = N(num_scheduled_tokens=new, total_num_scheduled_tokens=tokens, scheduled_spec_decode_tokens={})
            return GPUModelRunner.gather_batch_req_state(runner, output, False)[1]

        prefills_too, compared, uniform = prefills_are_uniform("V2"), 0, 0
        for rows in range(1, 4):
            for batch in itertools.combinations_with_replacement(kinds, rows):
                ordered = sorted(batch, key=lambda row: row[2])
                step = Step([""] * rows, [row[2] for row in ordered], [row[1] for row in ordered], [True] * rows)
                found = step.uniform_tokens(prefills_too)
                # graphs for decoding have one token a request: what else is uniform finds none
                assert (found == 1) == (engines(batch) == 1), batch
                compared, uniform = compared + 1, uniform + (found == 1)
        print(compared, uniform)
        """
    )
    compared, uniform = (int(word) for word in printed.split()[-2:])
    assert compared > 100
    assert 10 < uniform < compared - 10


def test_kv_cache_specs_survive_the_profile(in_engine: Callable[[str], str]) -> None:
    in_engine(
        """
        import json, torch
        from hyperlapse.integrations.vllm import profile
        from vllm.v1.attention.backend import MultipleOf
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, MLAAttentionSpec, SlidingWindowSpec
        common = dict(block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
        for spec in (
            FullAttentionSpec(**common),
            FullAttentionSpec(**{**common, "dtype": torch.uint8}, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR),
            FullAttentionSpec(**common, block_stride_alignment=MultipleOf(1024)),
            SlidingWindowSpec(**common, sliding_window=4096),
            MLAAttentionSpec(**{**common, "num_kv_heads": 1, "head_size": 576}),
        ):
            assert profile.decode_spec(json.loads(json.dumps(profile.encode_spec(spec)))) == spec
        """
    )


def test_step_worker_answers_what_the_engine_asks(in_engine: Callable[[str], str]) -> None:
    """Worker methods that vLLM's engine core and executor call by name; a new one must be looked at."""
    printed = in_engine(
        """
        import inspect, re
        from vllm.v1.engine import core
        from vllm.v1.executor import abstract, uniproc_executor
        from hyperlapse.integrations.vllm.step_worker import StepWorker
        from vllm.v1.worker.worker_base import WorkerBase
        called = set()
        for module in (core, abstract, uniproc_executor):
            called.update(re.findall(r'collective_rpc\\(\\s*"(\\w+)"', inspect.getsource(module)))
        inherited = lambda name: getattr(StepWorker, name, None) in (None, getattr(WorkerBase, name, 0))
        print(*sorted(filter(inherited, called)))
        """
    )
    # sleeping, LoRA, profiling and what goes with weights are not supported with the step detail (docs/limitations.md)
    known = {
        "add_lora", "remove_lora", "pin_lora", "list_loras", "sleep", "wake_up", "discard", "profile",
        "save_sharded_state", "compute_weight_checksums",
    }  # fmt: skip
    # WorkerBase's answer is right without a model
    known |= {"set_kv_cache_layout", "supports_draft_weight_updates"}
    assert set(printed.split()) <= known


def test_worker_classes_can_be_resolved_by_the_engine(in_engine: Callable[[str], str]) -> None:
    in_engine(
        """
        from hyperlapse.integrations.vllm import command
        from vllm.utils.import_utils import resolve_obj_by_qualname
        from vllm.v1.worker.worker_base import WorkerBase
        from vllm.v1.metrics.loggers import StatLoggerBase
        for name in command.WORKERS.values():
            assert issubclass(resolve_obj_by_qualname(name), WorkerBase)
        from hyperlapse.integrations.vllm.statistics import RunStatistics
        assert issubclass(RunStatistics, StatLoggerBase)
        """
    )


def test_a_tested_version_has_all_that_is_needed(in_each: Callable[[str], str]) -> None:
    in_each(
        """
        from pathlib import Path
        import vllm
        from hyperlapse.integrations.vllm.versions import TESTED_VERSIONS, missing_in
        assert vllm.__version__ in TESTED_VERSIONS
        missing = missing_in(Path(vllm.__file__).parent)
        assert not missing, missing
        """
    )


def test_entry_points_are_installed(in_engine: Callable[[str], str]) -> None:
    in_engine(
        """
        from importlib.metadata import entry_points
        for group in ("vllm.general_plugins", "vllm.stat_logger_plugins", "vllm.platform_plugins"):
            assert "hyperlapse" in {point.name for point in entry_points(group=group)}, group
        """
    )


def test_importing_the_step_worker_loads_no_attention_backend(in_fresh_engine: Callable[[str], str]) -> None:
    printed = in_fresh_engine(
        """
        import sys
        import vllm.v1.engine.core, vllm.v1.executor.uniproc_executor
        before = set(sys.modules)
        import hyperlapse.integrations.vllm.step_worker
        print(*sorted(set(sys.modules) - before))
        """
    )
    added = printed.split()
    assert not [name for name in added if name.startswith(("flashinfer", "triton", "vllm.v1.attention.backends.f"))]
    assert len(added) < 60, added
