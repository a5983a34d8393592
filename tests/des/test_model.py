"""The causality model against instants worked out by hand from vLLM's rules."""

from __future__ import annotations

import random

import pytest

from tests.des.model import MILLISECOND_NS, Arrival, Engine, compare, engine_arrivals, simulate

MS = MILLISECOND_NS
NO_WAIT = Engine(tokenizer_wait_ns=0)


def test_idle_request_is_prefill_then_decode_steps() -> None:
    (tokens,) = simulate([Arrival(5 * MS, 1024, 4)], Engine())
    first = 5 * MS + 2_001_000 + 10 * MS + 1024 * 40_000
    assert tokens == (first, first + 10 * MS, first + 20 * MS, first + 30 * MS)


def test_one_token_request_ends_with_its_prefill() -> None:
    assert simulate([Arrival(0, 100, 1)], NO_WAIT) == [(14 * MS,)]


def test_arrival_during_a_step_runs_after_the_step_that_is_already_queued() -> None:
    # Request 0: prefill of 100 tokens ends at 14; the decode step queued behind it runs 14-24. Request 1 comes at 1,
    # while both are in flight, is seen at 14 and runs as the third step, 24-38 (10 + 100 * 0.04).
    first, second = simulate([Arrival(0, 100, 4), Arrival(1 * MS, 100, 2)], NO_WAIT)
    assert first == (14 * MS, 24 * MS, 38 * MS, 48 * MS)
    assert second == (38 * MS, 48 * MS)


def test_arrival_sent_exactly_at_a_step_end_is_on_its_way_while_the_engine_schedules() -> None:
    _, second = simulate([Arrival(0, 100, 40), Arrival(14 * MS, 100, 2)], NO_WAIT)
    assert second[0] == 48 * MS
    _, late = simulate([Arrival(0, 100, 40), Arrival(14 * MS + 1, 100, 2)], NO_WAIT)
    assert late[0] == 48 * MS


def test_prompt_longer_than_the_budget_is_cut() -> None:
    engine = Engine(tokenizer_wait_ns=0, token_budget=1000)
    (tokens,) = simulate([Arrival(0, 2500, 2)], engine)
    assert tokens == ((10 + 40 + 10 + 40 + 10 + 20) * MS, (10 + 40 + 10 + 40 + 10 + 20 + 10) * MS)


def test_running_request_keeps_its_place_in_the_budget() -> None:
    # The decode token of request 0 comes out of the budget before the prompt of request 1.
    engine = Engine(tokenizer_wait_ns=0, token_budget=100)
    first, second = simulate([Arrival(0, 100, 20), Arrival(1, 100, 1)], engine)
    # Steps: 0-14 prefill 0; 14-24 decode; 24-37.96 decode + 99 tokens; then decode + 1 token.
    assert first[:4] == (14 * MS, 24 * MS, 37_960_000, 48 * MS)
    assert second == (48 * MS,)


def test_full_batch_makes_the_engine_sleep_before_it_admits() -> None:
    # While the last step of the only place runs, the engine queues an empty step; after it, it sleeps 1 ms.
    engine = Engine(tokenizer_wait_ns=0, max_running=1)
    first, second = simulate([Arrival(0, 100, 1), Arrival(0, 100, 1)], engine)
    assert first == (14 * MS,)
    assert second == (14 * MS + 1_001_000 + 14 * MS,)


def test_arrival_just_after_the_last_token_waits_for_the_engines_sleep() -> None:
    # Request 0 ends at 14 ms; the engine then sleeps 1 ms (+1 us) and sees request 1, which came at 14.5 ms, after it.
    _, second = simulate([Arrival(0, 100, 1), Arrival(14 * MS + 500_000, 100, 1)], NO_WAIT)
    assert second == (14 * MS + 1_001_000 + 14 * MS,)
    _, later = simulate([Arrival(0, 100, 1), Arrival(16 * MS, 100, 1)], NO_WAIT)
    assert later == (30 * MS,)


def test_text_prompts_are_tokenised_together() -> None:
    engine = Engine(tokenizer_batch=2)
    got = engine_arrivals([0, 1000, 2000, 3 * MS, 10 * MS], engine)
    assert got == [
        (2_001_000, 0),
        (2_001_000, 1),
        (2_003_000, 2),
        (5_001_000, 3),
        (12_001_000, 4),
    ]


def test_idle_gaps_do_not_carry_over() -> None:
    alone = simulate([Arrival(0, 64, 8)], NO_WAIT)[0]
    pair = simulate([Arrival(0, 64, 8), Arrival(5_000 * MS, 64, 8)], NO_WAIT)
    assert pair[0] == alone
    assert pair[1] == tuple(instant + 5_000 * MS for instant in alone)


def test_every_request_gets_its_tokens_in_order_whatever_the_load() -> None:
    rng = random.Random(7)
    engine = Engine(token_budget=512, max_running=4)
    arrivals = [Arrival(rng.randrange(2_000 * MS), rng.randrange(1, 1500), rng.randrange(1, 40)) for _ in range(60)]
    for arrival, tokens in zip(arrivals, simulate(arrivals, engine), strict=True):
        assert len(tokens) == arrival.output_tokens
        assert list(tokens) == sorted(set(tokens))
        chunks = -(-arrival.prompt_tokens // engine.token_budget)
        assert tokens[0] >= arrival.send_ns + chunks * engine.step_ns + 40_000 * arrival.prompt_tokens


def test_compare_counts_what_is_late() -> None:
    difference = compare([0, 5], [(10, 20), (15, 200_026)], [(10, 20), (15, 25)])
    assert (difference.late_first_tokens, difference.late_gaps, difference.max_gap_ns) == (0, 1, 200_001)
    with pytest.raises(ValueError, match="request 0 has 1 tokens, the model says 2"):
        compare([0], [(10,)], [(10, 20)])
