"""The operators of a transformer step, each with one function for its duration.

Both details use these: a step priced as a whole counts them in the engine's order (step.py), and a kernel that was
really launched is priced as an operator, or a share of one (kernels.py). That is why the two agree.

Memory-bound operators have no measured table. Where a product's file has measured figures for one (MemoryCost), they are
used; else it costs a fixed part and its bytes at the share of the peak bandwidth that the device facts state. The bytes
are counted here, operator by operator, for kernels as compilers fuse
them (residual additions into norms, SiLU into its product).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy
from hyperlapse.predictor.attention import AttentionModel, BatchTotals
from hyperlapse.predictor.collectives import CollectiveModel
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import ExpertConfig, KernelDatabase, ProductTable
from hyperlapse.predictor.devices import DeviceSpec, MemoryCost
from hyperlapse.predictor.experts import ExpertModel
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.power import PowerLimit
from hyperlapse.predictor.prediction import Coverage, DatabaseError, Prediction, PredictorError, UnsupportedModelError
from hyperlapse.predictor.quantization import BFLOAT16, FP8, weight_bytes_of

_FLOAT_BYTES = 4
_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a memory-bound operator moves: per token, per sampled row, and over a row by one thread block.

    row_walks: times that one thread block reads a whole row of logits, for kernels with one block a row.
    """

    token_bytes: float = 0.0
    row_bytes: float = 0.0
    row_walks: float = 0.0


def traffic_of(model: ModelConfig) -> dict[str, Traffic]:
    """Bytes of each memory-bound operator of a model, reads and writes, for one execution."""
    size, hidden, vocab = model.dtype_bytes, model.hidden, model.vocab
    rotated = model.q_width + model.kv_width
    latent = model.latent
    norm_rope = (3 if model.qk_norm else 2) * rotated * size + model.head_dim * size + _INDEX_BYTES
    cached = 2 * model.kv_width
    if (
        latent is not None
    ):  # one key for all heads is rotated, and a part of each query; the latent vectors are normalised
        norms = latent.kv_rank + latent.q_rank
        norm_rope = 2 * ((model.heads + 1) * latent.rope + norms) * size + latent.rope * size + _INDEX_BYTES
        cached = latent.cached
    # With experts: SiLU of the dense layers and of the shared experts, whose kernels do not tell which; their mean.
    activated = model.intermediate
    if model.experts:
        sparse = model.layers - model.dense_layers if model.shared_intermediate else 0
        widths = sparse * model.shared_intermediate + model.dense_layers * model.dense_intermediate
        activated = round(widths / max(sparse + model.dense_layers, 1))
    sums = 5 if model.shared_intermediate else 4  # with shared experts two results are added to the residual
    return {
        # With the first norm: one read, the residual and the normalised row written.
        "embedding": Traffic(token_bytes=3 * hidden * size + _INDEX_BYTES),
        # The residual is added and written back in the same kernel: two reads, two writes.
        "input_norm": Traffic(token_bytes=sums * hidden * size),
        "post_attention_norm": Traffic(token_bytes=4 * hidden * size),
        "final_norm": Traffic(token_bytes=4 * hidden * size),
        # Queries and keys read and written, the sines and cosines of each token's position; head norms read once more.
        "qk_norm_rope": Traffic(token_bytes=norm_rope),
        "kv_cache_write": Traffic(token_bytes=cached * (size + model.kv_dtype_bytes) + _INDEX_BYTES),
        "silu_mul": Traffic(token_bytes=3 * activated * size),
        # Keys of a long prompt: each head's own part and the shared, rotated one.
        "key_concat": Traffic(token_bytes=2 * model.q_width * size if latent is not None else 0),
        "gather_rows": Traffic(row_bytes=2 * hidden * size + _INDEX_BYTES),
        "logits_to_float": Traffic(row_bytes=vocab * (size + _FLOAT_BYTES)),
        "temperature": Traffic(row_bytes=2 * vocab * _FLOAT_BYTES),
        # FlashInfer 0.6's radix selection shares a row of this size among three thread blocks and keeps it in shared
        # memory; torch's softmax walks over a row for the maximum, for the sum, and to write; rejection sampling after
        # a top-k mask accepts in its first round: one walk for the sample, one for the mass above it.
        "top_k_mask": Traffic(row_bytes=2 * vocab * _FLOAT_BYTES, row_walks=1 / 3),
        "softmax": Traffic(row_bytes=2 * vocab * _FLOAT_BYTES, row_walks=3),
        "top_p_sampling": Traffic(row_bytes=vocab * _FLOAT_BYTES, row_walks=2),
        # Without top-k and top-p: the largest logit after noise, a row shared by many thread blocks.
        "gumbel_sampling": Traffic(row_bytes=vocab * _FLOAT_BYTES),
        # Softmax over the router's scores and the choice of experts: scores read, weights and indices written.
        "expert_routing": Traffic(token_bytes=model.experts * size + model.active_experts * 2 * _FLOAT_BYTES),
        # A few bytes a sequence: what counts is that it is a kernel.
        "small": Traffic(),
    }


