"""The C core, bound by cffi's ABI mode.

ABI mode because the same wheel must serve every Python version and no compiler may be needed at run time. Declarations are
those of ``csrc/core/*.h``; ``tests/core`` compares the sizes of structures with the compiler's. Layouts that only C needs
(the clock page, streams) stay opaque here.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from cffi import FFI

LIBRARY_DIRECTORY = Path(__file__).resolve().parent / "lib"
CORE_LIBRARY = "libhyperlapse_core.so"

_DECLARATIONS = """
typedef struct hl_page hl_page;

/* control.h */
typedef struct hl_statistics {
    int64_t now_ns;
    uint32_t mode, keeper_state, threads, threads_max, external_processes, processes;
    int32_t external_pid, running, holds;
    uint64_t jumps, proofs, proofs_refused, second_pass_refused, unwrapped_blocks, spinner_kicks, enumerations;
    uint64_t lazy_fires, signals_repeated, trigger_to_wake_ns_total, proof_ns_total;
} hl_statistics;
int hl_page_create(const char *run_dir, int32_t launcher_pid);
hl_page *hl_page_map(const char *run_dir);
void hl_control_unmap(hl_page *page);
int hl_control_set_mode(hl_page *page, uint32_t mode, int64_t epoch_ns, int timeout_ms);
int hl_control_exempt(hl_page *page, int32_t pid);
void hl_control_options(hl_page *page, uint32_t no_progress_s, uint32_t outside);
void hl_control_statistics(const hl_page *page, hl_statistics *statistics);
int hl_control_processes(const hl_page *page, int32_t *pids, int capacity);
typedef struct hl_thread_view {
    int32_t pid, tid;
    uint32_t state, reason, lazy;
    int64_t deadline_ns;
    uint64_t jumps;
} hl_thread_view;
int hl_control_threads(const hl_page *page, hl_thread_view *threads, int capacity);
const char *hl_clock_reason_text(int reason);
int hl_control_event(const hl_page *page, int index, char *kind, char *text, uint64_t *count);

/* hosts.h */
typedef struct hl_connection {
    uint8_t local[16], remote[16];
    uint16_t local_port, remote_port;
    uint32_t state, unsent_bytes, unread_bytes;
    uint64_t sent_bytes, received_bytes, unacknowledged_bytes;
} hl_connection;
typedef struct hl_endpoint { uint8_t address[16]; uint32_t port; } hl_endpoint;
typedef struct hl_report { uint64_t number; int64_t deadline_ns, background_ns; uint32_t answerable, connections; } hl_report;
int hl_hosts_share(hl_page *page, const uint8_t *own, uint32_t own_count, const uint8_t *peers, uint32_t peer_count,
    const hl_endpoint *control, uint32_t control_count);
bool hl_hosts_shared(const hl_page *page);
bool hl_hosts_wait(hl_page *page, uint64_t *reported, uint64_t *withdrawn, int timeout_ms, hl_report *report,
    hl_connection *connections);
void hl_hosts_poke(hl_page *page);
void hl_hosts_answer(hl_page *page, uint64_t number, int64_t instant_ns, bool search, bool ask_world);

/* clock.h */
bool hl_clock_active(void);
int64_t hl_clock_now_ns(void);
int64_t hl_clock_real_ns(void);
void hl_clock_wait_until(int64_t deadline_ns, int reason);
void hl_clock_spin(int64_t next_ns);
void hl_clock_hold(void);
void hl_clock_release(void);

/* report.h */
void hl_report_event(const char *kind, const char *text);

/* device.h */
typedef struct hl_device_facts {
    char name[96];
    char profile[64];
    int64_t total_memory_bytes, context_bytes, nvml_total_bytes, stream_bytes, first_kernel_bytes, kernel_code_bytes,
        cublas_bytes, graph_bytes, graph_node_bytes;
    int32_t compute_major, compute_minor, multiprocessors, l2_cache_bytes, shared_memory_per_block_bytes,
        shared_memory_per_block_optin_bytes, shared_memory_per_multiprocessor_bytes, reserved_shared_memory_per_block_bytes,
        registers_per_multiprocessor, registers_per_block, max_threads_per_multiprocessor, max_blocks_per_multiprocessor,
        clock_khz, memory_clock_khz, memory_bus_bits, async_engines, persisting_l2_bytes_max, pci_bus_first, ecc, fp32_per_fp64,
        nvlink_links, nvlink_version;
    int64_t copy_h2d_bytes_per_s, copy_d2h_bytes_per_s, copy_d2d_bytes_per_s, copy_p2p_bytes_per_s,
        copy_latency_ns, launch_gap_ns, graph_gap_ns, graph_launch_ns;
    int32_t driver_version;
    char driver_text[32];
} hl_device_facts;
uint32_t hl_device_count(void);
const hl_device_facts *hl_device_facts_of(uint32_t device);
int hl_device_segment_create(const char *run_dir, const hl_device_facts *facts, uint32_t count);

/* price.h */
typedef struct hl_launch { uint32_t kind; uint32_t device; const char *name; int64_t arg[8]; } hl_launch;
typedef struct hl_price { int64_t duration_ns; uint32_t coverage; uint32_t depends; int64_t coverage_ns[5]; } hl_price;
int hl_annotate(const char *text, size_t length, uint32_t tokens);
bool hl_price_find(const hl_launch *launch, hl_price *price);
typedef struct hl_price_request {
    uint32_t index, kind, device;
    int32_t pid;
    uint32_t tokens, annotation_length;
    int64_t arg[8];
    char name[1024];
    char annotation[16384];
} hl_price_request;
bool hl_price_take(hl_price_request *request, int timeout_ms);
void hl_price_answer(uint32_t index, const hl_price *price);
void hl_price_serve(int32_t pid);
typedef struct hl_price_totals {
    uint64_t requests, answers, unknown_answers, evictions, lasting_evictions;
    uint32_t names;
    int32_t service_pid;
} hl_price_totals;
void hl_price_statistics(hl_price_totals *totals);

