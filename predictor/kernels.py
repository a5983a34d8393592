"""Kernel names to operators, from a map that comes as data (its schema: docs/durations.md, section "Kernel-name maps").

Engines launch kernels, this package prices operators. Which kernel does the work of which operator is knowledge about
one engine version and lives with that engine's integration, in YAML; nothing here knows an engine's name. A rule that
needs what a launch does not tell (the batch, the tokens) prices nothing rather than guess.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperlapse.predictor.attention import DECODES, PREFILLS
from hyperlapse.predictor.composition import BatchComposition
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.predictor.operators import Operators, analytical
from hyperlapse.predictor.prediction import Coverage, Prediction, PredictorError

_DEPENDS_TOKENS = 1
_DEPENDS_BATCH = 2

# Positions of a kernel launch's arguments (csrc/core/price.h).
ARGUMENTS = {"grid_x": 0, "grid_y": 1, "grid_z": 2, "block_x": 3, "block_y": 4, "block_z": 5, "shared_bytes": 6}

_ATTENTION = "attention"
_EXPERTS = "experts"
_QUANTISED = "quantised_product"
_EXPERT_ACTIVATION = "expert_activation"
_MEMORY = "memory"
_INCLUDED = "included"
_FIXED = "fixed"

_FIELDS = {
    "name", "operator", "share", "kernels", "tokens", "rows", "bytes", "bytes_per_token", "bytes_per_row",
    "bytes_per_thread", "row_walks", "duration_ns", "part", "note",
}  # fmt: skip


class KernelMapError(PredictorError, ValueError):
    """A kernel-name map that does not follow its schema; the message names file and rule."""


@dataclass(frozen=True, slots=True)
class KernelRule:
    """One line of a map: launches whose name matches are this operator."""

    pattern: re.Pattern[str]
    operator: str
    share: float = 1.0
    tokens: str = ""
    rows: str = ""
    size_bytes: float = 0.0
    bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    bytes_per_row: Mapping[str, float] = field(default_factory=dict)
    bytes_per_thread: float = 0.0
    row_walks: float = 0.0
    duration_ns: int = 0
    part: str = ""

    def price(
        self,
        operators: Operators | None,
        device: DeviceSpec,
        args: Sequence[int],
        tokens: int,
        batch: BatchComposition | None,
        name: str = "",
    ) -> tuple[Prediction, int] | None:
        """Duration and what of the annotation it depends on; None when the launch does not tell enough. name: the
        kernel's, where the rule reads a shape from it.

        Without an annotation (warm-up, profiling) tokens and rows are those of the launch's grid where the rule has
        one.
        """
        if self.operator == _INCLUDED:
            return Prediction(0, Coverage.ANALYTICAL, 0.0), 0
        if self.operator == _FIXED:
            return analytical(self.duration_ns), 0
        if self.operator == _EXPERT_ACTIVATION and operators is not None and operators.model.experts:
            return Prediction(0, Coverage.ANALYTICAL, 0.0), 0
        if self.operator == _ATTENTION:
            if batch is None or operators is None:
                return None
            whole = operators.attend(batch, self.part)
            return _share_of(whole, self.share), _DEPENDS_BATCH
        if self.operator == _EXPERTS:
            if operators is None or not operators.model.experts or tokens <= 0:
                return None
            return _share_of(operators.experts(tokens), self.share), _DEPENDS_TOKENS
        if self.operator == _QUANTISED:
            product = operators.quantised_product(tokens, self._shape_in(name)) if operators and tokens > 0 else None
            return None if product is None else (_share_of(product, self.share), _DEPENDS_TOKENS)
        depends = 0
        needs_tokens, needs_rows = self._needs(operators)
        row_count = 0
        if needs_tokens:
            if self.tokens:
                tokens = args[ARGUMENTS[self.tokens]]
            else:
                depends |= _DEPENDS_TOKENS
            if tokens <= 0:
                return None
        if needs_rows:
            if self.rows:
                row_count = args[ARGUMENTS[self.rows]]
            elif batch is not None:
                row_count, depends = batch.rows, _DEPENDS_BATCH
            else:
                return None
        if self.operator != _MEMORY:
            if operators is None:
                return None
            return operators.memory(self._traffic_name(), tokens, row_count, share=self.share), depends
        widths: Mapping[str, int] = operators.model.widths() if operators else {"one": 1}
        try:
            token_bytes = sum(widths[name] * each for name, each in self.bytes_per_token.items())
            row_bytes = sum(widths[name] * each for name, each in self.bytes_per_row.items())
        except KeyError:
            return None
        threads = 1
        for position in range(6):
            threads *= max(args[position], 1)
        size_bytes = self.size_bytes + token_bytes * tokens + row_bytes * row_count + self.bytes_per_thread * threads
        walked_bytes = self.row_walks * row_bytes
        return _streaming(device, size_bytes * self.share, walked_bytes, row_count), depends

    def depends(self, operators: Operators | None) -> int:
        """What of the annotation a price by this rule depends on, whether or not a launch has an annotation.

        It goes with an unknown price too: the answer is kept by the kernel's name, and a warm-up launch without an
        annotation must not make the kernel's later launches look alike.
        """
        if self.operator in (_INCLUDED, _FIXED):
            return 0
        if self.operator == _ATTENTION:
            return _DEPENDS_BATCH
        if self.operator in (_EXPERTS, _QUANTISED):
            return _DEPENDS_TOKENS
        if self.operator != _MEMORY and operators is None:
            return _DEPENDS_TOKENS | _DEPENDS_BATCH
        needs_tokens, needs_rows = self._needs(operators)
        return (_DEPENDS_TOKENS if needs_tokens and not self.tokens else 0) | (
            _DEPENDS_BATCH if needs_rows and not self.rows else 0
        )

    def _traffic_name(self) -> str:
        """In a model without experts their activation is that of a dense layer."""
        return "silu_mul" if self.operator == _EXPERT_ACTIVATION else self.operator

    def _shape_in(self, name: str) -> tuple[int, int] | None:
        """(n, k) of a product whose kernel has them in its name: groups of these names in the rule's expression."""
        if not self.pattern.groupindex.keys() >= {"n", "k"}:
            return None
        found = self.pattern.search(name)
        return (int(found["n"]), int(found["k"])) if found else None

    def _needs(self, operators: Operators | None) -> tuple[bool, bool]:
        if self.operator == _MEMORY:
            return bool(self.bytes_per_token), bool(self.bytes_per_row)
        traffic = operators.traffic.get(self._traffic_name()) if operators else None
        return bool(traffic and traffic.token_bytes), bool(traffic and (traffic.row_bytes or traffic.row_walks))


