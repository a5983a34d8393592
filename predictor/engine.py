"""The predictor as the pricing service sees it: one launch in, one price out.

A launch is a whole step (named by its model), a matrix product (priced from its shape), a collective, or a kernel,
which a map from names to operators explains (kernels.py). Whatever nobody can explain costs the device's shortest
kernel, is called unknown, and is counted by the caller: it must never be priced as something that it may not be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hyperlapse.predictor.composition import BatchComposition, CompositionError
from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.kernels import KernelMap
from hyperlapse.predictor.models import ModelConfig, ModelKey
from hyperlapse.predictor.operators import ANALYTICAL_ERROR
from hyperlapse.predictor.prediction import Coverage, CoverageShares, Prediction, PredictorError, shares_of
from hyperlapse.predictor.step import EngineKernels, StepPredictor

DEPENDS_TOKENS = 1
DEPENDS_BATCH = 2

_UNKNOWN_ERROR = 1.0

# Names of element types in matrix products; a product of the first kind is priced from the bfloat16 table.
_ELEMENT_BYTES = {
    "bf16": 2, "bfloat16": 2, "f16": 2, "fp16": 2, "float16": 2, "half": 2,
    "f32": 4, "fp32": 4, "float32": 4, "tf32": 4, "f64": 8, "fp8": 1, "f8e4m3": 1, "f8e5m2": 1, "i8": 1, "int8": 1,
}  # fmt: skip
_MEASURED_TYPES = {"bf16", "bfloat16", "f16", "fp16", "float16", "half"}
_BFLOAT16_TYPES = {"bf16", "bfloat16"}
_FLOAT32_SLOWDOWN = 16  # dense bf16 tensor rate over float32 outside the tensor cores (H100: 989 / 67 TFLOPS)


class LaunchLike(Protocol):
    """A launch as the shim hands it over. args: eight integers, their meaning by kind (csrc/core/price.h)."""

    @property
    def kind(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def args(self) -> tuple[int, ...]: ...
    @property
    def tokens(self) -> int: ...
    @property
    def annotation(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Price:
    """What a launch costs. coverage_ns sums to duration_ns; depends: what of the annotation the price was read from."""

    duration_ns: int
    coverage_ns: CoverageShares
    depends: int = 0


class EnginePredictor:
    """Prices launches of one run on one GPU product.

    device: a product's facts, or its name; models: configurations whose kernels may be launched (the first explains
    kernel names; steps name theirs by key). Raises DatabaseError, UnknownDeviceError, UnsupportedModelError when
    built; price_launch never raises for a launch that it does not know.
    """

    def __init__(
        self,
        device: DeviceSpec | str,
        models: Iterable[ModelConfig] = (),
        kernel_maps: Iterable[Path | str] = (),
        *,
        database: KernelDatabase | None = None,
        engine_kernels: EngineKernels | None = None,
    ) -> None:
        self.device = device = DeviceSpec.named(device) if isinstance(device, str) else device
        self._database = database or KernelDatabase.load(device.database_system)
        self._engine_kernels = engine_kernels
        self._steps: dict[ModelConfig, StepPredictor] = {}
        self._keys: dict[str, StepPredictor] = {}
        self._map = KernelMap.load(kernel_maps)
        self._gemm = GemmModel(self._database.gemm("bfloat16"), device)
        self._explained = [self.step_predictor(model) for model in models]
        self._unknown: dict[str, int] = {}

    def step_predictor(self, model: ModelConfig) -> StepPredictor:
        """The step predictor of a model, built once."""
        if model not in self._steps:
            self._steps[model] = StepPredictor(model, self.device, self._database, self._engine_kernels)
        return self._steps[model]

    @property
    def unknown(self) -> Mapping[str, int]:
        """Names that could not be priced, with how often they were asked for."""
        return self._unknown

    def price_launch(self, launch: LaunchLike) -> Price:
        """The price of a launch, without the gap to the next one."""
        if launch.kind == "step":
            return self._price_step(launch)
        if launch.kind == "gemm":
            return self._price_gemm(launch)
        if launch.kind == "kernel":
            return self._price_kernel(launch)
        return self._price_unknown(f"{launch.kind} {launch.name}")

    def _price_step(self, launch: LaunchLike) -> Price:
        if launch.name not in self._keys:
            self._keys[launch.name] = self.step_predictor(ModelKey.parse(launch.name).load())
        step = self._keys[launch.name].predict(BatchComposition.parse(launch.annotation))
        return Price(step.duration_ns, step.coverage_ns, DEPENDS_BATCH)

    def _price_gemm(self, launch: LaunchLike) -> Price:
        m, n, k, batch = launch.args[:4]
        types = launch.name.lower().split(",")
        if types[0] in _MEASURED_TYPES:
            found = self._gemm.predict(m, n, k, max(batch, 1))
            coverage = found.coverage
            if types[0] not in _BFLOAT16_TYPES:
                coverage = max(coverage, Coverage.INTERPOLATED)  # taken to cost what bfloat16 costs
            return Price(found.duration_ns, shares_of(found.duration_ns, coverage))
        size = _ELEMENT_BYTES.get(types[0])
        if size is None:
            return self._price_unknown(f"gemm {launch.name}")
        return _price_of(self._unmeasured_gemm(m, n, k, max(batch, 1), size))

    def _unmeasured_gemm(self, m: int, n: int, k: int, batch: int, size: int) -> Prediction:
        operations = 2.0 * m * n * k * batch * (_FLOAT32_SLOWDOWN if size >= _ELEMENT_BYTES["f32"] else 1)
        size_bytes = float(size) * batch * (m * k + k * n + m * n)
        share = self.device.memory_bandwidth_share
        duration_ns = self.device.kernel_floor_ns + self.device.light_ns(size_bytes, operations) / share
        return Prediction(round(duration_ns), Coverage.ANALYTICAL, ANALYTICAL_ERROR)

    def _price_kernel(self, launch: LaunchLike) -> Price:
        rule = self._map.find(launch.name)
        if rule is None:
            return self._price_unknown(launch.name)
        batch = None
        if launch.annotation:
            try:
                batch = BatchComposition.parse(launch.annotation)
            except CompositionError as error:
                raise PredictorError(f"kernel {launch.name}: {error}") from error
        operators = self._explained[0].operators if self._explained else None
        priced = rule.price(operators, self.device, launch.args, launch.tokens, batch)
        if priced is None:
            return self._price_unknown(launch.name, rule.depends(operators))
        prediction, depends = priced
        return _price_of(prediction, depends)

    def _price_unknown(self, name: str, depends: int = 0) -> Price:
        self._unknown[name] = self._unknown.get(name, 0) + 1
        return _price_of(Prediction(self.device.kernel_floor_ns, Coverage.UNKNOWN, _UNKNOWN_ERROR), depends)


def _price_of(prediction: Prediction, depends: int = 0) -> Price:
    return Price(prediction.duration_ns, shares_of(prediction.duration_ns, prediction.coverage), depends)
