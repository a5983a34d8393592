"""Collectives between processes."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from hyperlapse.shim import pricing

RANK = """
    rank = int(RANK)
    stream = lib.hl_timeline_stream_create(rank, False)
    event = lib.hl_timeline_event_create()
    out = ffi.new("int64_t *")
    say("ready")
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "compute":
            lib.hl_timeline_launch(stream, launch("kernel", "k", int(numbers[0]), device=rank))
        elif word == "kernel":
            lib.hl_timeline_launch(stream, launch("kernel", numbers[0], 1000, device=rank))
            lib.hl_timeline_stream_wait(stream)
        elif word == "copy":
            lib.hl_timeline_launch(stream, launch("copy", "d2d", 1287 * int(numbers[0]), device=rank))
        elif word == "reduce":
            each = launch("collective", "all_reduce,bf16", int(numbers[1]), int(numbers[2]), device=rank)
            lib.hl_timeline_rendezvous(stream, 99, int(numbers[0]), int(numbers[2]), each)
        elif word == "instant":
            lib.hl_timeline_record(event, stream)
            while not lib.hl_timeline_event_instant_ns(event, out):
                time.sleep(0.001)
            say(out[0])
        elif word == "query":
            say(lib.hl_timeline_stream_query(stream))
        elif word == "wait":
            lib.hl_timeline_stream_wait(stream)
            say("done")
"""
FAR = 1_000_000_000_000


class Rank:
    def __init__(self, program: Callable[[str], Any], rank: int) -> None:
        self.process = program(f"RANK = {rank}\n" + __import__("textwrap").dedent(RANK))
        self.expect("ready")

    def do(self, *words: object) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return str(line)

    def expect(self, word: str) -> None:
        assert self.answer() == word

    def ask(self, *words: object) -> int:
        self.do(*words)
        return int(self.answer())


@pytest.fixture
def ranks(core: Any, program: Callable[[str], Any]) -> Any:
    made = [Rank(program, rank) for rank in range(2)]
    yield made
    for rank in made:
        rank.process.kill()
        rank.process.communicate()


def test_both_end_together_after_the_later_one(ranks: list[Rank], service: Any) -> None:
    pricer = service()
    for rank, far in zip(ranks, (FAR, 2 * FAR), strict=True):
        rank.do("copy", far)
    before = [rank.ask("instant") for rank in ranks]
    for rank in ranks:
        rank.do("reduce", 1, 5_000_000, 2)
        rank.do("compute", 1000)
    after = [rank.ask("instant") for rank in ranks]
    assert after[0] == after[1] == before[1] + 1470 + 5_000_000 + 1470 + 1000
    assert sorted(asked.kind for asked in pricer.asked) == ["collective", "kernel"]


def test_a_name_learnt_meanwhile_is_asked_for_once(ranks: list[Rank], service: Any) -> None:
    """Both ranks launch each new kernel at once: the second finds the first's request, or its price."""
    pricer = service()
    for number in range(300):
        for rank in ranks:
            rank.do("kernel", f"k{number}")
    for rank in ranks:
        rank.do("wait")
    for rank in ranks:
        rank.expect("done")
    assert sorted(asked.name for asked in pricer.asked) == sorted(f"k{number}" for number in range(300))


def test_the_first_waits_unresolved(ranks: list[Rank], service: Any) -> None:
    service()
    ranks[0].do("reduce", 1, 1000, 2)
    assert ranks[0].ask("query") == 2  # unresolved
    ranks[0].do("wait")
    time.sleep(0.2)
    ranks[1].do("reduce", 1, 1000, 2)
    ranks[0].expect("done")
    ranks[1].do("wait")
    ranks[1].expect("done")


def test_many_in_a_row(ranks: list[Rank], service: Any) -> None:
    service()
    for rank in ranks:
        rank.do("copy", FAR)
        for number in range(500):
            rank.do("compute", 1000 + 100 * (number % 3))
            rank.do("reduce", number, 2000, 2)
    instants = [rank.ask("instant") for rank in ranks]
    assert instants[0] == instants[1]


def test_one_rank_alone(ranks: list[Rank], service: Any) -> None:
    service()
    ranks[0].do("reduce", 1, 1000, 1)
    ranks[0].do("wait")
    ranks[0].expect("done")


def test_disagreement_is_fatal(ranks: list[Rank], service: Any) -> None:
    service()
    ranks[0].do("reduce", 1, 1000, 3)
    ranks[0].ask("query")
    time.sleep(0.1)
    ranks[1].do("reduce", 1, 1000, 2)
    ranks[1].do("query")
    _, err = ranks[1].process.communicate(timeout=30)
    assert ranks[1].process.returncode == -signal.SIGABRT
    assert "do not agree on operation 1: one says 2 ranks, another 3" in err


def test_price_of_a_killed_ranks_launch_still_serves_the_other(ranks: list[Rank], service: Any) -> None:
    """Both ask for one price; the one whose request it is dies."""
    pricer = service()
    pricer.gate.clear()
    ranks[0].do("compute", 1000)
    assert ranks[0].ask("query") == 2
    ranks[1].do("compute", 1000)
    assert ranks[1].ask("query") == 2
    assert pricing.statistics().requests == 1
    ranks[0].process.kill()
    ranks[0].process.wait()
    pricer.gate.set()
    ranks[1].do("wait")
    ranks[1].expect("done")
