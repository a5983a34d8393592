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
from hyperlapse.predictor.experts import expert_launches
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
        self.operators = Operators(
            model,
            device,
            database,
            attention_launches=recipe.attention,
            short_prompt=recipe.latent_short_prompt,
            accuracy=accuracy,
        )
        self._static: dict[tuple[str, int, int, bool, int, tuple[int, int]], tuple[_Operators, _Operators, Sums]] = {}

    def predict(self, batch: BatchComposition) -> StepPrediction:
        """The step's operators and their sum."""
        totals = BatchTotals.of(batch)
        prefills = bool(totals.prefills)
        kernels = self.recipe.attention * self.operators.attention.kernels(totals)
        latent = self._latent_rows(batch, totals)
        key = (batch.graph, batch.tokens, batch.rows, prefills, kernels, latent)
        found = self._static.get(key)
        if found is None:
            if len(self._static) >= _CACHE_LIMIT:
                self._static.clear()
            static, attention_at = self._compose(batch.graph, batch.tokens, batch.rows, prefills, kernels, latent)
            found = self._static[key] = (static[:attention_at], static[attention_at:], Sums.of(static))
        before, after, sums = found
        prediction = self.operators.attention.predict_of(totals)
        attention = OperatorPrediction("attention", self.model.layers, totals.shape, prediction)
        return summarise((*before, attention, *after), (sums, Sums.of((attention,))))

    def _latent_rows(self, batch: BatchComposition, totals: BatchTotals) -> tuple[int, int]:
        """(rows that attend to latent vectors, rows of keys and values made from them); padding goes with the former."""
        if self.model.latent is None:
            return 0, 0
        long = self.operators.attention.long_prompts(totals)
        prompts = sum(new * count for new, _, count in long)
        over = sum(context * count for _, context, count in long)
        rows = batch.tokens if batch.graph == "full" else sum(group.new * group.count for group in batch.groups)
        return rows - prompts, prompts + over

    def _compose(
        self, graph: str, tokens: int, rows: int, prefills: bool, attention: int, latent: tuple[int, int]
    ) -> tuple[tuple[OperatorPrediction, ...], int]:
        """Everything but attention, and where attention stands in it. attention: kernels of a layer's."""
        model, recipe, layers = self.model, self.recipe, self.model.layers
        sparse = layers - model.dense_layers if model.experts else 0  # layers with experts
        parts: list[OperatorPrediction] = []
        launches = 0

        def memory(name: str, count: int, shape: str, *, label: str = "", split: int = 1, over: int = tokens) -> None:
            nonlocal launches
            if count * split:
                prediction = self.operators.memory(name, over, rows, share=1.0 / split)
                parts.append(OperatorPrediction(label or name, count * split, shape, prediction))
                launches += count * split

        def matrix(name: str, count: int, over: int) -> None:
            nonlocal launches
            if count and over:
                n, k = self.operators.gemms[name]
                parts.append(OperatorPrediction(name, count, f"{over} x {k} -> {n}", self.operators.matrix(name, over)))
                launches += count * self.operators.launches_of(name)

        def by_head(name: str, over: int) -> None:
            nonlocal launches
            if over:
                n, k = self.operators.by_head[name]
                shape = f"{model.heads} x {over} x {k} -> {n}"
                parts.append(OperatorPrediction(name, layers, shape, self.operators.matrix_by_head(name, over)))
                launches += layers

        def reduce(name: str, count: int) -> None:
            """The partial sums of the GPUs become one tensor of the hidden width on each of them."""
            nonlocal launches
            if model.tp > 1 and count:
                size_bytes = tokens * model.hidden * model.dtype_bytes
                prediction = self.operators.collectives.all_reduce(
                    size_bytes, model.tp, captured=graph != "none", own_below_bytes=recipe.own_all_reduce_bytes
                )
                parts.append(OperatorPrediction(name, count, f"{size_bytes} bytes, {model.tp} GPUs", prediction))
                launches += count

        over_tokens, over_rows = f"{tokens} tokens", f"{rows} rows"
        preparation = recipe.preparation + (recipe.preparation_prefill if prefills else 0)
        if recipe.copies:
            copy = analytical(self.device.copy_latency_ns)
            parts.append(OperatorPrediction("input_copies", recipe.copies, over_tokens, copy))
        memory("small", preparation, over_tokens, label="input_preparation")
        memory("small", recipe.metadata, over_tokens, label="attention_metadata")
        before = recipe.copies + launches
        launches = 0
        memory("embedding", 1, over_tokens)  # and the norm before the first layer
        reduce("embedding_all_reduce", 1)
        memory("input_norm", layers - 1, over_tokens)
        for name in self.operators.projections:
            matrix(name, layers, tokens)
        if model.latent is None:
            rope, label = (recipe.qk_norm_rope, "qk_norm_rope") if model.qk_norm else (recipe.rope, "rope")
        else:
            rope, label = recipe.latent_norm_rope + (1 if model.latent.q_rank else 0), "latent_norm_rope"
        memory("qk_norm_rope", layers, over_tokens, label=label, split=rope)
        inside = launches
        memory("kv_cache_write", layers, over_tokens)
        shared, own = latent
        by_head("q_absorb", shared)
        matrix("kv_b_proj", layers, own)
        memory("key_concat", layers if own else 0, f"{own} tokens", over=own)
        attention_at = len(parts)
        launches += layers * attention
        by_head("v_expand", shared)
        outside = (launches - inside) // layers  # of a graph where attention is launched between its pieces
        matrix("o_proj", layers, tokens)
        reduce("attention_all_reduce", layers)
        memory("post_attention_norm", layers, over_tokens)
        if model.experts:
            matrix("dense_gate_up_proj", model.dense_layers, tokens)
            matrix("router", sparse, tokens)
            memory("expert_routing", sparse, over_tokens)
            matrix("shared_gate_up_proj", sparse if model.shared_intermediate else 0, tokens)
            memory("silu_mul", self.operators.activations, over_tokens)
            matrix("shared_down_proj", sparse if model.shared_intermediate else 0, tokens)
            experts = f"{tokens} tokens over {model.active_experts} of {model.experts}"
            parts.append(OperatorPrediction("experts", sparse, experts, self.operators.experts(tokens)))
            launches += sparse * expert_launches(model.weights)
            matrix("dense_down_proj", model.dense_layers, tokens)
        else:
            matrix("gate_up_proj", layers, tokens)
            memory("silu_mul", layers, over_tokens)
            matrix("down_proj", layers, tokens)
        reduce("feed_forward_all_reduce", layers)
        memory("final_norm", 1, over_tokens)
        forward, launches = launches, 0
        if rows:
            memory("gather_rows", 1, over_rows)
            matrix("lm_head", 1, rows)
            if model.tp > 1:  # every GPU samples from all logits
                size_bytes = rows * model.vocab_shard * model.tp * model.dtype_bytes
                gathered = self.operators.collectives.nccl("all_gather", size_bytes, model.tp)
                shape = f"{size_bytes} bytes, {model.tp} GPUs"
                parts.append(OperatorPrediction("logits_all_gather", 1, shape, gathered))
                launches += 1
            for name in ("logits_to_float", "temperature", *model.sampling):
                memory(name, 1, over_rows)
            memory("small", recipe.sampling, over_rows, label="sampling_state")
        parts += self._gaps(graph, before, forward, launches, outside)
        return tuple(parts), attention_at

    def _gaps(self, graph: str, before: int, forward: int, after: int, outside: int) -> list[OperatorPrediction]:
        """Device time in which no kernel of the step runs; the gap after its last kernel belongs to the next step.

        before, forward, after: kernels launched before, in and after the forward pass; outside: of a layer's, those that
        are launched between the pieces of a graph in pieces (attention, the cache write before it).
        """
        device, layers = self.device, self.model.layers
        gaps: list[OperatorPrediction] = []
        if graph == "full":
            graphs, in_graph = 1, forward - 1
        elif graph == "piecewise":
            graphs = layers + 1
            in_graph = forward - layers * outside - graphs
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