/* segment.h */
int hl_segment_open(const char *run_dir);

/* timeline.h */
typedef uint32_t hl_stream;
typedef uint32_t hl_event;
hl_stream hl_timeline_default_stream(uint32_t device);
hl_stream hl_timeline_stream_create(uint32_t device, bool blocking);
void hl_timeline_stream_destroy(hl_stream stream);
hl_event hl_timeline_event_create(void);
void hl_timeline_event_destroy(hl_event event);
void hl_timeline_launch(hl_stream stream, const hl_launch *launch);
void hl_timeline_record(hl_event event, hl_stream stream);
void hl_timeline_wait_event(hl_stream stream, hl_event event);
void hl_timeline_rendezvous(hl_stream stream, uint64_t group, uint64_t sequence, uint32_t ranks, const hl_launch *launch);
void hl_timeline_host_callback(hl_stream stream, void (*fn)(void *), void *arg);
int hl_timeline_stream_query(hl_stream stream);
int hl_timeline_event_query(hl_event event);
void hl_timeline_stream_wait(hl_stream stream);
void hl_timeline_event_wait(hl_event event);
void hl_timeline_device_wait(uint32_t device);
bool hl_timeline_elapsed_ns(hl_event from, hl_event to, int64_t *elapsed_ns);
typedef struct hl_graph hl_graph;
bool hl_graph_capturing(hl_stream stream);
uint64_t hl_graph_capture_id(hl_stream stream);
int hl_graph_begin(hl_stream stream);
int hl_graph_end(hl_stream stream, hl_graph **graph);
uint32_t hl_graph_nodes(const hl_graph *graph);
void hl_graph_retain(hl_graph *graph);
void hl_graph_release(hl_graph *graph);
void hl_graph_launch(hl_graph *graph, hl_stream stream);
void hl_timeline_device_time_ns(uint32_t device, int64_t coverage_ns[5]);
void hl_timeline_device_launches(uint32_t device, uint64_t *launches, uint64_t *unknown);
uint32_t hl_timeline_describe(char *text, uint32_t size);
bool hl_timeline_stream_valid(hl_stream stream);
bool hl_timeline_event_valid(hl_event event);
bool hl_timeline_event_instant_ns(hl_event event, int64_t *instant_ns);

/* ledger.h */
typedef struct hl_memory { int kind; uint32_t device; uintptr_t base; size_t size_bytes; size_t charged_bytes;
    uint64_t identity; uint32_t opened; } hl_memory;
int hl_ledger_allocate(uint32_t device, int kind, size_t size_bytes, void **pointer);
int hl_ledger_register(void *pointer, size_t size_bytes);
int hl_ledger_free(void *pointer);
bool hl_ledger_find(const void *pointer, hl_memory *memory);
int hl_ledger_share(const void *pointer, hl_memory *memory);
int hl_ledger_open(uint64_t identity, size_t size_bytes, void **pointer);
int hl_ledger_close(void *pointer);
int hl_ledger_charge(uint32_t device, size_t size_bytes);
void hl_ledger_discharge(uint32_t device, size_t size_bytes);
int hl_ledger_driver_take(uint32_t device, int part, int64_t count);
void hl_ledger_driver_give(uint32_t device, int part, int64_t count);
int hl_ledger_context(uint32_t device);
void hl_ledger_info(uint32_t device, size_t *free_bytes, size_t *total_bytes);
size_t hl_ledger_process_bytes(uint32_t device);
"""


class Core:
    """``ffi`` and ``lib`` of the core library, already loaded by LD_PRELOAD in participants."""

    __slots__ = ("ffi", "lib")

    def __init__(self, path: Path) -> None:
        self.ffi: Any = FFI()
        self.ffi.cdef(_DECLARATIONS)
        try:
            self.lib: Any = _loaded(self.ffi, path.name) or self.ffi.dlopen(str(path))
        except OSError as error:
            raise RuntimeError(
                f"the C core {path} cannot be loaded ({error}); install the package with pip so that it is built"
            ) from error


def _loaded(ffi: FFI, name: str) -> Any:
    """The library of this name that the process has loaded already; None without one.

    A run preloads the core from the launcher's installation. The same library from the engine's, by its path, would be a
    second copy: both know the run, but what the one keeps for a thread (the annotation of its launches) the other lacks.

    ctypes asks first: cffi looks for a name that is not loaded with ldconfig, gcc and ld, a tenth of a second of processes.
    """
    flags = os.RTLD_NOW | os.RTLD_NOLOAD
    try:
        ctypes.CDLL(name, flags)
    except OSError:
        return None
    return ffi.dlopen(name, flags)


@functools.cache
def core() -> Core:
    """The core library: of the run that this process is part of, else of this installation. Raises RuntimeError when it
    was not built.
    """
    return Core(library(CORE_LIBRARY))


def library(name: str) -> Path:
    """Path of one of our C libraries or programs.

    An editable install keeps them apart from the sources, so the installed package's other directories are looked at too.
    """
    import hyperlapse.shim

    for directory in (LIBRARY_DIRECTORY, *(Path(p) / "lib" for p in hyperlapse.shim.__path__)):
        if (directory / name).exists():
            return directory / name
    import sysconfig

    installed = Path(sysconfig.get_paths()["platlib"]) / "hyperlapse" / "shim" / "lib" / name
    return installed if installed.exists() else LIBRARY_DIRECTORY / name
