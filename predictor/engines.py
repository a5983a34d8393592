"""What an engine does between and around a model's operators, as data of the engine's integration (`steps.yaml`).

Which small kernels an engine launches for its own bookkeeping, and into how many kernels it splits an operator, is
knowledge about engine versions; this package only counts and prices them. It must never know an engine's name: names
come with the data, and a version that no recipe covers takes the nearest older one.

    version: 1
    engine: NAME            # as model keys spell it: engine=NAME-1.2.3
    database: NAME          # the kernel database's name for it
    recipes:
      - since: "0.23.0"     # first version that launches these
        copies: 3           # the fields of StepRecipe
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hyperlapse.predictor import accuracy as accuracies
from hyperlapse.predictor.accuracy import Accuracy
from hyperlapse.predictor.database import version_key
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.prediction import PredictorError


class EngineDataError(PredictorError, ValueError):
    """An engine's data that does not follow its schema, or an engine without data; the message names file and field."""


@dataclass(frozen=True, slots=True)
class StepRecipe:
    """Kernels that an engine launches for what has no operator of its own, and what an operator is made of.

    copies: input tensors to the device; preparation: kernels that prepare inputs, preparation_prefill: more of them when
    a sequence joins; metadata: kernels that prepare attention; qk_norm_rope, rope: kernels of the rotary embedding with
    and without head norms; latent_norm_rope: of the norm of the latent vector and the rotary embedding; latent_short_prompt:
    longest prompt that latent attention computes as it does decodes, without making keys and values of it; attention:
    kernels of one layer's attention; sampling: small kernels beside the sampler's own; own_all_reduce_bytes: largest tensor
    that the engine reduces with a kernel of its own and not with NCCL.
    """

    copies: int = 0
    preparation: int = 0
    preparation_prefill: int = 0
    metadata: int = 0
    qk_norm_rope: int = 1
    rope: int = 1
    latent_norm_rope: int = 2
    latent_short_prompt: int = 0
    attention: int = 2
    sampling: int = 0
    own_all_reduce_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineData:
    """One engine. recipes: first version -> what it launches; accuracy: GPU system -> held-out errors of its tables."""

    name: str
    database: str
    recipes: dict[str, StepRecipe]
    accuracy: dict[str, Accuracy]

    def recipe(self, version: str) -> StepRecipe:
        """The recipe of the newest version that is not newer than this one, else of the oldest; empty: the newest."""
        known = sorted(self.recipes, key=version_key)
        if not version:
            return self.recipes[known[-1]]
        older = [each for each in known if version_key(each) <= version_key(version)]
        return self.recipes[older[-1] if older else known[0]]

    def accuracy_on(self, device: DeviceSpec) -> Accuracy:
        """How wrong predictions from this engine's tables are on a device."""
        found = self.accuracy.get(device.database_system, accuracies.DEFAULT)
        return dataclasses.replace(found, transferred=bool(device.transfer_from))


class Engines:
    """The engines whose data is at hand."""

    def __init__(self, engines: Iterable[EngineData]) -> None:
        self._engines = {engine.name: engine for engine in engines}

    @classmethod
    def load(cls, paths: Iterable[Path | str]) -> Engines:
        """Reads `steps.yaml` files and the `accuracy.json` beside each. Raises EngineDataError, FileNotFoundError."""
        return cls(_read(Path(path)) for path in paths)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._engines))

    def find(self, text: str) -> tuple[EngineData, str]:
        """The engine and version of a model key's `NAME-1.2.3` (the version may be missing, and both where there is only
        one engine). Raises EngineDataError.
        """
        name, _, version = text.partition("-")
        if not name and len(self._engines) == 1:
            name = next(iter(self._engines))
        if name in self._engines:
            return self._engines[name], version
        near = difflib.get_close_matches(name, self._engines, n=1)
        raise EngineDataError(
            (f"no data for engine {name!r}" if name else "no engine was named")
            + (f"; did you mean {near[0]}?" if near else "")
            + f" (known: {', '.join(self.names()) or 'none'})"
        )


def _read(path: Path) -> EngineData:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("recipes"), list):
        raise EngineDataError(f"{path}: must be a mapping with `version: 1`, `engine` and a list `recipes`")
    name = content.get("engine")
    if not isinstance(name, str) or not name or "-" in name:
        raise EngineDataError(f"{path}: `engine` must be a name without a dash")
    fields = [field.name for field in dataclasses.fields(StepRecipe)]
    recipes: dict[str, StepRecipe] = {}
    for number, entry in enumerate(content["recipes"], start=1):
        where = f"{path}, recipe {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("since"), str):
            raise EngineDataError(f"{where}: needs `since`, an engine version in quotes")
        counts = {key: value for key, value in entry.items() if key not in {"since", "note"}}
        for key, value in counts.items():
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, n=1)
                raise EngineDataError(
                    f"{where}: unknown field `{key}`" + (f"; did you mean `{near[0]}`?" if near else "")
                )
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise EngineDataError(f"{where}: `{key}` must be a number of kernels (or bytes), not {value!r}")
        recipes[entry["since"]] = StepRecipe(**counts)
    if not recipes:
        raise EngineDataError(f"{path}: `recipes` is empty")
    beside = path.parent / "accuracy.json"
    return EngineData(
        name=name,
        database=str(content.get("database", name)),
        recipes=recipes,
        accuracy=accuracies.read(beside) if beside.is_file() else {},
    )
