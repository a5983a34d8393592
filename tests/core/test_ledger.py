"""Device memory: exact counts over processes, and what a killed process had comes back."""

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

MIB = 1 << 20
TOTAL = 85017493504
CONTEXT = 552402944
DEVICE, PINNED, REGISTERED, MANAGED, RESERVED = 1, 2, 3, 4, 5


def info(core: Any, device: int = 0) -> tuple[int, int]:
    free, total = core.ffi.new("size_t *"), core.ffi.new("size_t *")
    core.lib.hl_ledger_info(device, free, total)
    return free[0], total[0]


def allocate(core: Any, size: int, kind: int = DEVICE, device: int = 0) -> Any:
    out = core.ffi.new("void **")
    status = core.lib.hl_ledger_allocate(device, kind, size, out)
    return out[0] if status == 0 else status


def test_fresh_device(core: Any) -> None:
    assert info(core) == (TOTAL, TOTAL)
    for _ in range(2):
        assert core.lib.hl_ledger_context(0) == 0
    assert info(core) == (TOTAL - CONTEXT, TOTAL)
    assert info(core, 1) == (TOTAL, TOTAL)
    assert core.lib.hl_ledger_process_bytes(0) == CONTEXT


@pytest.mark.parametrize(
    ("size", "charged"), [(1, 2 * MIB), (2 * MIB, 2 * MIB), (2 * MIB + 1, 4 * MIB), (20 * MIB, 20 * MIB)]
)
def test_granules(core: Any, size: int, charged: int) -> None:
    pointer = allocate(core, size)
    assert info(core)[0] == TOTAL - charged
    assert int(core.ffi.cast("uintptr_t", pointer)) % (2 * MIB) == 0
    assert core.lib.hl_ledger_free(pointer) == 0
    assert info(core)[0] == TOTAL
    assert core.lib.hl_ledger_free(pointer) == -errno.EINVAL


@pytest.mark.parametrize("kind", [PINNED, MANAGED, RESERVED])
def test_uncounted_kinds(core: Any, kind: int) -> None:
    pointer = allocate(core, 5 * MIB, kind)
    assert info(core)[0] == TOTAL
    found = core.ffi.new("hl_memory *")
    assert core.lib.hl_ledger_find(pointer, found)
    assert (found.kind, found.size_bytes, found.charged_bytes) == (kind, 5 * MIB, 0)
    assert core.lib.hl_ledger_free(pointer) == 0


@pytest.mark.parametrize(("size", "kind"), [(0, DEVICE), (1, 0), (1, REGISTERED), (1, 9)])
def test_bad_arguments(core: Any, size: int, kind: int) -> None:
    assert allocate(core, size, kind) == -errno.EINVAL


def test_memory_is_real(core: Any) -> None:
    pointer = allocate(core, 30 << 30)
    view = core.ffi.buffer(pointer, 30 << 30)
    view[0:5], view[(30 << 30) - 3 :] = b"first", b"end"
    assert (view[0:5], view[(30 << 30) - 3 :], view[1000:1002]) == (b"first", b"end", b"\0\0")
    core.lib.hl_ledger_free(pointer)


def test_out_of_memory_where_the_card_says_so(core: Any) -> None:
    fits = TOTAL // (2 * MIB) * 2 * MIB
    assert allocate(core, fits + 1) == -errno.ENOMEM
    assert info(core)[0] == TOTAL
    assert allocate(core, 1 << 60) == -errno.ENOMEM
    pointer = allocate(core, fits)
    assert core.lib.hl_ledger_context(0) == -errno.ENOMEM
    assert core.lib.hl_ledger_charge(0, 2 * MIB) == -errno.ENOMEM
    assert allocate(core, 1) == -errno.ENOMEM
    assert not isinstance(allocate(core, 1, device=1), int)
    assert core.lib.hl_ledger_free(pointer) == 0
    assert core.lib.hl_ledger_context(0) == 0


def test_charges_without_addresses(core: Any) -> None:
    assert core.lib.hl_ledger_charge(0, 3 * MIB) == 0
    assert info(core)[0] == TOTAL - 4 * MIB
    core.lib.hl_ledger_discharge(0, 3 * MIB)
    assert info(core)[0] == TOTAL


def test_find(core: Any) -> None:
    ffi, lib, found = core.ffi, core.lib, core.ffi.new("hl_memory *")
    blocks = [allocate(core, 3 * MIB) for _ in range(20)]
    for block in blocks:
        base = int(ffi.cast("uintptr_t", block))
        for offset, inside in [(0, True), (1, True), (3 * MIB - 1, True), (3 * MIB, False)]:
            hit = lib.hl_ledger_find(ffi.cast("void *", base + offset), found)
            assert bool(hit and found.base == base) == inside
    for block in blocks[::2]:
        lib.hl_ledger_free(block)
    assert [bool(lib.hl_ledger_find(block, ffi.NULL)) for block in blocks] == [False, True] * 10
    assert not lib.hl_ledger_find(ffi.NULL, ffi.NULL)
    for block in blocks[1::2]:
        lib.hl_ledger_free(block)


