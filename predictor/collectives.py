"""What several GPUs of one host do together: all-reduce and its relatives, from measured message sizes.

Two tables: the engine's own all-reduce kernel inside CUDA graphs, and NCCL's operations. Between measured sizes the
latency is interpolated linearly in bytes (a fixed cost and a bandwidth, which is what a collective is); beyond the
largest it grows with the last two sizes' rate. A number of ranks that was not measured is refused by name: rings, trees
and one-shot kernels change with it.

A latency is that of a collective whose ranks arrive together. Who arrives when is the timeline's affair. The eager figures
of the engine's kernel are not read: below a megabyte they are the time that a host takes to launch it (20 us whatever
the size), and above it they are the graph's figure and the copy into a registered buffer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy
from hyperlapse.predictor.database import CollectiveTable, KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import Coverage, DatabaseError, Prediction, PredictorError

NCCL_OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")


class CollectiveModel:
    """Durations of collectives between GPUs of one product on one host."""

    def __init__(self, database: KernelDatabase, device: DeviceSpec, accuracy: Accuracy = accuracies.DEFAULT) -> None:
        self._database = database
        self._device = device
        self._accuracy = accuracy

    def all_reduce(self, size_bytes: int, ranks: int, *, captured: bool, own_below_bytes: int) -> Prediction:
        """The engine's all-reduce of a tensor: its own kernel up to `own_below_bytes`, NCCL's above.

        captured: it is a node of a CUDA graph, whose buffers are registered; else the tensor is copied into such a buffer
        first. Raises PredictorError for a number of ranks that was not measured.
        """
        if size_bytes > own_below_bytes:
            return self.nccl("all_reduce", size_bytes, ranks)
        table = self._table(self._database.all_reduce, ranks, f"the engine's all-reduce of {ranks} ranks")
        copy_ns = 0.0 if captured else self._device.kernel_floor_ns + self._device.stream_ns(2.0 * size_bytes)
        return self._predict(table, size_bytes, copy_ns)

    def nccl(self, operation: str, size_bytes: int, ranks: int) -> Prediction:
        """A NCCL operation; size_bytes: of the whole tensor (what all_gather receives, reduce_scatter takes)."""
        if operation not in NCCL_OPERATIONS:
            raise PredictorError(
                f"nobody measured the NCCL operation {operation!r} (known: {', '.join(NCCL_OPERATIONS)})"
            )
        table = self._table(
            lambda count: self._database.nccl(operation, count), ranks, f"NCCL's {operation} of {ranks} ranks"
        )
        return self._predict(table, size_bytes, 0.0)

    def launched(self, operation: str, size_bytes: int, ranks: int) -> Prediction:
        """A collective as it was launched: NCCL's, or a kernel in which GPUs meet without it.

        kernel_all_reduce: an engine's own kernel on registered buffers, of which the graph's figure is the duration (a copy
        before it is a launch of its own); multimem_all_reduce: torch's over multicast memory, which nobody measured and
        which is taken to cost what NCCL's all-reduce of that size does (it uses the switches in the same way).
        """
        if operation == "kernel_all_reduce":
            return self.all_reduce(size_bytes, ranks, captured=True, own_below_bytes=size_bytes)
        if operation == "multimem_all_reduce":
            found = self.nccl("all_reduce", size_bytes, ranks)
            error = self._accuracy.of(accuracies.COLLECTIVES, Coverage.EXTRAPOLATED)
            return Prediction(found.duration_ns, Coverage.EXTRAPOLATED, error.median, error.p90)
        return self.nccl(operation, size_bytes, ranks)

    def _table(self, find: Callable[[int], CollectiveTable], ranks: int, what: str) -> CollectiveTable:
        try:
            return find(ranks)
        except DatabaseError as error:
            raise PredictorError(f"{what} cannot be priced on {self._device.name}: {error}") from error

    def _predict(self, table: CollectiveTable, size_bytes: int, more_ns: float) -> Prediction:
        latency_ns, coverage = at_size(table, size_bytes)
        if more_ns:
            coverage = max(coverage, Coverage.INTERPOLATED)
        error = self._accuracy.of(accuracies.COLLECTIVES, coverage)
        return Prediction(round(latency_ns + more_ns), coverage, error.median, error.p90)


def at_size(table: CollectiveTable, size_bytes: int) -> tuple[float, Coverage]:
    """Latency of a message, and where it comes from."""
    sizes, latency = table.size_bytes, table.latency_ns
    at = bisect_left(sizes, size_bytes)
    if at < len(sizes) and sizes[at] == size_bytes:
        return latency[at], table.coverage
    if at == 0:  # a message of nothing still meets: the shortest is a floor
        return latency[0], max(table.coverage, Coverage.INTERPOLATED)
    low, high = (at - 1, at) if at < len(sizes) else (at - 2, at - 1)
    slope = max(latency[high] - latency[low], 0.0) / (sizes[high] - sizes[low])
    coverage = Coverage.INTERPOLATED if at < len(sizes) else Coverage.EXTRAPOLATED
    start = low if at < len(sizes) else high
    return latency[start] + slope * (size_bytes - sizes[start]), max(table.coverage, coverage)
