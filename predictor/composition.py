"""The batch composition of one engine step: for every sequence its new tokens and the tokens already in its KV cache.

The text form travels with every launch from the engine's process to the predictor; docs/batch-composition.md is its
grammar. Parsing is strict: a composition that is not understood must never be priced as something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hyperlapse.predictor.prediction import PredictorError

GRAPHS = ("full", "piecewise", "none")
_FIELDS = ("graph", "tokens", "rows", "seqs")

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_COUNT = re.compile(_NUMBER)
_GROUP = re.compile(rf"({_NUMBER}):({_NUMBER})(?:x([1-9][0-9]{{0,5}}))?")


class CompositionError(PredictorError, ValueError):
    """A batch composition that does not follow the grammar; the message quotes the part that does not."""


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """`count` neighbouring sequences that look alike.

    new: tokens computed in this step for each (> 0); context: tokens in its KV cache before the step (>= 0).
    """

    new: int
    context: int
    count: int = 1

    @property
    def decodes(self) -> bool:
        """One new token: the shape of a decode, whatever came before."""
        return self.new == 1


@dataclass(frozen=True, slots=True)
class BatchComposition:
    """One step as the engine dispatched it.

    graph: full (one CUDA graph), piecewise (a graph between attentions) or none; tokens: what the dense layers run with
    (>= the new tokens; more when a graph pads); rows: rows that are sampled; groups: sequences in the engine's order.
    """

    graph: str
    tokens: int
    rows: int
    groups: tuple[SequenceGroup, ...]

    @property
    def new_tokens(self) -> int:
        return sum(group.new * group.count for group in self.groups)

    @property
    def sequences(self) -> int:
        return sum(group.count for group in self.groups)

    @classmethod
    def of(
        cls, groups: Iterable[SequenceGroup], *, graph: str = "none", tokens: int | None = None, rows: int | None = None
    ) -> BatchComposition:
        """Builds a checked composition. tokens defaults to the new tokens, rows to one for each sequence.

        Raises CompositionError when a number contradicts another.
        """
        folded = fold(groups)
        batch = cls(graph, 0, 0, folded)
        new_tokens, sequences = batch.new_tokens, batch.sequences
        tokens = new_tokens if tokens is None else tokens
        rows = sequences if rows is None else rows
        if graph not in GRAPHS:
            raise CompositionError(f"graph={graph}: must be one of {', '.join(GRAPHS)}")
        if tokens < new_tokens:
            raise CompositionError(f"tokens={tokens}: fewer than the {new_tokens} new tokens of the sequences")
        if tokens == 0 and rows:
            raise CompositionError(f"rows={rows}: a step without tokens samples nothing")
        if rows > max(tokens, 1):
            raise CompositionError(f"rows={rows}: more sampled rows than the step's {tokens} tokens")
        return cls(graph, tokens, rows, folded)

    @classmethod
    def parse(cls, text: str) -> BatchComposition:
        """Reads the text form (`v1 graph=... tokens=... rows=... seqs=...`).

        Raises CompositionError, which quotes what is wrong.
        """
        version, *fields = text.split(" ")
        if version != "v1":
            raise CompositionError(f"batch composition {_quote(text)}: must begin with the version `v1`")
        values: dict[str, str] = {}
        for field in fields:
            name, separator, value = field.partition("=")
            if not separator or name not in _FIELDS:
                known = ", ".join(_FIELDS)
                raise CompositionError(f"batch composition: unknown field {_quote(field)} (known: {known})")
            if name in values:
                raise CompositionError(f"batch composition: field `{name}` stands twice")
            values[name] = value
        missing = [name for name in _FIELDS if name not in values]
        if missing:
            raise CompositionError(f"batch composition: field `{missing[0]}` is missing")
        for name in ("tokens", "rows"):
            if not _COUNT.fullmatch(values[name]):
                raise CompositionError(f"batch composition: {name}={_quote(values[name])} is not a number of tokens")
        return cls.of(
            parse_groups(values["seqs"]),
            graph=values["graph"],
            tokens=int(values["tokens"]),
            rows=int(values["rows"]),
        )

    def format(self) -> str:
        """The text form; `parse` gives back an equal object."""
        seqs = ",".join(
            f"{group.new}:{group.context}" + (f"x{group.count}" if group.count > 1 else "") for group in self.groups
        )
        return f"v1 graph={self.graph} tokens={self.tokens} rows={self.rows} seqs={seqs}"


def parse_groups(text: str) -> tuple[SequenceGroup, ...]:
    """Reads `<new>:<context>[x<count>],...`; the empty text is no sequence (a dummy step of padding only)."""
    if not text:
        return ()
    groups = []
    for part in text.split(","):
        match = _GROUP.fullmatch(part)
        if match is None:
            raise CompositionError(f"batch composition: {_quote(part)} is not <new tokens>:<context tokens>[x<count>]")
        new, context, count = match.groups()
        if new == "0":
            raise CompositionError(f"batch composition: {_quote(part)} computes no token")
        groups.append(SequenceGroup(int(new), int(context), int(count or 1)))
    return fold(groups)


def fold(groups: Iterable[SequenceGroup]) -> tuple[SequenceGroup, ...]:
    """Joins equal neighbours, so that equal compositions have equal texts (and prices are found again)."""
    folded: list[SequenceGroup] = []
    for group in groups:
        last = folded[-1] if folded else None
        if last is not None and last.new == group.new and last.context == group.context:
            folded[-1] = SequenceGroup(last.new, last.context, last.count + group.count)
        else:
            folded.append(group)
    return tuple(folded)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
