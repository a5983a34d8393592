"""The declarations that Python binds are the compiler's."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


STRUCTURES = [
    "hl_device_facts",
    "hl_launch",
    "hl_price",
    "hl_price_request",
    "hl_price_totals",
    "hl_memory",
    "hl_statistics",
    "hl_connection",
    "hl_endpoint",
    "hl_report",
]
HEADERS = ["control.h", "device.h", "price.h", "timeline.h", "ledger.h", "hosts.h"]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    directory = tmp_path_factory.mktemp("layout")
    lines = [f'    printf("{name} %zu\\n", sizeof({name}));' for name in STRUCTURES]
    lines += [
        f'    printf("{name}.{field} %zu\\n", offsetof({name}, {field}));'
        for name, field in [
            ("hl_device_facts", "copy_latency_ns"),
            ("hl_device_facts", "driver_text"),
            ("hl_launch", "arg"),
            ("hl_price", "coverage_ns"),
            ("hl_price_request", "annotation"),
            ("hl_memory", "charged_bytes"),
            ("hl_connection", "state"),
            ("hl_connection", "unacknowledged_bytes"),
            ("hl_report", "answerable"),
        ]
    ]
    source = directory / "sizes.c"
    includes = [f'#include "{header}"' for header in HEADERS]
    body = ["#include <stddef.h>", "#include <stdio.h>", *includes, "int main(void)", "{", *lines, "}"]
    source.write_text("\n".join(body))
    subprocess.run(["cc", "-I", str(ROOT / "csrc/core"), "-o", str(directory / "sizes"), str(source)], check=True)
    output = subprocess.run([str(directory / "sizes")], check=True, capture_output=True, text=True).stdout
    return {name: int(size) for name, size in (line.split() for line in output.splitlines())}


def test_sizes_and_offsets(core: Any, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        structure, _, field = name.partition(".")
        ours = core.ffi.offsetof(structure, field) if field else core.ffi.sizeof(structure)
        assert ours == size, name


def test_sources_have_no_timed_waits_of_libc() -> None:
    """libhyperlapse_clock.so interposes them: the core would wait on the clock that it is part of."""
    forbidden = ("nanosleep(", "usleep(", "poll(", "select(", "sem_timedwait", "pthread_cond_", " sleep(")
    for source in sorted(Path(ROOT / "csrc/core").glob("*.c")):
        text = source.read_text()
        assert [word for word in forbidden if word in text and "SYS_" + word[:-1] not in text] == [], source.name