def test_registered_memory(core: Any) -> None:
    ffi, lib, found = core.ffi, core.lib, core.ffi.new("hl_memory *")
    buffer = ffi.new("char[]", 10000)
    assert lib.hl_ledger_register(ffi.NULL, 1) == -errno.EINVAL
    assert lib.hl_ledger_register(buffer, 10000) == 0
    assert lib.hl_ledger_register(buffer + 5, 10) == -errno.EEXIST
    assert lib.hl_ledger_find(buffer + 9999, found)
    assert found.kind == REGISTERED
    assert lib.hl_ledger_free(buffer) == 0
    buffer[0] = b"x"  # still there
    assert not lib.hl_ledger_find(buffer, found)


def test_processes_share_a_device(core: Any, program: Callable[[str], Any]) -> None:
    child = program("""
        lib.hl_ledger_context(0)
        lib.hl_ledger_charge(0, 60 << 30)
        say(lib.hl_ledger_process_bytes(0))
        sys.stdin.readline()
        lib.hl_ledger_discharge(0, 60 << 30)
        say("given back")
        sys.stdin.readline()
    """)
    assert int(child.stdout.readline()) == CONTEXT + (60 << 30)
    assert info(core)[0] == TOTAL - CONTEXT - (60 << 30)
    assert core.lib.hl_ledger_charge(0, 20 << 30) == -errno.ENOMEM
    assert core.lib.hl_ledger_process_bytes(0) == 0
    child.stdin.write("\n")
    child.stdin.flush()
    child.stdout.readline()
    assert core.lib.hl_ledger_charge(0, 20 << 30) == 0
    core.lib.hl_ledger_discharge(0, 20 << 30)
    child.communicate("\n")
    assert info(core)[0] == TOTAL


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
@pytest.mark.parametrize("look", ["info", "charge"])
def test_killed_process_gives_its_memory_back(
    core: Any, program: Callable[[str], Any], reaped: bool, look: str
) -> None:
    child = program("""
        lib.hl_ledger_context(0)
        lib.hl_ledger_charge(0, 70 << 30)
        say("charged")
        sys.stdin.readline()
    """)
    child.stdout.readline()
    assert core.lib.hl_ledger_charge(0, 20 << 30) == -errno.ENOMEM
    os.kill(child.pid, signal.SIGKILL)
    if reaped:
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if look == "info":
        assert info(core)[0] == TOTAL
    assert core.lib.hl_ledger_charge(0, 70 << 30) == 0
    core.lib.hl_ledger_discharge(0, 70 << 30)
    child.communicate()


def test_exec_forgets_what_the_program_before_it_had(core: Any, program: Callable[[str], Any]) -> None:
    child = program("""
        if os.environ.get("AGAIN"):
            lib.hl_timeline_default_stream(0)
            say(lib.hl_ledger_process_bytes(0))
        else:
            lib.hl_ledger_charge(0, 10 << 30)
            os.environ["AGAIN"] = "1"
            os.execv(sys.executable, [*sys.orig_argv])
    """)
    out, err = child.communicate(timeout=60)
    assert out.split() == ["0"], err
    assert info(core)[0] == TOTAL


def test_child_of_fork_owes_nothing(core: Any, program: Callable[[str], Any]) -> None:
    child = program("""
        out = ffi.new("void **")
        lib.hl_ledger_allocate(0, 1, 10 << 30, out)
        pid = os.fork()
        if not pid:
            found = lib.hl_ledger_find(out[0], ffi.NULL)
            say(lib.hl_ledger_process_bytes(0), found, lib.hl_ledger_free(out[0]), lib.hl_ledger_process_bytes(0))
            os._exit(0)
        os.waitpid(pid, 0)
        say(lib.hl_ledger_process_bytes(0))
    """)
    out, err = child.communicate(timeout=60)
    assert out.split() == ["0", "True", "0", "0", str(10 << 30)], err


def test_killed_process_leaves_no_lock_and_no_queue(
    core: Any, program: Callable[[str], Any], service: Any, launch: Any
) -> None:
    """Killed over and over in the middle of launching: others go on, and its events do not hold them up."""
    service()
    for round_number in range(4):
        child = program("""
            streams = [lib.hl_timeline_stream_create(d, b) for d in range(2) for b in (True, False)]
            event = lib.hl_timeline_event_create()
            say("running")
            number = 0
            while True:
                for stream, device in zip(streams, (0, 0, 1, 1)):
                    number += 1
                    lib.hl_timeline_launch(stream, launch("kernel", "k", number % 500, device=device))
                    lib.hl_timeline_record(event, stream)
                    lib.hl_timeline_wait_event(streams[number % 4], event)
        """)
        assert child.stdout.readline() == "running\n", child.stderr.read()
        for _ in range(50):
            stream = core.lib.hl_timeline_stream_create(round_number % 2, False)
            core.lib.hl_timeline_launch(stream, launch("kernel", "k", 77, device=round_number % 2))
            core.lib.hl_timeline_stream_wait(stream)
            core.lib.hl_timeline_stream_destroy(stream)
        child.kill()
        child.communicate()
        info(core)
        for device in range(2):
            stream = core.lib.hl_timeline_stream_create(device, True)
            core.lib.hl_timeline_launch(stream, launch("kernel", "k", 88, device=device))
            core.lib.hl_timeline_stream_wait(stream)
            core.lib.hl_timeline_stream_destroy(stream)


