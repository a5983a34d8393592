"""The waits that CPython programs use; prints {"case milliseconds": elapsed seconds}."""

import asyncio
import json
import multiprocessing
import queue
import select
import selectors
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait

results: dict[str, float] = {}


def case(name: str, action) -> None:
    began = time.monotonic()
    action()
    results[name] = time.monotonic() - began


def sleeper(seconds: float) -> None:
    time.sleep(seconds)


def get_from_empty_queue() -> None:
    try:
        queue.Queue().get(timeout=0.1)
    except queue.Empty:
        return
    raise AssertionError


def spin_with_gil(seconds: float) -> None:
    """Three threads that fight for the interpreter: its 5 ms turns stay real and must not stall the clock."""
    threads = [threading.Thread(target=lambda: sum(range(300_000))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(seconds)


def main() -> None:
    reader, _writer = socket.socketpair()
    case("time.sleep 100", lambda: time.sleep(0.1))
    case("Event.wait 100", lambda: threading.Event().wait(0.1))
    case("Queue.get 100", get_from_empty_queue)
    case("Condition.wait 100", condition_wait)
    case("select 100", lambda: select.select([reader], [], [], 0.1))
    case("selectors 100", lambda: selectors_wait(reader))
    case("connection.wait 100", lambda: wait([reader], timeout=0.1))
    case("asyncio.sleep 100", lambda: asyncio.run(asyncio.sleep(0.1)))
    case("subprocess sleep 200", lambda: subprocess.run(["sleep", "0.2"], check=True))
    case("subprocess shell 300", lambda: subprocess.run("sleep 0.1; sleep 0.2", shell=True, check=True))
    case(
        "subprocess scrubbed 200",
        lambda: subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"], env={}, check=True),
    )
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=sleeper, args=(0.2,))
        process.start()
        case(f"join {method} 100", lambda process=process: process.join(0.1))
        process.join()
    results.pop("join spawn 100")  # the child's imports take time of their own natively
    print(json.dumps(results))


def condition_wait() -> None:
    condition = threading.Condition()
    with condition:
        condition.wait(0.1)


def selectors_wait(reader: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.select(0.1)


if __name__ == "__main__":
    main()