class KernelMap:
    """The rules of several files; the first that matches a name explains it. Answers are kept by name."""

    def __init__(self, rules: Sequence[KernelRule]) -> None:
        self.rules = tuple(rules)
        self._found: dict[str, KernelRule | None] = {}

    @classmethod
    def load(cls, paths: Iterable[Path | str]) -> KernelMap:
        """Reads maps in order. Raises KernelMapError, FileNotFoundError."""
        rules: list[KernelRule] = []
        for path in paths:
            rules.extend(_read_rules(Path(path)))
        return cls(rules)

    def find(self, name: str) -> KernelRule | None:
        """The rule for a kernel's (mangled or plain) name."""
        if name not in self._found:
            self._found[name] = next((rule for rule in self.rules if rule.pattern.search(name)), None)
        return self._found[name]


def _share_of(whole: Prediction, share: float) -> Prediction:
    return dataclasses.replace(whole, duration_ns=round(whole.duration_ns * share))


def _streaming(device: DeviceSpec, size_bytes: float, walked_bytes: float, rows: int) -> Prediction:
    waves = -(-rows // device.multiprocessors)
    walking_ns = waves * walked_bytes * 1e9 / device.multiprocessor_l2_bytes_per_s
    duration_ns = device.kernel_floor_ns + max(device.stream_ns(size_bytes), walking_ns)
    return analytical(duration_ns)


def _read_rules(path: Path) -> list[KernelRule]:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("kernels"), list):
        raise KernelMapError(f"{path}: must be a mapping with `version: 1` and a list `kernels`")
    return [_rule(entry, f"{path}, rule {number}") for number, entry in enumerate(content["kernels"], start=1)]


def _rule(entry: Any, where: str) -> KernelRule:
    if not isinstance(entry, dict) or "name" not in entry or "operator" not in entry:
        raise KernelMapError(f"{where}: needs `name` (a regular expression) and `operator`")
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise KernelMapError(f"{where}: unknown field `{unknown[0]}` (known: {', '.join(sorted(_FIELDS))})")
    operator = str(entry["operator"])
    known = {_ATTENTION, _EXPERTS, _QUANTISED, _EXPERT_ACTIVATION, _MEMORY, _INCLUDED, _FIXED, *OPERATORS}
    if operator not in known:
        raise KernelMapError(f"{where}: unknown operator `{operator}` (known: {', '.join(sorted(known))})")
    part = str(entry.get("part") or "")
    if part and (operator != _ATTENTION or part not in (DECODES, PREFILLS)):
        raise KernelMapError(
            f"{where}: `part` must be {DECODES} or {PREFILLS}, and goes with `operator: attention` only"
        )
    for axis in ("tokens", "rows"):
        if entry.get(axis) and entry[axis] not in ARGUMENTS:
            raise KernelMapError(f"{where}: `{axis}` must be one of {', '.join(ARGUMENTS)}")
    try:
        pattern = re.compile(str(entry["name"]))
    except re.error as error:
        raise KernelMapError(f"{where}: `name` is not a regular expression: {error}") from None
    try:
        return KernelRule(
            pattern=pattern,
            operator=operator,
            share=float(entry.get("share", 1.0)) / int(entry.get("kernels", 1)),
            tokens=str(entry.get("tokens") or ""),
            rows=str(entry.get("rows") or ""),
            size_bytes=float(entry.get("bytes", 0)),
            bytes_per_token={str(name): float(each) for name, each in (entry.get("bytes_per_token") or {}).items()},
            bytes_per_row={str(name): float(each) for name, each in (entry.get("bytes_per_row") or {}).items()},
            bytes_per_thread=float(entry.get("bytes_per_thread", 0)),
            row_walks=float(entry.get("row_walks", 0)),
            duration_ns=int(entry.get("duration_ns", 0)),
            part=part,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise KernelMapError(f"{where}: {error}") from None


# Memory-bound operators that a rule may name (operators.traffic_of).
OPERATORS = (
    "embedding", "input_norm", "post_attention_norm", "final_norm", "qk_norm_rope", "kv_cache_write", "silu_mul",
    "gather_rows", "logits_to_float", "temperature", "top_k_mask", "softmax", "top_p_sampling",
    "gumbel_sampling", "expert_routing", "key_concat", "small",
)  # fmt: skip
