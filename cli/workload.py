"""Workloads of `hyperlapse bench`: a trace file, or random lengths, become a list of requests to send.

Why: the load generator runs in the engine's environment and on the virtual clock, so everything that can fail or take
time (parsing, checking, making prompts) is done here, before the server is started. It must never depend on the
machine: the same file and seed give the same tokens on every platform, so prompts come from SHAKE-256 and not from
`random` or numpy, whose streams may change with a version. Lengths must be met exactly: a prompt is sent as text, as
clients do, only where the tokenizer is the made-up one (a word is a token); real tokenizers do not give back the same
number of tokens as were decoded, so with them a prompt goes out as token ids.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

NANOSECONDS_PER_S = 1_000_000_000
MAX_ARRIVAL_NS = 2**62
TRACE_KEYS = ("arrival_s", "prompt_tokens", "output_tokens", "prompt_token_ids", "prefix_id", "prefix_tokens")
REQUIRED_KEYS = TRACE_KEYS[:3]


class TraceError(Exception):
    """A trace that cannot be replayed. Its text is `FILE:LINE: what is wrong`."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}")
        self.path = path
        self.line = line


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of a trace. `arrival_ns` counts from the start of the replay; lengths are in tokens.

    Either `prompt_token_ids` is given, or the prompt is made up: its first `prefix_tokens` tokens are those of every
    other request with the same `prefix_id` (so that the engine's prefix cache finds them), the rest is its own.
    `line`: where it stands in its file.
    """

    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    prompt_token_ids: tuple[int, ...] | None = None
    prefix_id: str | None = None
    prefix_tokens: int = 0
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Token ids `first <= id < end` that a made-up prompt may use: in the vocabulary and no special token."""

    first: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a JSONL trace, by arrival (requests that arrive together keep the order of the file).

    Raises TraceError for a line that is no request, and OSError for a file that cannot be read.
    """
    requests: list[TraceRequest] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            requests.append(replace(_parse_line(path, number, raw), line=number))
    if not requests:
        raise TraceError(path, 1, "no request in the file; a trace has one JSON object a line")
    requests.sort(key=lambda request: request.arrival_ns)
    return requests


def _parse_line(path: Path, number: int, raw: bytes) -> TraceRequest:
    def fail(message: str) -> TraceError:
        return TraceError(path, number, message)

    try:
        # Decimal keeps `arrival_s` exact: 0.1 s is 100,000,000 ns and not one less.
        fields: Any = json.loads(raw.decode("utf-8"), parse_float=Decimal, parse_constant=_reject_constant)
    except UnicodeDecodeError as error:
        raise fail(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise fail(f"not a JSON object: {error.msg} at column {error.colno}") from None
    except ArithmeticError:  # a Decimal whose exponent no computer holds
        raise fail("not a JSON object: a number is too large") from None
    except ValueError as error:
        raise fail(str(error)) from None
    except RecursionError:
        raise fail("not a JSON object: nested too deeply") from None
    if not isinstance(fields, dict):
        raise fail(f"expected a JSON object, found {_kind(fields)}")
    unknown = [key for key in fields if key not in TRACE_KEYS]
    if unknown:
        raise fail(f"unknown key {unknown[0]!r}; known keys: {', '.join(TRACE_KEYS)}")
    missing = [key for key in REQUIRED_KEYS if key not in fields]
    if missing:
        raise fail(f"{missing[0]!r} is missing; every request needs {', '.join(REQUIRED_KEYS)}")

    arrival = fields["arrival_s"]
    if isinstance(arrival, bool) or not isinstance(arrival, int | Decimal):
        raise fail(f"'arrival_s' must be a number of seconds, found {_kind(arrival)}")
    if arrival < 0 or arrival > MAX_ARRIVAL_NS // NANOSECONDS_PER_S:
        raise fail(f"'arrival_s' must be 0 or more, and below {MAX_ARRIVAL_NS // NANOSECONDS_PER_S} s, found {arrival}")
    prompt_tokens = _positive(fields, "prompt_tokens", fail)
    output_tokens = _positive(fields, "output_tokens", fail)

    ids = fields.get("prompt_token_ids")
    if ids is not None:
        if "prefix_id" in fields or "prefix_tokens" in fields:
            raise fail("'prompt_token_ids' gives the whole prompt: leave out 'prefix_id' and 'prefix_tokens'")
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
            raise fail("'prompt_token_ids' must be a list of token ids (integers from 0)")
        if len(ids) != prompt_tokens:
            raise fail(f"'prompt_token_ids' has {len(ids)} ids but 'prompt_tokens' is {prompt_tokens}")
        return TraceRequest(_nanoseconds(arrival), prompt_tokens, output_tokens, prompt_token_ids=tuple(ids))

    if ("prefix_id" in fields) != ("prefix_tokens" in fields):
        raise fail("'prefix_id' and 'prefix_tokens' belong together: one is missing")
    if "prefix_id" not in fields:
        return TraceRequest(_nanoseconds(arrival), prompt_tokens, output_tokens)
    prefix_id = fields["prefix_id"]
    if isinstance(prefix_id, bool) or not isinstance(prefix_id, int | str):
        raise fail(f"'prefix_id' must be a string or an integer, found {_kind(prefix_id)}")
    prefix_tokens = _positive(fields, "prefix_tokens", fail)
    if prefix_tokens > prompt_tokens:
        raise fail(f"'prefix_tokens' is {prefix_tokens}, more than 'prompt_tokens' ({prompt_tokens})")
    return TraceRequest(
        _nanoseconds(arrival), prompt_tokens, output_tokens, prefix_id=str(prefix_id), prefix_tokens=prefix_tokens
    )


def _positive(fields: dict[str, Any], key: str, fail: Any) -> int:
    value = fields[key]
    if type(value) is not int:
        raise fail(f"'{key}' must be a whole number of tokens, found {_kind(value)}")
    if not 1 <= value < 2**31:
        raise fail(f"'{key}' must be at least 1, found {value}")
    return value


def _nanoseconds(seconds: int | Decimal) -> int:
    return int((Decimal(seconds) * NANOSECONDS_PER_S).to_integral_value())


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a trace may hold")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")


def synthesise_tokens(seed: int, label: str, count: int, tokens: TokenRange) -> array[int]:
    """`count` token ids in `tokens`, a function of (seed, label) alone.

    Two labels share a prefix of 16 tokens (a KV-cache block) with probability `tokens.size ** -16`, so that the
    engine's prefix cache finds nothing that the workload did not ask for.
    """
    if tokens.size < 1:
        raise ValueError("the token range is empty")
    digest = hashlib.shake_256(f"hyperlapse prompt {seed} {label}".encode()).digest(4 * count)
    words = array("I")
    assert words.itemsize == 4
    words.frombytes(digest)
    if _BIG_ENDIAN:
        words.byteswap()
    first, size = tokens.first, tokens.size
    return array("I", (first + word % size for word in words))


_BIG_ENDIAN = array("I", [1]).tobytes()[0] == 0


def prompt_of(request: TraceRequest, index: int, seed: int, tokens: TokenRange) -> array[int]:
    """The token ids of a request's prompt; `index` is its place in the workload."""
    if request.prompt_token_ids is not None:
        return array("I", request.prompt_token_ids)
    own = synthesise_tokens(seed, f"request {index}", request.prompt_tokens - request.prefix_tokens, tokens)
    if request.prefix_id is None:
        return own
    return synthesise_tokens(seed, f"prefix {request.prefix_id}", request.prefix_tokens, tokens) + own


def check_lengths(path: Path, requests: Iterable[TraceRequest], max_model_len: int, vocabulary: int) -> None:
    """Raises TraceError when a model with these limits cannot serve a request (vLLM would refuse it mid-run)."""
    for request in requests:
        total = request.prompt_tokens + request.output_tokens
        if total > max_model_len:
            raise TraceError(
                path,
                request.line,
                f"{request.prompt_tokens} prompt + {request.output_tokens} output tokens: the longest sequence that is "
                f"served is {max_model_len}",
            )
        highest = max(request.prompt_token_ids or (0,))
        if highest >= vocabulary:
            raise TraceError(path, request.line, f"token id {highest}: the model's vocabulary has {vocabulary}")


def write_workload(
    path: Path,
    requests: Iterable[TraceRequest],
    seed: int,
    tokens: TokenRange,
    *,
    text: bool = False,
    first_index: int = 0,
) -> int:
    """Writes what `cli/client.py` reads: a line a request with its prompt. Returns the number of requests.

    `text`: the made-up prompts are words `t<id>` of the made-up tokenizer (hyperlapse.shim.models), not token ids.
    `first_index` numbers the requests for their prompts, so that two workloads of a seed can differ.
    """
    count = 0
    with path.open("w", encoding="ascii") as file:
        for index, request in enumerate(requests, start=first_index):
            ids = prompt_of(request, index, seed, tokens).tolist()
            as_text = text and request.prompt_token_ids is None
            line = {
                "arrival_ns": request.arrival_ns,
                "output_tokens": request.output_tokens,
                "prompt": " ".join(f"t{token}" for token in ids) if as_text else ids,
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            count += 1
    return count


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    """Writes a trace that `read_trace` reads back as it was."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            file.write(json.dumps(dict(_trace_fields(request)), separators=(", ", ": ")) + "\n")


def _trace_fields(request: TraceRequest) -> Iterator[tuple[str, object]]:
    # A float keeps nanoseconds exact up to 2**53 ns (104 days), far beyond what a replay lasts.
    yield "arrival_s", request.arrival_ns / NANOSECONDS_PER_S
    yield "prompt_tokens", request.prompt_tokens
    yield "output_tokens", request.output_tokens
    if request.prompt_token_ids is not None:
        yield "prompt_token_ids", list(request.prompt_token_ids)
    if request.prefix_id is not None:
        yield "prefix_id", request.prefix_id
        yield "prefix_tokens", request.prefix_tokens


def token_range(model_folder: Path) -> TokenRange:
    """The longest run of ordinary token ids of a model (Qwen3: 0 to 151,642; its special tokens start at 151,643).

    Special ids come from the model's own files: `tokenizer.json` (`added_tokens`) and the begin, end and padding ids
    of `config.json` and `generation_config.json`. Raises ValueError when config.json names no vocabulary.
    """
    config = _json_object(model_folder / "config.json")
    vocabulary = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    if type(vocabulary) is not int or vocabulary < 1:
        raise ValueError(f"{model_folder / 'config.json'} has no vocab_size")
    special: set[int] = set()
    for source in (config, _json_object(model_folder / "generation_config.json")):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = source.get(key)
            special.update(token for token in (value if isinstance(value, list) else [value]) if type(token) is int)
    tokenizer = _json_object(model_folder / "tokenizer.json")
    for token in tokenizer.get("added_tokens") or []:
        special.add(token["id"])
    bound = _tokenizer_size(tokenizer)
    if bound is not None:
        vocabulary = min(vocabulary, bound)
    best = TokenRange(0, 0)
    first = 0
    for barrier in [*sorted(token for token in special if token < vocabulary), vocabulary]:
        if barrier - first > best.size:
            best = TokenRange(first, barrier)
        first = barrier + 1
    return best


def _tokenizer_size(tokenizer: dict[str, Any]) -> int | None:
    # Ids between the tokenizer's last entry and config.json's padded vocab_size are refused by vLLM's input check.
    entries = (tokenizer.get("model") or {}).get("vocab")
    if not entries:
        return None
    highest = max(entries.values()) if isinstance(entries, dict) else len(entries) - 1
    added = [token["id"] for token in tokenizer.get("added_tokens") or []]
    return int(max([highest, *added])) + 1


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
