"""A whole engine step: the model's operators in the engine's order, and what lies between them.

Inputs are prepared by a few small kernels, the attention metadata by some more, then comes the forward pass (one CUDA
graph, a graph between attentions, or single launches), then the sampled rows' logits and the sampler, launched one by
one whatever the graph mode. How many small kernels those are is the engine's data (engines.py).
A step's duration counts device time only. What the host needs to launch it is host time and belongs to the host-time
model.
"""

from __future__ import annotations

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy
from hyperlapse.predictor.attention import BatchTotals
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.engines import StepRecipe
from hyperlapse.predictor.experts import EXPERT_LAUNCHES
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.operators import Operators, analytical
from hyperlapse.predictor.prediction import OperatorPrediction, StepPrediction, Sums, summarise

_CACHE_LIMIT = 4096

_Operators = tuple[OperatorPrediction, ...]


class StepPredictor:
    """Durations of steps of one model on one device. predict() costs microseconds: parts are kept by their shape."""

    def __init__(
        self,
        model: ModelConfig,
        device: DeviceSpec,
        database: KernelDatabase,
        recipe: StepRecipe | None = None,
        accuracy: Accuracy = accuracies.DEFAULT,
    ) -> None:
        """recipe: what the engine launches around the operators; None for the operators alone."""
        self.model = model
        self.device = device
        self.recipe = recipe = recipe or StepRecipe()
        self.operators = Operators(model, device, database, attention_launches=recipe.attention, accuracy=accuracy)
        self._static: dict[tuple[str, int, int, bool, int], tuple[_Operators, _Operators, Sums]] = {}

    def predict(self, batch: BatchComposition) -> StepPrediction:
        """The step's operators and their sum."""
        totals = BatchTotals.of(batch)
        prefills = bool(totals.prefills)
        kernels = self.recipe.attention * (2 if totals.mixed and self.device.separate_attention else 1)
        key = (batch.graph, batch.tokens, batch.rows, prefills, kernels)
        found = self._static.get(key)
        if found is None:
            if len(self._static) >= _CACHE_LIMIT:
                self._static.clear()
            static, attention_at = self._compose(batch.graph, batch.tokens, batch.rows, prefills, kernels)
            found = self._static[key] = (static[:attention_at], static[attention_at:], Sums.of(static))
        before, after, sums = found
        prediction = self.operators.attention.predict_of(totals)
        attention = OperatorPrediction("attention", self.model.layers, totals.shape, prediction)
        return summarise((*before, attention, *after), (sums, Sums.of((attention,))))

    def _compose(
        self, graph: str, tokens: int, rows: int, prefills: bool, attention: int
    ) -> tuple[tuple[OperatorPrediction, ...], int]:
        """Everything but attention, and where attention stands in it. attention: kernels of a layer's."""
        model, recipe, layers = self.model, self.recipe, self.model.layers
        parts: list[OperatorPrediction] = []

        def memory(name: str, count: int, shape: str, *, label: str = "", split: int = 1) -> None:
            prediction = self.operators.memory(name, tokens, rows, share=1.0 / split)
            if count * split:
                parts.append(OperatorPrediction(label or name, count * split, shape, prediction))

        def matrix(name: str, count: int, over: int) -> None:
            n, k = self.operators.gemms[name]
            parts.append(OperatorPrediction(name, count, f"{over} x {k} -> {n}", self.operators.matrix(name, over)))

        def reduce(name: str, count: int) -> None:
            """The partial sums of the GPUs become one tensor of the hidden width on each of them."""
            if model.tp > 1 and count:
                size_bytes = tokens * model.hidden * model.dtype_bytes
                prediction = self.operators.collectives.all_reduce(
                    size_bytes, model.tp, captured=graph != "none", own_below_bytes=recipe.own_all_reduce_bytes
                )
                parts.append(OperatorPrediction(name, count, f"{size_bytes} bytes, {model.tp} GPUs", prediction))

        over_tokens, over_rows = f"{tokens} tokens", f"{rows} rows"
        preparation = recipe.preparation + (recipe.preparation_prefill if prefills else 0)
        if recipe.copies:
            copy = analytical(self.device.copy_latency_ns)
            parts.append(OperatorPrediction("input_copies", recipe.copies, over_tokens, copy))
        memory("small", preparation, over_tokens, label="input_preparation")
        memory("small", recipe.metadata, over_tokens, label="attention_metadata")
        before = recipe.copies + preparation + recipe.metadata
        memory("embedding", 1, over_tokens)  # and the norm before the first layer
        reduce("embedding_all_reduce", 1)
        if layers > 1:
            memory("input_norm", layers - 1, over_tokens)
        matrix("qkv_proj", layers, tokens)
        rope = recipe.qk_norm_rope if model.qk_norm else recipe.rope
        memory("qk_norm_rope", layers, over_tokens, label="qk_norm_rope" if model.qk_norm else "rope", split=rope)
        memory("kv_cache_write", layers, over_tokens)
        attention_at = len(parts)
        matrix("o_proj", layers, tokens)
        reduce("attention_all_reduce", layers)
        memory("post_attention_norm", layers, over_tokens)
        if model.experts:
            matrix("router", layers, tokens)
            memory("expert_routing", layers, over_tokens)
            experts = f"{tokens} tokens over {model.active_experts} of {model.experts}"
            parts.append(OperatorPrediction("experts", layers, experts, self.operators.experts(tokens)))
        else:
            matrix("gate_up_proj", layers, tokens)
            memory("silu_mul", layers, over_tokens)
            matrix("down_proj", layers, tokens)
            reduce("feed_forward_all_reduce", layers)
        memory("final_norm", 1, over_tokens)
        after = 0
        if rows:
            first = len(parts)
            memory("gather_rows", 1, over_rows)
            matrix("lm_head", 1, rows)
            if model.tp > 1:  # every GPU samples from all logits
                size_bytes = rows * model.vocab_shard * model.tp * model.dtype_bytes
                gathered = self.operators.collectives.nccl("all_gather", size_bytes, model.tp)
                shape = f"{size_bytes} bytes, {model.tp} GPUs"
                parts.append(OperatorPrediction("logits_all_gather", 1, shape, gathered))
            for name in ("logits_to_float", "temperature", *model.sampling):
                memory(name, 1, over_rows)
            memory("small", recipe.sampling, over_rows, label="sampling_state")
            after = sum(part.count for part in parts[first:])
        # A layer: two norms, rope, cache write, attention, two products and what comes after attention: two products and
        # SiLU, or the router's product, the choice of experts and their kernels. The first norm is the embedding's.
        feed_forward = 2 + EXPERT_LAUNCHES if model.experts else 3
        forward = 1 + layers * (2 + 2 + rope + 1 + attention + feed_forward)
        if model.tp > 1:
            forward += 1 + 2 * layers
        parts += self._gaps(graph, before, forward, after, attention)
        return tuple(parts), attention_at

    def _gaps(self, graph: str, before: int, forward: int, after: int, attention: int) -> list[OperatorPrediction]:
        """Device time in which no kernel of the step runs; the gap after its last kernel belongs to the next step.

        before, forward, after: kernels launched before, in and after the forward pass; attention: of them a layer's.
        """
        device, layers = self.device, self.model.layers
        gaps: list[OperatorPrediction] = []
        if graph == "full":
            graphs, in_graph = 1, forward - 1
        elif graph == "piecewise":
            # Attention and the cache write before it are launched between the pieces.
            graphs = layers + 1
            in_graph = forward - layers * (1 + attention) - graphs
        else:
            graphs, in_graph = 0, 0
        single = max(before + forward + after - in_graph - 1, 0)  # a graph follows what is before it like a launch
        for name, count, gap_ns in (
            ("graph_launch", graphs, device.graph_launch_ns),
            ("graph_gaps", in_graph, device.graph_gap_ns),
            ("launch_gaps", single, device.launch_gap_ns),
        ):
            if count:
                gaps.append(OperatorPrediction(name, count, "", analytical(gap_ns)))
        return gaps
