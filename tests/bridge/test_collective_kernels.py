"""Kernels in which GPUs meet without NCCL: they start when the last rank has come, and end for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hyperlapse.shim.collective_kernels import OWN, CollectiveKernelsError, publish

from .conftest import Outcome
from .test_ipc import PRELUDE

Program = Callable[..., Outcome]
CUBINS = Path(__file__).resolve().parent / "cubins"

# A kernel named "framed" takes the peers by value and says the ranks; "bounded" has them in memory, the name says the ranks.
RULES = """
version: 1
kernels:
  - name: ^framed$
    operation: kernel_all_reduce
    peers: {argument: 0, in: value}
    ranks: {argument: 1, type: int64}
    size: {argument: 2, type: int32, unit_bytes: 16}
  - name: ^(bounded)$
    operation: never
    peers: {argument: 0, in: memory}
    size: {argument: 1, type: int64, unit_bytes: 2}
"""
PEERS = (
    PRELUDE
    + f"""
import time
ok(cu.cuInit(0)); ok(rt.cudaFree(None)); image = open("{CUBINS}/kernels.sm_90.cubin", "rb").read()
module, framed, bounded = c_void_p(), c_void_p(), c_void_p()
ok(cu.cuModuleLoadData(byref(module), image)); ok(cu.cuModuleGetFunction(byref(framed), module, b"framed"))
ok(cu.cuModuleGetFunction(byref(bounded), module, b"bounded"))
mine, handle, other = alloc(1 << 20), Handle(), c_void_p(); ok(rt.cudaIpcGetMemHandle(byref(handle), mine)); send(handle)
ctypes.memmove(byref(handle), take(64), 64); ok(rt.cudaIpcOpenMemHandle(byref(other), handle, 1))
peers = (c_void_p * 8)(*((mine, other) if rank == 0 else (other, mine)))
stream = c_void_p(); ok(rt.cudaStreamCreateWithFlags(byref(stream), 1))
def launch(function, *arguments):
    pointers = (c_void_p * len(arguments))(*[ctypes.addressof(each) for each in arguments])
    return cu.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, pointers, None)
"""
)


def test_ranks_meet_eagerly_and_in_graphs(run_program: Program) -> None:
    outcome = run_program(
        PEERS
        + """
def timed(call, late):
    if rank and late: time.sleep(0.4)
    begin = time.monotonic(); ok(call()); ok(rt.cudaStreamSynchronize(stream)); return time.monotonic() - begin
def meet(): return launch(framed, peers, ctypes.c_int64(2), ctypes.c_int32(1000))
say(rank, "eager", timed(meet, True) > 0.2)
graph, exe = c_void_p(), c_void_p()
ok(rt.cudaStreamBeginCapture(stream, 0)); ok(meet()); ok(meet()); ok(rt.cudaStreamEndCapture(stream, byref(graph)))
ok(rt.cudaGraphInstantiate(byref(exe), graph, c_uint64(0)))
for turn in range(3): say(rank, "graph", timed(lambda: rt.cudaGraphLaunch(exe, stream), True) > 0.2)
end()
""",
        gpus=2,
        collectives=RULES,
    )
    assert sorted(outcome.lines) == sorted(["0 eager True", "1 eager False", *["0 graph True", "1 graph False"] * 3])
    assert {(one.kind, one.name, one.args[:2]) for one in outcome.launches} == {
        ("collective", "kernel_all_reduce", (16000, 2))
    }


def test_what_cannot_be_understood_is_an_ordinary_kernel(run_program: Program) -> None:
    """Counted as an event (bridge/collective.c): here only that nobody waits for ever."""
    outcome = run_program(
        PEERS
        + """
nobody = (c_void_p * 8)(mine.value, 4096)
ok(launch(framed, nobody, ctypes.c_int64(2), ctypes.c_int32(1))); ok(launch(framed, peers, ctypes.c_int64(0), ctypes.c_int32(1)))
ok(launch(framed, peers, ctypes.c_int64(1 << 40), ctypes.c_int32(1)))
ok(launch(bounded, mine, ctypes.c_int64(1)))  # its name says no number
ok(cu.cuLaunchKernel(framed, 1, 1, 1, 32, 1, 1, 0, stream, None, None)); ok(rt.cudaStreamSynchronize(stream)); end()
""",
        gpus=2,
        collectives=RULES,
    )
    assert {(one.kind, one.name) for one in outcome.launches} == {("kernel", "framed"), ("kernel", "bounded")}


GOOD = (
    "{name: a, operation: b, peers: {argument: 1, in: value}, ranks: {argument: 2, type: int32}, "
    "size: {argument: 3, type: int32, unit_bytes: 2}}"
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "must be a mapping"),
        ("{version: 2, kernels: []}", "version: 1"),
        ("{version: 1, kernels: [3]}", "kernel 1: needs `name`"),
        (f"{{version: 1, kernels: [{GOOD}, {{}}]}}", "kernel 2: needs `name`"),
        (f"{{version: 1, kernels: [{GOOD.replace('name: a', 'name: a, colour: 3')}]}}", "unknown field `colour`"),
        (f"{{version: 1, kernels: [{GOOD.replace('in: value', 'in: nowhere')}]}}", "`peers` must be"),
        (f"{{version: 1, kernels: [{GOOD.replace('argument: 1', 'argument: -1')}]}}", "from 0 to 63"),
        (f"{{version: 1, kernels: [{GOOD.replace('unit_bytes: 2', 'bytes: 2')}]}}", "`size` must be"),
        (f"{{version: 1, kernels: [{GOOD.replace('ranks: {argument: 2, type: int32}, ', '')}]}}", "needs `ranks`"),
        (f"{{version: 1, kernels: [{GOOD.replace('operation: b', 'operation: a b')}]}}", "a word"),
    ],
)
def test_a_file_that_follows_no_schema(tmp_path: Path, text: str, says: str) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)
    with pytest.raises(CollectiveKernelsError, match=says) as caught:
        publish(tmp_path, [rules])
    assert str(rules) in str(caught.value)


def test_bundled_rules(tmp_path: Path) -> None:
    publish(tmp_path)
    assert len((tmp_path / "collective-kernels").read_text().splitlines()) == OWN.read_text().count("- name:")
