"""Traces: what is read, what is refused with file and line, and prompts that are the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlapse.cli.workload import (
    TokenRange,
    TraceError,
    TraceRequest,
    check_lengths,
    prompt_of,
    read_trace,
    synthesise_tokens,
    token_range,
    write_trace,
    write_workload,
)

QWEN = TokenRange(0, 151_643)


def trace(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_arrivals_are_exact_nanoseconds_and_lines_are_sorted_by_them(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        '{"arrival_s": 0.3, "prompt_tokens": 5, "output_tokens": 1}',
        "",
        '{"arrival_s": 0.1, "prompt_tokens": 6, "output_tokens": 2}',
        '{"arrival_s": 0, "prompt_tokens": 7, "output_tokens": 3}',
        '{"arrival_s": 1.0000000015, "prompt_tokens": 8, "output_tokens": 4}',
    )
    assert [request.arrival_ns for request in read_trace(path)] == [0, 100_000_000, 300_000_000, 1_000_000_002]


def test_equal_arrivals_keep_the_order_of_the_file(tmp_path: Path) -> None:
    lines = [json.dumps({"arrival_s": 1, "prompt_tokens": count, "output_tokens": 1}) for count in (9, 3, 7)]
    assert [request.prompt_tokens for request in read_trace(trace(tmp_path, *lines))] == [9, 3, 7]


GOOD = '{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "expected a JSON object, found a list"),
        ("[" * 100_000, "not a JSON object"),
        ("null", "found null"),
        ('{"prompt_tokens": 4, "output_tokens": 2}', "'arrival_s' is missing"),
        ('{"arrival_s": 0, "output_tokens": 2}', "'prompt_tokens' is missing"),
        ('{"arrival_s": 0, "prompt_tokens": 4}', "'output_tokens' is missing"),
        ('{"arrival_s": "0", "prompt_tokens": 4, "output_tokens": 2}', "'arrival_s' must be a number"),
        ('{"arrival_s": true, "prompt_tokens": 4, "output_tokens": 2}', "found true or false"),
        ('{"arrival_s": -0.001, "prompt_tokens": 4, "output_tokens": 2}', "'arrival_s' must be 0 or more"),
        ('{"arrival_s": 1e300, "prompt_tokens": 4, "output_tokens": 2}', "'arrival_s' must be 0 or more"),
        ('{"arrival_s": 1e99999999999999999999, "prompt_tokens": 4, "output_tokens": 2}', "a number is too large"),
        ('{"arrival_s": NaN, "prompt_tokens": 4, "output_tokens": 2}', "NaN is not a number"),
        ('{"arrival_s": 0, "prompt_tokens": 4.0, "output_tokens": 2}', "'prompt_tokens' must be a whole number"),
        ('{"arrival_s": 0, "prompt_tokens": 0, "output_tokens": 2}', "'prompt_tokens' must be at least 1"),
        ('{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": -1}', "'output_tokens' must be at least 1"),
        ('{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": null}', "found null"),
        ('{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2, "promt": 1}', "unknown key 'promt'"),
        ('{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2, "prompt_token_ids": [1]}', "has 1 ids"),
        ('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2, "prompt_token_ids": [-1]}', "list of token ids"),
        ('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2, "prompt_token_ids": "a"}', "list of token ids"),
        ('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2, "prompt_token_ids": [true]}', "list of token ids"),
        ('{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2, "prefix_id": "a"}', "belong together"),
        ('{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2, "prefix_tokens": 2}', "belong together"),
        (
            '{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2, "prefix_id": "a", "prefix_tokens": 5}',
            "more than 'prompt_tokens'",
        ),
        (
            '{"arrival_s": 0, "prompt_tokens": 4, "output_tokens": 2, "prefix_id": [], "prefix_tokens": 1}',
            "'prefix_id' must be a string or an integer",
        ),
        (
            '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2, "prompt_token_ids": [1], "prefix_id": 1}',
            "leave out 'prefix_id'",
        ),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = trace(tmp_path, GOOD, line)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_other_bytes_than_text_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\xff\xfe\n")
    with pytest.raises(TraceError, match=r"trace.jsonl:2: not UTF-8"):
        read_trace(path)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no request in the file"):
        read_trace(trace(tmp_path, ""))


requests = st.builds(
    TraceRequest,
    arrival_ns=st.integers(0, 10**15),
    prompt_tokens=st.integers(20, 40),
    output_tokens=st.integers(1, 5),
    prefix_id=st.text(min_size=1),
    prefix_tokens=st.integers(1, 20),
)


@given(st.lists(requests, min_size=1, max_size=5))
def test_a_written_trace_reads_back_as_it_was(given_requests: list[TraceRequest]) -> None:
    import tempfile

    ordered = sorted(given_requests, key=lambda request: request.arrival_ns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_trace(path, ordered)
        assert read_trace(path) == ordered


def test_prompts_are_the_same_on_every_platform_and_version() -> None:
    assert synthesise_tokens(0, "request 0", 4, QWEN).tolist() == [133_549, 78_208, 42_348, 22_215]
    assert synthesise_tokens(1, "request 0", 4, QWEN).tolist() != synthesise_tokens(0, "request 0", 4, QWEN).tolist()


@given(st.integers(0, 1000), st.integers(1, 200), st.integers(0, 50), st.integers(1, 1000))
def test_made_up_ids_stay_in_the_range(seed: int, count: int, first: int, size: int) -> None:
    ids = synthesise_tokens(seed, "x", count, TokenRange(first, first + size))
    assert len(ids) == count
    assert all(first <= token < first + size for token in ids)


def test_a_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    one, two, other = (
        prompt_of(TraceRequest(0, 64, 1, prefix_id=name, prefix_tokens=32), index, 7, QWEN)
        for index, name in enumerate(("a", "a", "b"))
    )
    assert one[:32] == two[:32]
    assert one[:16] != other[:16]
    assert one[32:48] != two[32:48]
    assert len(one) == len(two) == 64


def test_a_longer_prefix_of_the_same_id_begins_with_the_shorter_one() -> None:
    short = prompt_of(TraceRequest(0, 48, 1, prefix_id="a", prefix_tokens=16), 0, 7, QWEN)
    long = prompt_of(TraceRequest(0, 48, 1, prefix_id="a", prefix_tokens=48), 1, 7, QWEN)
    assert short[:16] == long[:16]


def test_no_two_requests_share_a_first_block() -> None:
    blocks = {tuple(prompt_of(TraceRequest(0, 16, 1), index, 0, QWEN)) for index in range(2000)}
    assert len(blocks) == 2000


def test_the_written_workload_holds_ids_or_words(tmp_path: Path) -> None:
    given_ids = TraceRequest(5, 2, 1, prompt_token_ids=(7, 8))
    made_up = TraceRequest(6, 3, 2)
    assert write_workload(tmp_path / "ids", [given_ids, made_up], 0, QWEN) == 2
    write_workload(tmp_path / "text", [given_ids, made_up], 0, QWEN, text=True)
    ids, text = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("ids", "text"))
    assert ids[0] == text[0] == {"arrival_ns": 5, "output_tokens": 1, "prompt": [7, 8]}
    assert text[1]["prompt"] == " ".join(f"t{token}" for token in ids[1]["prompt"])


def test_requests_that_no_model_can_serve_are_refused_before_the_run(tmp_path: Path) -> None:
    check_lengths(tmp_path, [TraceRequest(0, 90, 10)], 100, 50)
    with pytest.raises(
        TraceError, match=r":3: 90 prompt \+ 11 output tokens: the longest sequence that is served is 100"
    ):
        check_lengths(tmp_path, [TraceRequest(0, 90, 11, line=3)], 100, 50)
    with pytest.raises(TraceError, match=r":4: token id 50: the model's vocabulary has 50"):
        check_lengths(tmp_path, [TraceRequest(0, 1, 1, prompt_token_ids=(50,), line=4)], 100, 50)


def model_folder(folder: Path, config: object, tokenizer: object | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def test_special_tokens_are_avoided_wherever_they_lie(tmp_path: Path) -> None:
    qwen = model_folder(tmp_path, {"vocab_size": 151_936, "eos_token_id": [151_645, 151_643], "bos_token_id": None})
    assert token_range(qwen) == TokenRange(0, 151_643)
    llama = model_folder(tmp_path, {"vocab_size": 32_000, "bos_token_id": 1, "eos_token_id": 2})
    assert token_range(llama) == TokenRange(3, 32_000)


def test_ids_beyond_the_tokenizer_are_avoided(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"a": 0, "b": 1, "c": 2}}, "added_tokens": [{"id": 3}]}
    assert token_range(model_folder(tmp_path, {"vocab_size": 100}, tokenizer)) == TokenRange(0, 3)


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vocab_size"):
        token_range(model_folder(tmp_path, {}))
