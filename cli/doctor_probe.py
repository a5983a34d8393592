"""Opens NVIDIA libraries by every road that programs use, and prints which files answered. Run inside a run, by any Python.

Why: a library that escapes is not noticed when it is opened, only by wrong numbers or a crash much later. This runs in
the launcher's Python and in each engine's, beside the real libraries of its wheels, so it imports nothing but the
standard library. It must never load the real libraries by itself: it only asks for names and paths as programs do.

Its argument is a JSON object: sonames to symbols, folders to search for the real files, and whether to ask torch. A file
that is linked with a library is written byte by byte (linked_file), so that no compiler is needed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INTERPRETER = "/lib64/ld-linux-x86-64.so.2"
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_GNU_STACK = 1, 2, 3, 0x6474E551
DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_RPATH = 1, 5, 6, 10, 11, 15
ET_DYN, EM_X86_64 = 3, 62


class _Info(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def linked_file(path: Path, soname: str, rpath: str) -> None:
    """Writes an ELF file (a shared object that is also a program) that is linked with `soname` and looks in `rpath`."""
    strings, offsets = b"\0", {}
    for text in (soname, rpath):
        offsets[text] = len(strings)
        strings += text.encode() + b"\0"
    interpreter = INTERPRETER.encode() + b"\0"
    headers = 64 + 4 * 56
    at_interpreter = headers
    at_strings = at_interpreter + len(interpreter)
    at_symbols = (at_strings + len(strings) + 7) & ~7
    at_dynamic = at_symbols + 24
    dynamic = b"".join(
        struct.pack("<QQ", tag, value)
        for tag, value in (
            (DT_NEEDED, offsets[soname]),
            (DT_RPATH, offsets[rpath]),
            (DT_STRTAB, at_strings),
            (DT_SYMTAB, at_symbols),
            (DT_STRSZ, len(strings)),
            (DT_SYMENT, 24),
            (0, 0),
        )
    )
    size = at_dynamic + len(dynamic)

    def header(kind: int, flags: int, start: int, length: int, align: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, flags, start, start, start, length, length, align)

    elf = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", ET_DYN, EM_X86_64, 1, 0, 64, 0, 0, 64, 56, 4, 64, 0, 0
    )
    elf += header(PT_INTERP, 4, at_interpreter, len(interpreter), 1)
    elf += header(PT_LOAD, 6, 0, size, 4096)
    elf += header(PT_DYNAMIC, 6, at_dynamic, len(dynamic), 8)
    elf += header(PT_GNU_STACK, 6, 0, 0, 16)
    elf += interpreter + strings
    path.write_bytes(elf.ljust(at_symbols, b"\0") + bytes(24) + dynamic)


def answers(name: str, symbol: str) -> str:
    """The file that answers `symbol` once `name` is opened, or `error: ...`."""
    info = _Info()
    try:
        address = ctypes.cast(getattr(ctypes.CDLL(name), symbol), ctypes.c_void_p)
    except (OSError, AttributeError) as error:
        return f"error: {error}"
    ctypes.CDLL(None).dladdr(address, ctypes.byref(info))
    return os.fsdecode(info.file or b"error: no file")


def linked_program(path: Path, soname: str) -> str:
    """The file that ld.so gives a program linked with `soname`; the program is not run."""
    listed = subprocess.run(
        [INTERPRETER, "--list", str(path)], capture_output=True, text=True, check=False, timeout=60
    ).stdout
    for line in listed.splitlines():
        words = line.split()
        if words and (words[0] == soname or words[0].endswith(f"/{soname}")):
            return words[2] if len(words) > 2 and words[1] == "=>" else words[0]
    return "error: not found by ld.so"


def real_file(folders: list[str], soname: str) -> str:
    """A file of that name that is not ours, as an engine's wheels bring it; else a path that does not exist."""
    for folder in folders:
        found = next(iter(sorted(Path(folder).rglob(soname))), None)
        if found is not None:
            return str(found)
    return f"/nonexistent/{soname}"


def roads(symbols: dict[str, str], folders: list[str]) -> dict[str, dict[str, str]]:
    """By soname and road: the file that answered."""
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="hyperlapse-doctor-") as temporary:
        for soname, symbol in symbols.items():
            real = real_file(folders, soname)
            linked = Path(temporary) / f"linked-{soname}"
            linked_file(linked, soname, str(Path(real).parent))
            by_name = ctypes.util.find_library(soname.removeprefix("lib").partition(".so")[0])
            found[soname] = {
                "a program linked with it": linked_program(linked, soname),
                "a library linked with it": answers(str(linked), symbol),
                "dlopen by soname": answers(soname, symbol),
                f"dlopen by path {real}": answers(real, symbol),
            }
            # the name that ldconfig or a compiler knows may be another version's, which is a line of its own
            if by_name == soname:
                found[soname][f"ctypes.util.find_library: {by_name}"] = answers(by_name, symbol)
    return found


def mapped() -> list[str]:
    """Files that this process has mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6})


def devices() -> dict[str, object]:
    """What the driver library says: devices, the first one's name, and whether 16 GiB of it can be had."""
    driver, runtime = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcudart.so.13")
    count, name, memory = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_void_p()
    statuses = [driver.cuInit(0), driver.cuDeviceGetCount(ctypes.byref(count)), driver.cuDeviceGetName(name, 128, 0)]
    statuses.append(runtime.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(16 << 30)))
    return {"statuses": statuses, "count": count.value, "name": name.value.decode(errors="replace")}


def torch_devices() -> dict[str, object]:
    """The same through torch, whose own libraries are linked with all the others."""
    began = time.monotonic()
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]

        answer = {"count": torch.cuda.device_count(), "name": torch.cuda.get_device_name(0)}
    except Exception as error:  # whatever torch raises is the finding
        return {"error": f"{type(error).__name__}: {error}"}
    return {**answer, "version": torch.__version__, "cuda": torch.version.cuda, "s": time.monotonic() - began}


def main() -> None:
    asked = json.loads(sys.argv[1])
    found: dict[str, object] = {"roads": roads(asked["symbols"], asked["folders"])}
    if asked.get("devices"):
        found["devices"] = devices()
    if asked.get("torch"):
        found["torch"] = torch_devices()
    found["mapped"] = mapped()
    for name, environment in (("a child process", None), ("a child with an emptied environment", {})):
        if not asked.get("children"):
            continue
        child = {**asked, "children": False, "devices": False, "torch": False}
        result = subprocess.run(
            [sys.executable, "-I", __file__, json.dumps(child)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        found[name] = json.loads(result.stdout) if result.returncode == 0 else {"error": result.stderr[-500:]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