QUANTISED_LAUNCHES = 2
"""Kernels of a product with quantised weights where it is measured: its inputs are quantised first."""

# Products before attention, in the engine's order.
_PROJECTIONS = ("qkv_proj", "qkv_a_proj", "q_b_proj", "kv_a_proj", "q_proj")

_NEVER_QUANTISED = ("router", "lm_head")


def gemms_of(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(n, k) of each matrix product of a model; grouped products of experts are none."""
    hidden, latent = model.hidden, model.latent
    gemms = {"lm_head": (model.vocab_shard, hidden)}
    if latent is None:
        gemms["qkv_proj"] = (model.q_width + 2 * model.kv_width, hidden)
        gemms["o_proj"] = (hidden, model.q_width)
    else:
        if latent.q_rank:
            gemms["qkv_a_proj"] = (latent.q_rank + latent.cached, hidden)
            gemms["q_b_proj"] = (model.q_width, latent.q_rank)
        else:
            gemms["kv_a_proj"] = (latent.cached, hidden)
            gemms["q_proj"] = (model.q_width, hidden)
        gemms["kv_b_proj"] = (model.heads * (latent.nope + latent.value), latent.kv_rank)
        gemms["o_proj"] = (hidden, model.heads * latent.value)
    if not model.experts:
        return {
            **gemms,
            "gate_up_proj": (2 * model.intermediate, hidden),
            "down_proj": (hidden, model.intermediate),
        }
    gemms["router"] = (model.experts, hidden)
    if model.shared_intermediate:
        gemms["shared_gate_up_proj"] = (2 * model.shared_intermediate, hidden)
        gemms["shared_down_proj"] = (hidden, model.shared_intermediate)
    if model.dense_layers:
        gemms["dense_gate_up_proj"] = (2 * model.dense_intermediate, hidden)
        gemms["dense_down_proj"] = (hidden, model.dense_intermediate)
    return gemms


def products_by_head(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(n, k) of the products that each head makes with weights of its own: with latent attention, queries that fit the
    latent vectors, and values of what was attended to.
    """
    if model.latent is None:
        return {}
    return {
        "q_absorb": (model.latent.kv_rank, model.latent.nope),
        "v_expand": (model.latent.value, model.latent.kv_rank),
    }


def analytical(duration_ns: float) -> Prediction:
    """A duration by physics alone."""
    return Prediction(round(duration_ns), Coverage.ANALYTICAL, accuracies.ANALYTICAL.median, accuracies.ANALYTICAL.p90)


def quantised_gemm(
    database: KernelDatabase, model: ModelConfig, device: DeviceSpec, accuracy: Accuracy
) -> GemmModel | None:
    """Products with the model's quantised weights; None where it has none. Raises UnsupportedModelError where nobody
    measured them on this device.
    """
    if model.weights == BFLOAT16:
        return None
    try:
        table = database.gemm(model.weights)
    except DatabaseError as error:
        raise UnsupportedModelError(f"{model.name}: its weights cannot be priced on {device.name}: {error}") from error
    element_bytes = weight_bytes_of(model.weights)
    return GemmModel(
        table, device, element_bytes, accuracy, launches=QUANTISED_LAUNCHES, family=accuracies.QUANTISED_GEMM
    )


class Operators:
    """Durations of one model's operators on one device; predictions leave out the gap after the kernel."""

    def __init__(
        self,
        model: ModelConfig,
        device: DeviceSpec,
        database: KernelDatabase,
        *,
        attention_launches: int = 2,
        short_prompt: int = 0,
        accuracy: Accuracy = accuracies.DEFAULT,
    ) -> None:
        """Raises UnsupportedModelError for a model with a part that nobody measured on this device."""
        self.model = model
        self.device = device
        self.accuracy = accuracy
        self.gemm = GemmModel(database.gemm(BFLOAT16), device, model.dtype_bytes, accuracy)
        self.quantised = quantised_gemm(database, model, device, accuracy)
        self.attention = AttentionModel(
            database, model, device, launches=attention_launches, short_prompt=short_prompt, accuracy=accuracy
        )
        self._experts: ExpertModel | None = None
        if model.experts:
            shape = model.hidden, model.intermediate, model.active_experts, model.experts
            config = ExpertConfig(*shape, model.weights, model.tp)
            self._experts = ExpertModel.of(database, config, device, model.name)
        self.gemms = gemms_of(model)
        self.by_head = products_by_head(model)
        latent = model.latent
        self._by_head: dict[str, ProductTable] = {}
        if latent is not None and (latent.kv_rank, latent.nope, latent.value) == (512, 128, 128):
            for name, measured in (("q_absorb", "pre"), ("v_expand", "post")):
                table = database.latent_product(measured, model.heads)
                if table is not None:
                    self._by_head[name] = table
        self.projections = [name for name in _PROJECTIONS if name in self.gemms]
        self.collectives = CollectiveModel(database, device, accuracy)
        self.power = PowerLimit(device, self._dense_ns)
        self.traffic = traffic_of(model)
        self._measured = {cost.operator: cost for cost in device.memory_operators}
        unknown = sorted(set(self._measured) - set(self.traffic))
        if unknown:
            raise PredictorError(
                f"{device.name}: `memory_operators` has {unknown[0]!r}, which is none (known: {', '.join(sorted(self.traffic))})"
            )

    def matrix(self, name: str, rows: int) -> Prediction:
        """A matrix product of the model over this many rows, with the quantisation of its inputs where it has any."""
        found = self.power.apply(self._product(name, rows), rows)
        if self.model.dtype != BFLOAT16 and found.coverage is Coverage.MEASURED:
            # float16 is taken to cost what bfloat16 costs: the same tensor-core rate and bytes.
            error = self.accuracy.of(accuracies.GEMM, Coverage.INTERPOLATED)
            return Prediction(found.duration_ns, Coverage.INTERPOLATED, error.median, error.p90)
        return found

    def matrix_by_head(self, name: str, rows: int) -> Prediction:
        """A product of each head's own weights, over this many rows (by_head); one launch. Measured as such, else priced as
        one product as wide as all of them.
        """
        n, k = self.by_head[name]
        table = self._by_head.get(name)
        if table is None or rows <= 0:
            return self.gemm.predict(rows, n, k, self.model.heads)
        last = int(table.tokens[-1])
        latency_ns = float(np.interp(rows, table.tokens, table.latency_ns)) * max(rows / last, 1.0)
        coverage = Coverage.MEASURED if rows in table.tokens else Coverage.INTERPOLATED
        coverage = Coverage.EXTRAPOLATED if rows > last else coverage
        error = self.accuracy.of(accuracies.GEMM, coverage)
        light_ns = self.gemm.light_ns(rows, n, k, self.model.heads)
        duration_ns = max(latency_ns - self.device.graph_gap_ns, light_ns)
        return Prediction(round(duration_ns), coverage, error.median, error.p90)

    def head_product(self, rows: int, n: int, k: int, batch: int) -> Prediction | None:
        """The same for a launch that has these shapes; None where it is no such product of the model."""
        names = [name for name, shape in self.by_head.items() if shape == (n, k) and batch == self.model.heads]
        return self.matrix_by_head(names[0], rows) if names else None

    @property
    def activations(self) -> int:
        """Executions of SiLU outside of experts, in a model with experts: the dense layers', and the shared experts'."""
        model = self.model
        return model.dense_layers + (model.layers - model.dense_layers if model.shared_intermediate else 0)

    def quantised_product(self, rows: int, shape: tuple[int, int] | None = None) -> Prediction | None:
        """A product of this shape (n, k) with quantised weights over this many rows; None for a model without any.

        Without a shape, for kernels that do not tell theirs: what the quantised products of a layer take on average. Each
        is as often launched as every other, so that a step's sum is right.
        """
        if self.quantised is not None and shape is not None:
            return self.power.apply(self.quantised.predict(rows, *shape), rows)
        names = [name for name in self.gemms if name not in _NEVER_QUANTISED]
        if self.quantised is None or not names:
            return None
        every = [self.matrix(name, rows) for name in names]
        duration_ns = round(sum(each.duration_ns for each in every) / len(every))
        worst = max(every, key=lambda each: (each.coverage, each.error90_ratio))
        return Prediction(duration_ns, worst.coverage, worst.error_ratio, worst.error90_ratio)

    def launches_of(self, name: str) -> int:
        """Kernels of a matrix product in a step. Compilers quantise inputs in the norm or SiLU before a product, where the
        quantisation is not a part of the product's own operator: only what attention wrote has a kernel of its own then.
        """
        if self.quantised is None or name in _NEVER_QUANTISED:
            return 1
        fused = self.model.weights == FP8 and name != "o_proj"
        return 1 if fused else QUANTISED_LAUNCHES

    def _product(self, name: str, rows: int) -> Prediction:
        n, k = self.gemms[name]
        model = self.gemm if self.quantised is None or name in _NEVER_QUANTISED else self.quantised
        return model.predict(rows, n, k)

    def _dense_ns(self, rows: int) -> float:
        """Every layer's matrix products over this many rows, one after the other, as the tables have them."""
        each_ns = sum(self._product(name, rows).duration_ns for name in self.gemms if name != "lm_head")
        return float(self.model.layers * each_ns)

    def experts(self, tokens: int) -> Prediction:
        """The experts of one layer. Raises PredictorError for a model without any."""
        if self._experts is None:
            raise PredictorError(f"{self.model.name} has no experts")
        found = self._experts.predict(tokens)
        family = accuracies.EXPERTS if self.model.tp == 1 else accuracies.SHARED_EXPERTS
        error = self.accuracy.of(family, found.coverage)
        return Prediction(found.duration_ns, found.coverage, error.median, error.p90)

    def memory(self, name: str, tokens: int, rows: int, *, share: float = 1.0) -> Prediction:
        """A memory-bound operator, or the share of its bytes that one of its kernels moves."""
        traffic = self.traffic.get(name)
        if traffic is None:
            raise PredictorError(f"no memory-bound operator {name!r} (known: {', '.join(sorted(self.traffic))})")
        size_bytes = share * (traffic.token_bytes * tokens + traffic.row_bytes * rows)
        walked_bytes = share * traffic.row_walks * self.model.vocab * _FLOAT_BYTES
        cost = self._measured.get(name)
        return (
            self._measured_cost(cost, size_bytes, walked_bytes, rows)
            if cost
            else self.streaming(size_bytes, walked_bytes, rows)
        )

    def _measured_cost(self, cost: MemoryCost, size_bytes: float, walked_bytes: float, rows: int) -> Prediction:
        device = self.device
        waves = -(-rows // device.multiprocessors)
        duration_ns = cost.duration_ns(size_bytes, walked_bytes, waves, device.l2_cache_bytes)
        # Rotation without head norms is another kernel than the one that was measured.
        same = cost.operator != "qk_norm_rope" or self.model.qk_norm
        if same and not device.memory_operators_of and size_bytes <= cost.measured_bytes:
            return Prediction(round(duration_ns), Coverage.INTERPOLATED, cost.error_ratio, cost.error90_ratio)
        # Twice the residuals: nobody measured there, and it is nearer than physics alone.
        error, error90 = min(2 * cost.error_ratio, 1.0), min(2 * cost.error90_ratio, 1.0)
        return Prediction(round(duration_ns), Coverage.EXTRAPOLATED, error, error90)

    def streaming(self, size_bytes: float, walked_bytes: float = 0.0, rows: int = 0) -> Prediction:
        """A kernel that moves bytes. walked_bytes: what one thread block reads alone, of each of `rows` rows."""
        device = self.device
        waves = -(-rows // device.multiprocessors)
        walking_ns = waves * walked_bytes * 1e9 / device.multiprocessor_l2_bytes_per_s
        duration_ns = device.kernel_floor_ns + max(device.stream_ns(size_bytes), walking_ns)
        return analytical(duration_ns)

    def attend(self, batch: BatchComposition, part: str = "") -> Prediction:
        """The attention of one layer, or of the decodes or prefills in it alone (attention.DECODES, PREFILLS)."""
        totals = BatchTotals.of(batch)
        return self.attention.predict_of(self.attention.part(totals, part) if part else totals)
