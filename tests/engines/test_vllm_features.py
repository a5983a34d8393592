"""More than text in, text out: what a request can ask of the real server, over its own HTTP routes, in both details.

One server a detail answers everything here. The clock stays real and a step takes 1 ms: values are tested, not times.
docs/features.md says what each test shows.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hyperlapse.cli.engine_environment import EngineEnvironment
from hyperlapse.cli.serving import HOST
from hyperlapse.integrations.vllm import serve_args
from tests.engines.serving import Serving, prompt, serving

pytestmark = pytest.mark.engine

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
# eager: the profile of another configuration would be compiled once more; long: a client must be gone before the end
FLAGS = ("--enforce-eager", "--max-model-len", "16384", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
# 1,100 blocks of 16 tokens, so that three prompts of 6,000 tokens push the first one out; 4 GiB hold 1,600 blocks
OFFLOADING = ("--num-gpu-blocks-override", "1100", "--kv-offloading-size", "4")
PCIE_5_BYTES_PER_S = 63e9  # 16 lanes at 32 GT/s, 128b/130b
ONE_TWO = [{"role": "user", "content": "one two"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["step", "kernel"])
def server(
    request: pytest.FixtureRequest, engine: EngineEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    offloading = request.param == "kernel" and engine.version == "0.23.0"
    flags = (*FLAGS, *(OFFLOADING if offloading else ()))
    with serving(engine, tmp_path_factory.mktemp(request.param), request.param, *flags) as started:
        yield started


def ask(server: Serving, route: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    status, answer = server.post(route, {"max_tokens": 8, **body})
    assert status == 200, answer
    return answer


def choice(server: Serving, route: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    (only,) = ask(server, route, **body)["choices"]
    return dict(only)


def metric(server: Serving, name: str) -> float:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found = re.search(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no {name} in /metrics"
    return float(found[1])


def eventually(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


# ----- log-probabilities -----


def test_log_probabilities_of_completions(server: Serving) -> None:
    scores = choice(server, prompt="one two", logprobs=3)["logprobs"]
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == 8
    for token, value, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True):
        values = list(top.values())
        assert top[token] == value
        assert len(top) == 3
        assert values == sorted(values, reverse=True)
        assert all(math.isfinite(each) and each < 0 for each in values)
        assert sum(math.exp(each) for each in values) < 1
    assert choice(server, prompt="one two", logprobs=0)["logprobs"]["token_logprobs"] == scores["token_logprobs"]


def test_log_probabilities_of_chat(server: Serving) -> None:
    messages = [{"role": "user", "content": "one two"}]
    content = choice(server, CHAT, messages=messages, logprobs=True, top_logprobs=4)["logprobs"]["content"]
    assert len(content) == 8
    for each in content:
        assert each["top_logprobs"][0]["token"] == each["token"]
        assert len({top["token"] for top in each["top_logprobs"]}) == 4


def test_log_probabilities_of_a_prompt_and_echo(server: Serving) -> None:
    ids = prompt(1, 30)
    rows = choice(server, prompt=ids, prompt_logprobs=2)["prompt_logprobs"]
    assert rows[0] is None
    assert [str(token) in row for token, row in zip(ids[1:], rows[1:], strict=True)] == [True] * 29
    echoed = choice(server, prompt="t5 t6 t7", echo=True, logprobs=1, max_tokens=2)
    assert echoed["text"].split()[:3] == ["t5", "t6", "t7"]
    assert echoed["logprobs"]["token_logprobs"][0] is None
    assert len(echoed["logprobs"]["token_logprobs"]) == 5
    assert choice(server, prompt="t5 t6 t7", echo=True, max_tokens=2)["text"].split()[:3] == ["t5", "t6", "t7"]


def test_beam_search(server: Serving) -> None:
    beams = ask(server, prompt="one", use_beam_search=True, n=3)["choices"]
    assert len({beam["text"] for beam in beams}) == 3


# ----- structured output -----


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_met_and_comes_to_an_end(server: Serving, seed: int) -> None:
    answer = choice(server, prompt=prompt(seed, 5), structured_outputs={"json": SCHEMA}, max_tokens=400)
    value = json.loads(answer["text"])
    assert answer["finish_reason"] == "stop"
    assert list(value) == ["name", "age", "tags", "ok"]
    assert isinstance(value["age"], int)
    assert isinstance(value["ok"], bool)
    assert all(isinstance(tag, str) for tag in value["tags"])


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}],
)
def test_response_formats(server: Serving, response_format: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "one"}]
    answer = choice(server, CHAT, messages=messages, response_format=response_format, max_tokens=400)
    assert answer["finish_reason"] == "stop"
    assert isinstance(json.loads(answer["message"]["content"]), dict)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"choice": ["yes", "no", "t17"]}, "yes|no|t17"),
        ({"regex": "[A-Z]{2}-[0-9]{3}"}, "[A-Z]{2}-[0-9]{3}"),
        ({"grammar": 'root ::= "a" | "b" [0-9] [0-9]'}, "a|b[0-9]{2}"),
    ],
)
def test_choices_patterns_and_grammars(server: Serving, constraint: dict[str, Any], pattern: str) -> None:
    answer = choice(server, prompt="one", structured_outputs=constraint, max_tokens=20, logprobs=1)
    assert re.fullmatch(pattern, answer["text"]), answer["text"]
    assert answer["finish_reason"] == "stop"


def test_an_answer_that_ignores_the_end_goes_on_as_long_as_the_grammar_allows(server: Serving) -> None:
    asked = {"prompt": "one", "structured_outputs": {"regex": "[a-z]{2,12}"}, "max_tokens": 12}
    assert len(choice(server, **asked)["text"]) == 2
    assert len(choice(server, **asked, ignore_eos=True)["text"]) == 12
    assert len(choice(server, **asked, min_tokens=6)["text"]) >= 6


def test_forced_tools(server: Serving, engine: EngineEnvironment) -> None:
    function = {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    }
    answer = choice(
        server,
        CHAT,
        messages=[{"role": "user", "content": "one"}],
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "look_up"}},
        max_tokens=200,
    )
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "look_up"
    arguments = json.loads(call["function"]["arguments"])  # 0.32.0's grammar lets them be any JSON
    assert engine.version != "0.23.0" or isinstance(arguments["x"], int)


def test_many_grammars_beside_ordinary_requests(server: Serving) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(index: int) -> tuple[int, str]:
        constraint = {"structured_outputs": {"regex": f"{index}-[0-9]{{4}}"}} if index % 2 else {"ignore_eos": True}
        return index, choice(server, prompt=prompt(index, 50 + index), max_tokens=30, **constraint)["text"]

    with ThreadPoolExecutor(12) as pool:
        for index, text in pool.map(one, range(24)):
            if index % 2:
                assert re.fullmatch(f"{index}-[0-9]{{4}}", text), text
            else:
                assert len(text.split()) == 30


def test_what_no_id_can_write_fails_alone(server: Serving) -> None:
    """The made-up tokenizer has no accents: the engine ends this request, and goes on."""
    status, _ = server.post(COMPLETIONS, {"prompt": "one", "structured_outputs": {"regex": "é+"}, "max_tokens": 5})
    assert status in (400, 500)
    status, answer = server.post(COMPLETIONS, {"prompt": "one", "structured_outputs": {"regex": "(("}, "max_tokens": 5})
    assert status == 400, answer
    assert len(server.complete(prompt(2, 10), 3)[0]) == 3


# ----- sampling parameters -----


def test_choices_differ(server: Serving) -> None:
    assert len({each["text"] for each in ask(server, prompt="one", n=4)["choices"]}) == 4


def test_ids_that_are_allowed_forced_and_banned(server: Serving) -> None:
    free = server.complete(prompt(3, 20), 10)[0]
    assert set(server.complete(prompt(3, 20), 10, allowed_token_ids=[21, 22])[0]) == {21, 22}
    assert server.complete(prompt(3, 20), 5, logit_bias={"30": 100})[0] == [30] * 5
    assert not set(server.complete(prompt(3, 20), 10, logit_bias={str(token): -100 for token in free})[0]) & set(free)
    penalties = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "temperature": 0.7}
    assert server.complete(prompt(3, 20), 10, **penalties, top_p=0.9, top_k=20, min_p=0.1, seed=5)[0] == free


def test_bad_words(server: Serving) -> None:
    """Asked of the chat route: 0.23.0 has no such field of completions."""
    messages = [{"role": "user", "content": "one two"}]
    free = choice(server, CHAT, messages=messages)["message"]["content"].split()
    single = choice(server, CHAT, messages=messages, bad_words=[free[2]])["message"]["content"].split()
    assert single[:2] == free[:2]
    assert free[2] not in single
    pair = choice(server, CHAT, messages=messages, bad_words=[f"{free[3]} {free[4]}"])["message"]["content"].split()
    assert pair[:4] == free[:4]
    assert pair[4] != free[4]


def test_stop_strings_and_stop_ids(server: Serving) -> None:
    free = server.complete(prompt(4, 20), 12)[0]
    asked = {"prompt": prompt(4, 20), "max_tokens": 12, "return_token_ids": True}
    stopped = choice(server, **asked, stop=[f"t{free[5]}"])
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", f"t{free[5]}")
    assert stopped["text"].split() == [f"t{token}" for token in free[:5]]
    # ids that a request names as stops are never made up: it ends at its length
    assert choice(server, **asked, stop_token_ids=[free[5]])["finish_reason"] == "length"
    assert len(choice(server, **asked, min_tokens=12)["token_ids"]) == 12


@pytest.mark.parametrize(
    ("route", "fields", "words"),
    [
        (COMPLETIONS, {"prompt": "one", "allowed_token_ids": list(range(1025))}, "at most 1024"),
        (COMPLETIONS, {"prompt": "one", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "one", "stop_token_ids": list(range(128)), "min_tokens": 1}, "ids that end a text"),
        (CHAT, {"messages": ONE_TWO, "bad_words": [" ".join(["t5"] * 1025)]}, "1024 ids"),
        ("/v1/score", {"text_1": "one", "text_2": "two"}, "logits"),
    ],
)
def test_what_is_refused_says_why_and_the_server_lives(
    server: Serving, route: str, fields: dict[str, Any], words: str
) -> None:
    status, answer = server.post(route, fields)
    assert status == 400, answer
    assert words in answer["error"]["message"]
    assert len(server.complete(prompt(5, 10), 2)[0]) == 2


def test_embeddings_are_not_offered(server: Serving) -> None:
    status, _ = server.post("/v1/embeddings", {"input": "one"})
    assert status in (400, 404)


# ----- aborts and the prefix cache -----


def test_a_client_that_goes_away_frees_its_blocks(server: Serving) -> None:
    body = {"model": "m", "prompt": prompt(106, 1000), "max_tokens": 15_000, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", COMPLETIONS, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.read1(100)
        assert metric(server, "vllm:num_requests_running") == 1
        answer.close()
    eventually(lambda: metric(server, "vllm:num_requests_running") == 0)
    eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)
    assert len(server.complete(prompt(106, 1000), 3)[0]) == 3


def cached_tokens(server: Serving, generate: Callable[[], Any]) -> int:
    before = metric(server, "vllm:prefix_cache_hits_total")
    generate()
    return round(metric(server, "vllm:prefix_cache_hits_total") - before)


def test_the_prefix_cache_hits_equal_prompts_and_no_others(server: Serving) -> None:
    ids = prompt(107, 160)
    assert cached_tokens(server, lambda: server.complete(ids, 5)) == 0
    assert (
        cached_tokens(server, lambda: server.complete(ids, 5)) == 144
    )  # the last token must be computed: 9 of 10 blocks
    assert cached_tokens(server, lambda: server.complete([*ids[:100], 5, *ids[101:]], 5)) == 96
    assert cached_tokens(server, lambda: server.complete(prompt(108, 160), 5)) == 0


def test_a_chat_that_sends_its_history_again_finds_it_in_the_cache(server: Serving) -> None:
    """As text: what was made up tokenises back to the ids that it was made of."""
    words = " ".join(f"t{token}" for token in prompt(109, 60))
    messages = [{"role": "user", "content": words}]
    for _ in range(3):
        answer = ask(server, CHAT, messages=messages, max_tokens=100, ignore_eos=True)
        usage = answer["usage"]
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        messages.append({"role": "user", "content": words})
        known = usage["prompt_tokens"] + usage["completion_tokens"] - 1  # the last id was sampled, not computed
        hit = cached_tokens(server, lambda: ask(server, CHAT, messages=messages, max_tokens=1))
        assert hit == known // 16 * 16


# ----- KV offloading: last, because it pushes out what the prefix cache holds -----


def test_blocks_come_back_from_the_hosts_memory(server: Serving, engine: EngineEnvironment) -> None:
    """With 0.23.0 in the kernel detail; refused elsewhere (tests/integrations/test_unsupported.py)."""
    if server.record("worker")["detail"] == "step" or engine.version != "0.23.0":
        with pytest.raises(ValueError, match="use --detail kernel"):
            serve_args("m", "step", extra=OFFLOADING)
        return
    first = prompt(201, 6000)
    ids = server.complete(first, 3)
    for seed in range(202, 205):
        server.complete(prompt(seed, 6000), 3)
    before = metric(server, "vllm:external_prefix_cache_hits_total")
    assert server.complete(first, 3) == ids
    assert metric(server, "vllm:external_prefix_cache_hits_total") - before > 5900
    moved_bytes = metric(server, "vllm:kv_offload_total_bytes_total")  # to the host: 160 KiB a token of Qwen3-14B
    assert moved_bytes > 4 * 5900 * 160 * 1024
    # no lower bound: the time between the events holds what the host does before each copy, on the real clock here
    assert moved_bytes / metric(server, "vllm:kv_offload_total_time_total") < PCIE_5_BYTES_PER_S
