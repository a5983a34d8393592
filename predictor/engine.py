"""The predictor as the pricing service sees it: one launch in, one price out.

A launch is a whole step (named by its model), a matrix product (priced from its shape), a collective, or a kernel,
which a map from names to operators explains (kernels.py). Whatever nobody can explain costs the device's shortest
kernel, is called unknown, and is counted by the caller: it must never be priced as something that it may not be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.collectives import CollectiveModel
from hyperlapse.predictor.composition import BatchComposition, CompositionError
from hyperlapse.predictor.database import KernelDatabase
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.engines import EngineData, Engines, StepRecipe
from hyperlapse.predictor.gemm import GemmModel
from hyperlapse.predictor.kernels import KernelMap
from hyperlapse.predictor.models import ModelConfig, ModelKey
from hyperlapse.predictor.operators import analytical
from hyperlapse.predictor.prediction import Coverage, CoverageShares, Prediction, PredictorError, family_of, shares_of
from hyperlapse.predictor.step import StepPredictor
from hyperlapse.predictor.transfer import TransferredDatabase
from hyperlapse.predictor.uncertainty import PricedTime

DEPENDS_TOKENS = 1
DEPENDS_BATCH = 2

# Names of element types in matrix products; a product of the first kind is priced from the bfloat16 table.
_ELEMENT_BYTES = {
    "bf16": 2, "bfloat16": 2, "f16": 2, "fp16": 2, "float16": 2, "half": 2,
    "f32": 4, "fp32": 4, "float32": 4, "tf32": 4, "f64": 8, "fp8": 1, "f8e4m3": 1, "f8e5m2": 1, "i8": 1, "int8": 1,
}  # fmt: skip
_MEASURED_TYPES = {"bf16", "bfloat16", "f16", "fp16", "float16", "half"}
_BFLOAT16_TYPES = {"bf16", "bfloat16"}
_FP8_TYPES = {"fp8", "f8e4m3", "f8e5m2"}
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


def load_tables(device: DeviceSpec, engine: str, engine_version: str | None = None) -> KernelDatabase:
    """The measured tables for a device, its own or those of the product that it names, carried over.

    engine: the database's name for it. Raises DatabaseError, UnknownDeviceError.
    """
    database = KernelDatabase.load(device.database_system, engine, engine_version)
    if not device.transfer_from:
        return database
    return TransferredDatabase(database, DeviceSpec.named(device.transfer_from), device)


class EnginePredictor:
    """Prices launches of one run on one GPU product.

    device: a product's facts, or its name; models: configurations whose kernels may be launched (the first explains
    kernel names; steps name theirs by key); kernel_maps, step_recipes: files of the engines' integrations; engine: as a
    model key spells it (`NAME-1.2.3`), for launches that name none. Raises DatabaseError, UnknownDeviceError,
    UnsupportedModelError, EngineDataError when built; price_launch never raises for a launch that it does not know.
    """

    def __init__(
        self,
        device: DeviceSpec | str,
        models: Iterable[ModelConfig] = (),
        kernel_maps: Iterable[Path | str] = (),
        step_recipes: Iterable[Path | str] = (),
        *,
        engine: str = "",
        database: KernelDatabase | None = None,
    ) -> None:
        self.device = DeviceSpec.named(device) if isinstance(device, str) else device
        self.priced = PricedTime()
        self._engines = Engines.load(step_recipes)
        self._engine = engine
        self._given = database
        self._databases: dict[tuple[str, str], KernelDatabase] = {}
        self._steps: dict[tuple[ModelConfig, str], StepPredictor] = {}
        self._keys: dict[str, StepPredictor] = {}
        self._map = KernelMap.load(kernel_maps)
        self._database, accuracy = self._tables(engine)
        self._gemm = GemmModel(self._database.gemm("bfloat16"), self.device, accuracy=accuracy)
        self._collectives = CollectiveModel(self._database, self.device, accuracy)
        self._explained = [self.step_predictor(model) for model in models]
        self._unknown: dict[str, int] = {}

    def step_predictor(self, model: ModelConfig, engine: str = "") -> StepPredictor:
        """The step predictor of a model in an engine (`NAME-1.2.3`; empty: the one that was given), built once."""
        engine = engine or self._engine
        if (model, engine) not in self._steps:
            database, accuracy = self._tables(engine)
            data, version = self._find(engine)
            recipe = data.recipe(version) if data else StepRecipe()
            self._steps[model, engine] = StepPredictor(model, self.device, database, recipe, accuracy)
        return self._steps[model, engine]

    def step_predictor_of(self, key: str) -> StepPredictor:
        """The step predictor that a step launch's name asks for (models.ModelKey). Raises PredictorError, ValueError."""
        if key not in self._keys:
            parsed = ModelKey.parse(key)
            self._keys[key] = self.step_predictor(parsed.load(), parsed.engine)
        return self._keys[key]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know about the tables that were used."""
        used = [self._database, *self._databases.values()]
        return tuple(dict.fromkeys(note for database in used for note in database.notes))

    def _find(self, engine: str) -> tuple[EngineData | None, str]:
        if self._given is not None and not self._engines.names():
            return None, ""
        return self._engines.find(engine)

    def _tables(self, engine: str) -> tuple[KernelDatabase, accuracies.Accuracy]:
        data, version = self._find(engine)
        accuracy = data.accuracy_on(self.device) if data else accuracies.DEFAULT
        if self._given is not None:
            return self._given, accuracy
        assert data is not None
        if (data.database, version) not in self._databases:
            self._databases[data.database, version] = load_tables(self.device, data.database, version or None)
        return self._databases[data.database, version], accuracy

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
        if launch.kind == "collective":
            return self._price_collective(launch)
        return self._price_unknown(f"{launch.kind} {launch.name}")

    def _price_step(self, launch: LaunchLike) -> Price:
        step = self.step_predictor_of(launch.name).predict(BatchComposition.parse(launch.annotation))
        self.priced.add(step.duration_ns, step.error_ratio, step.error90_ratio, step.families_ns)
        return Price(step.duration_ns, step.coverage_ns, DEPENDS_BATCH)

    def _price_gemm(self, launch: LaunchLike) -> Price:
        m, n, k, batch = launch.args[:4]
        types = launch.name.lower().split(",")
        if types[0] in _BFLOAT16_TYPES and batch > 1 and self._explained:
            own = self._explained[0].operators.head_product(m, n, k, batch)
            if own is not None:
                return self._price_of(own, family="matrix products")
        if types[0] in _MEASURED_TYPES:
            found = self._gemm.predict(m, n, k, max(batch, 1))
            if self._explained:  # within a step of the model that runs
                found = self._explained[0].operators.power.apply(found, m)
            coverage = found.coverage
            if types[0] not in _BFLOAT16_TYPES:
                coverage = max(coverage, Coverage.INTERPOLATED)  # taken to cost what bfloat16 costs
            found = dataclasses.replace(found, coverage=coverage)
            return self._price_of(found, family="matrix products")
        size = _ELEMENT_BYTES.get(types[0])
        if size is None:
            return self._price_unknown(f"gemm {launch.name}")
        if types[0] in _FP8_TYPES and self._explained:
            quantised = self._explained[0].operators.quantised_product(m, (n, k))
            if quantised is not None and max(batch, 1) == 1:
                return self._price_of(quantised, family="matrix products")
        return self._price_of(self._unmeasured_gemm(m, n, k, max(batch, 1), size), family="matrix products")

    def _price_collective(self, launch: LaunchLike) -> Price:
        """A meeting of GPUs. Its name is NCCL's `operation,type`, or what a file of collective kernels calls it; the whole
        tensor's bytes and the ranks are its arguments.
        """
        operation = launch.name.partition(",")[0]
        try:
            found = self._collectives.launched(operation, launch.args[0], launch.args[1])
        except PredictorError:
            return self._price_unknown(f"collective {launch.name} of {launch.args[1]} ranks")
        return self._price_of(found, family="collectives")

    def _unmeasured_gemm(self, m: int, n: int, k: int, batch: int, size: int) -> Prediction:
        operations = 2.0 * m * n * k * batch * (_FLOAT32_SLOWDOWN if size >= _ELEMENT_BYTES["f32"] else 1)
        size_bytes = float(size) * batch * (m * k + k * n + m * n)
        share = self.device.memory_bandwidth_share
        duration_ns = self.device.kernel_floor_ns + self.device.light_ns(size_bytes, operations) / share
        return analytical(duration_ns)

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
        priced = rule.price(operators, self.device, launch.args, launch.tokens, batch, launch.name)
        if priced is None:
            return self._price_unknown(launch.name, rule.depends(operators))
        prediction, depends = priced
        return self._price_of(prediction, depends, family=family_of(rule.operator))

    def _price_unknown(self, name: str, depends: int = 0) -> Price:
        self._unknown[name] = self._unknown.get(name, 0) + 1
        found = Prediction(
            self.device.kernel_floor_ns, Coverage.UNKNOWN, accuracies.UNKNOWN.median, accuracies.UNKNOWN.p90
        )
        return self._price_of(found, depends)

    def _price_of(self, prediction: Prediction, depends: int = 0, *, family: str = "other") -> Price:
        self.priced.add(
            prediction.duration_ns,
            prediction.error_ratio,
            prediction.error90_ratio,
            ((family, prediction.duration_ns),),
        )
        return Price(prediction.duration_ns, shares_of(prediction.duration_ns, prediction.coverage), depends)
