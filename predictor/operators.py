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

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy
from hyperlapse.predictor.attention import AttentionModel, BatchTotals
from hyperlapse.predictor.collectives import CollectiveModel
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.database import ExpertConfig, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec, MemoryCost
from hyperlapse.predictor.experts import ExpertModel
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.models import ModelConfig
from hyperlapse.predictor.power import PowerLimit
from hyperlapse.predictor.prediction import Coverage, Prediction, PredictorError

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
    return {
        # With the first norm: one read, the residual and the normalised row written.
        "embedding": Traffic(token_bytes=3 * hidden * size + _INDEX_BYTES),
        # The residual is added and written back in the same kernel: two reads, two writes.
        "input_norm": Traffic(token_bytes=4 * hidden * size),
        "post_attention_norm": Traffic(token_bytes=4 * hidden * size),
        "final_norm": Traffic(token_bytes=4 * hidden * size),
        # Queries and keys read and written, the sines and cosines of each token's position; head norms read once more.
        "qk_norm_rope": Traffic(
            token_bytes=(3 if model.qk_norm else 2) * rotated * size + model.head_dim * size + _INDEX_BYTES
        ),
        "kv_cache_write": Traffic(token_bytes=2 * model.kv_width * (size + model.kv_dtype_bytes) + _INDEX_BYTES),
        "silu_mul": Traffic(token_bytes=3 * model.intermediate * size),
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


def gemms_of(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(n, k) of each matrix product of a model; grouped products of experts are none."""
    gemms = {
        "qkv_proj": (model.q_width + 2 * model.kv_width, model.hidden),
        "o_proj": (model.hidden, model.q_width),
        "lm_head": (model.vocab_shard, model.hidden),
    }
    if model.experts:
        return {**gemms, "router": (model.experts, model.hidden)}
    return {
        **gemms,
        "gate_up_proj": (2 * model.intermediate, model.hidden),
        "down_proj": (model.hidden, model.intermediate),
    }


def analytical(duration_ns: float) -> Prediction:
    """A duration by physics alone."""
    return Prediction(round(duration_ns), Coverage.ANALYTICAL, accuracies.ANALYTICAL.median, accuracies.ANALYTICAL.p90)


class Operators:
    """Durations of one model's operators on one device; predictions leave out the gap after the kernel."""

    def __init__(
        self,
        model: ModelConfig,
        device: DeviceSpec,
        database: KernelDatabase,
        *,
        attention_launches: int = 2,
        accuracy: Accuracy = accuracies.DEFAULT,
    ) -> None:
        """Raises UnsupportedModelError for a model with a part that nobody measured on this device."""
        self.model = model
        self.device = device
        self.accuracy = accuracy
        self.gemm = GemmModel(database.gemm("bfloat16"), device, model.dtype_bytes, accuracy)
        self.attention = AttentionModel(database, model, device, launches=attention_launches, accuracy=accuracy)
        self._experts: ExpertModel | None = None
        if model.experts:
            config = ExpertConfig(model.hidden, model.intermediate, model.active_experts, model.experts)
            self._experts = ExpertModel.of(database, config, device, model.name)
        self.gemms = gemms_of(model)
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
        """A matrix product of the model over this many rows."""
        n, k = self.gemms[name]
        found = self.power.apply(self.gemm.predict(rows, n, k), rows)
        if self.model.dtype != "bfloat16" and found.coverage is Coverage.MEASURED:
            # float16 is taken to cost what bfloat16 costs: the same tensor-core rate and bytes.
            error = self.accuracy.of(accuracies.GEMM, Coverage.INTERPOLATED)
            return Prediction(found.duration_ns, Coverage.INTERPOLATED, error.median, error.p90)
        return found

    def _dense_ns(self, rows: int) -> float:
        """Every layer's matrix products over this many rows, one after the other, as the tables have them."""
        each_ns = sum(
            self.gemm.predict(rows, n, k).duration_ns for name, (n, k) in self.gemms.items() if name != "lm_head"
        )
        return float(self.model.layers * each_ns)

    def experts(self, tokens: int) -> Prediction:
        """The experts of one layer. Raises PredictorError for a model without any."""
        if self._experts is None:
            raise PredictorError(f"{self.model.name} has no experts")
        found = self._experts.predict(tokens)
        error = self.accuracy.of(accuracies.EXPERTS, found.coverage)
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
        return self.attention.predict_of(totals.part(part) if part else totals)
