"""A whole engine step: vLLM's operators in its own order, and what lies between them.

The order is that of vLLM 0.23's model runner V2 (worker/gpu/model_runner.py): inputs are prepared by a few small
kernels, the attention metadata by some more, then the forward pass (one CUDA graph, a graph between attentions, or
single launches), then the sampled rows' logits and the sampler, launched one by one whatever the graph mode. A step's
duration counts device time only. What the host needs to launch it is host time and belongs to the host-time model.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperlapse.predictor.attention import ATTENTION_LAUNCHES, BatchTotals
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import ANALYTICAL_ERROR, Operators
from hyperlapse.predictor.prediction import (
    Coverage,
    OperatorPrediction,
    Prediction,
    StepPrediction,
    summarise,
)

_CACHE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class EngineKernels:
    """How many kernels the engine launches for what has no operator of its own, and what an operator is made of.

    Counted in the launches of vLLM 0.23.0 (model runner V2, torch.compile) and its source. copies: index mapping and
    query offsets to the device, scheduler metadata into its buffer; preparation: two constants, positions and lengths,
    last sampled tokens, block tables, slot mappings; preparation_prefill: prompt tokens and four tables of a sequence
    that joins; metadata: FlashAttention's scheduler metadata and the rest of its buffer; sampling: positions and ids
    of the sampled rows, their top-k and top-p (two kernels each), cast and count of the sampled ids, the update of the
    request states, and two more that a step always has; qk_norm_rope: sums of squares, then norm and rotation.
    """

    copies: int = 3
    preparation: int = 6
    preparation_prefill: int = 5
    metadata: int = 2
    qk_norm_rope: int = 2
    rope: int = 1
    sampling: int = 10


class StepPredictor:
    """Durations of steps of one model on one device. predict() costs microseconds: parts are kept by their shape."""

    def __init__(
        self,
        model: ModelConfig,
        device: DeviceSpec,
        database: KernelDatabase | None = None,
        kernels: EngineKernels | None = None,
    ) -> None:
        database = database or KernelDatabase.load(device.database_system)
        self.model = model
        self.device = device
        self.operators = Operators(model, device, database)
        self.kernels = kernels or EngineKernels()
        self._static: dict[tuple[str, int, int, bool], tuple[tuple[OperatorPrediction, ...], int]] = {}

    def predict(self, batch: BatchComposition) -> StepPrediction:
        """The step's operators and their sum."""
        totals = BatchTotals.of(batch)
        prefills = bool(totals.prefills)
        key = (batch.graph, batch.tokens, batch.rows, prefills)
        found = self._static.get(key)
        if found is None:
            if len(self._static) >= _CACHE_LIMIT:
                self._static.clear()
            found = self._static[key] = self._compose(batch.graph, batch.tokens, batch.rows, prefills)
        static, attention_at = found
        prediction = self.operators.attention.predict_of(totals)
        attention = OperatorPrediction("attention", self.model.layers, totals.shape, prediction)
        return summarise((*static[:attention_at], attention, *static[attention_at:]))

    def _compose(
        self, graph: str, tokens: int, rows: int, prefills: bool
    ) -> tuple[tuple[OperatorPrediction, ...], int]:
        """Everything but attention, and where attention stands in it."""
        model, kernels, layers = self.model, self.kernels, self.model.layers
        parts: list[OperatorPrediction] = []

        def memory(name: str, count: int, shape: str, *, label: str = "", split: int = 1) -> None:
            prediction = self.operators.memory(name, tokens, rows, share=1.0 / split)
            parts.append(OperatorPrediction(label or name, count * split, shape, prediction))

        def matrix(name: str, count: int, over: int) -> None:
            n, k = self.operators.gemms[name]
            parts.append(OperatorPrediction(name, count, f"{over} x {k} -> {n}", self.operators.matrix(name, over)))

        over_tokens, over_rows = f"{tokens} tokens", f"{rows} rows"
        preparation = kernels.preparation + (kernels.preparation_prefill if prefills else 0)
        copy = Prediction(self.device.copy_latency_ns, Coverage.ANALYTICAL, ANALYTICAL_ERROR)
        parts.append(OperatorPrediction("input_copies", kernels.copies, over_tokens, copy))
        memory("small", preparation, over_tokens, label="input_preparation")
        memory("small", kernels.metadata, over_tokens, label="attention_metadata")
        before = kernels.copies + preparation + kernels.metadata
        memory("embedding", 1, over_tokens)  # and the norm before the first layer
        if layers > 1:
            memory("input_norm", layers - 1, over_tokens)
        matrix("qkv_proj", layers, tokens)
        rope = kernels.qk_norm_rope if model.qk_norm else kernels.rope
        memory("qk_norm_rope", layers, over_tokens, label="qk_norm_rope" if model.qk_norm else "rope", split=rope)
        memory("kv_cache_write", layers, over_tokens)
        attention_at = len(parts)
        matrix("o_proj", layers, tokens)
        memory("post_attention_norm", layers, over_tokens)
        matrix("gate_up_proj", layers, tokens)
        memory("silu_mul", layers, over_tokens)
        matrix("down_proj", layers, tokens)
        memory("final_norm", 1, over_tokens)
        after = 0
        if rows:
            first = len(parts)
            memory("gather_rows", 1, over_rows)
            matrix("lm_head", 1, rows)
            for name in ("logits_to_float", "temperature", "top_k_mask", "softmax", "top_p_sampling"):
                memory(name, 1, over_rows)
            memory("small", kernels.sampling, over_rows, label="sampling_state")
            after = sum(part.count for part in parts[first:])
        # A layer: two norms, four products, rope, cache write, attention, SiLU. The first norm is the embedding's.
        forward = 1 + layers * (2 + 4 + rope + 1 + ATTENTION_LAUNCHES + 1)
        parts += self._gaps(graph, before, forward, after)
        return tuple(parts), attention_at

    def _gaps(self, graph: str, before: int, forward: int, after: int) -> list[OperatorPrediction]:
        """Device time in which no kernel of the step runs; the gap after its last kernel belongs to the next step.

        before, forward, after: kernels launched before, in and after the forward pass.
        """
        device, layers = self.device, self.model.layers
        gaps: list[OperatorPrediction] = []
        if graph == "full":
            graphs, in_graph = 1, forward - 1
        elif graph == "piecewise":
            # Attention and the cache write before it are launched between the pieces.
            graphs = layers + 1
            in_graph = forward - layers * (1 + ATTENTION_LAUNCHES) - graphs
        else:
            graphs, in_graph = 0, 0
        single = max(before + forward + after - in_graph - 1, 0)  # a graph follows what is before it like a launch
        for name, count, gap_ns in (
            ("graph_launch", graphs, device.graph_launch_ns),
            ("graph_gaps", in_graph, device.graph_gap_ns),
            ("launch_gaps", single, device.launch_gap_ns),
        ):
            if count:
                gap = Prediction(gap_ns, Coverage.ANALYTICAL, ANALYTICAL_ERROR)
                gaps.append(OperatorPrediction(name, count, "", gap))
        return gaps
