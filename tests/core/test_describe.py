"""What the no-progress report says of streams."""

import time
from typing import Any


def describe(core: Any, size: int = 4096) -> str:
    if not hasattr(core.lib, "hl_timeline_describe"):
        core.ffi.cdef("uint32_t hl_timeline_describe(char *text, uint32_t size);")
    text = core.ffi.new("char[]", size)
    length = core.lib.hl_timeline_describe(text, size)
    words = core.ffi.string(text).decode()
    assert len(words) == length < size
    return str(words)


def test_every_reason_is_named(core: Any, service: Any, launch: Any) -> None:
    lib = core.lib
    assert describe(core) == ""
    pricer = service()
    pricer.gate.clear()
    streams = [lib.hl_timeline_stream_create(0, False) for _ in range(3)]
    event = lib.hl_timeline_event_create()
    lib.hl_timeline_launch(streams[0], launch("kernel", "slow_kernel", 1))
    lib.hl_timeline_record(event, streams[0])
    lib.hl_timeline_wait_event(streams[1], event)
    lib.hl_timeline_rendezvous(streams[2], 0xABC, 12, 2, launch("collective", "all_reduce,bf16", 1, 2))
    while not pricer.asked:
        pass
    lines = describe(core).splitlines()
    assert len(lines) == 3
    assert "waits for the price of 'slow_kernel' (with the pricing service)" in lines[0]
    assert lines[1].endswith("waits for an event of another stream")
    assert "waits for the price of 'all_reduce,bf16'" in lines[2]
    pricer.gate.set()
    lib.hl_timeline_stream_wait(streams[1])
    limit = time.monotonic() + 10
    while "waits for the price" in describe(core) and time.monotonic() < limit:
        time.sleep(0.001)  # the second price comes on the service's own thread
    pricer.stop()
    assert describe(core).endswith(
        "waits for operation 12 of communicator 0xabc: of 2 ranks 1 have called it and 1 have reached it\n"
    )
    assert len(describe(core, 20)) == 19