STREAM, KERNEL, PRODUCT, GRAPH, NODE = 1, 2, 3, 4, 5


def take(core: Any, part: int, count: int = 1) -> int:
    """What the driver takes more, MiB."""
    before = info(core)[0]
    assert core.lib.hl_ledger_driver_take(0, part, count) == 0
    return (before - info(core)[0]) // MIB


def test_what_the_driver_takes_as_a_program_on_a_card_saw_it(core: Any) -> None:
    # torch on an H100: five streams, the first kernel, the first product of cuBLAS, another one.
    assert [take(core, STREAM, 5), take(core, KERNEL), take(core, PRODUCT), take(core, PRODUCT)] == [2, 92, 66, 0]
    assert core.lib.hl_ledger_process_bytes(0) == 160 * MIB


def test_what_the_driver_takes_as_vllm_on_a_card_saw_it(core: Any) -> None:
    # vLLM 0.23.0 on an H100, Qwen3-14B and Llama-3.1-8B: 162 MiB when its worker has started and when the weights are
    # loaded, 68 MiB more when the model has run once, counted beside torch's allocations.
    assert take(core, STREAM, 128) + take(core, KERNEL, 3) == 162
    assert take(core, KERNEL, 12) == 0
    assert take(core, KERNEL, 30) + take(core, PRODUCT) == 68


def test_graphs_give_their_memory_back_and_streams_keep_theirs(core: Any) -> None:
    # Qwen3-14B's, as vLLM captures them; the card has 367 MiB for them.
    assert take(core, NODE, 42_993) + take(core, GRAPH, 2_142) == 366
    core.lib.hl_ledger_driver_give(0, GRAPH, 2_142)
    core.lib.hl_ledger_driver_give(0, NODE, 42_993)
    assert info(core)[0] == TOTAL
    assert take(core, STREAM, 100) == 54
    for _ in range(3):
        core.lib.hl_ledger_driver_give(0, STREAM, 100)
        assert take(core, STREAM, 100) == 0
    assert take(core, STREAM, 100) == 54  # 109.4 MiB in all


def test_a_full_device_has_nothing_for_the_driver(core: Any) -> None:
    pointer = allocate(core, TOTAL - 90 * MIB)
    left = info(core)[0]
    for _ in range(2):
        assert core.lib.hl_ledger_driver_take(0, KERNEL, 1) == -errno.ENOMEM
        assert info(core)[0] == left
    assert core.lib.hl_ledger_free(pointer) == 0
    assert take(core, KERNEL) == 92
    assert core.lib.hl_ledger_driver_take(2, KERNEL, 1) == -errno.EINVAL


def test_a_forked_child_begins_with_nothing_of_the_driver(core: Any) -> None:
    take(core, KERNEL)
    child = os.fork()
    if not child:
        before = info(core)[0]
        core.lib.hl_ledger_driver_take(0, KERNEL, 1)
        os._exit((before - info(core)[0]) // MIB)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 92


def test_poisoned_memory_holds_the_byte_and_stays_lazy(core: Any, program: Callable[[str], Any]) -> None:
    """Fresh device memory of 20 GiB shows the byte everywhere, takes no memory, and can be written."""
    child = program("""
        os.environ["HYPERLAPSE_POISON"] = "0xa5"
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        before = resident()
        for kind in (1, 5):
            out = ffi.new("void **")
            assert lib.hl_ledger_allocate(0, kind, 20 << 30, out) == 0
            memory = ffi.buffer(out[0], 20 << 30)
            say(*(memory[at].hex() for at in (0, 12345, (10 << 30) + 1, (20 << 30) - 1)))
            memory[12345] = b"x"
            say(memory[12344].hex(), memory[12345].hex(), memory[12345 + (64 << 20)].hex())
        say((resident() - before) >> 20 < 8)
        lib.hl_ledger_allocate(0, 2, 4096, out)
        say(ffi.buffer(out[0], 1)[0].hex())
    """)
    out, err = child.communicate(timeout=60)
    assert out.split() == [*["a5"] * 4, "a5", "78", "a5"] * 2 + ["True", "00"], err


def test_a_poison_that_is_no_byte_ends_the_program(core: Any, program: Callable[[str], Any]) -> None:
    child = program("""
        os.environ["HYPERLAPSE_POISON"] = "256"
        lib.hl_ledger_allocate(0, 1, 4096, ffi.new("void **"))
    """)
    _, err = child.communicate(timeout=60)
    assert "HYPERLAPSE_POISON=256: choose a byte" in err
