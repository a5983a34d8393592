/* What the launcher does to a run's clock, and what it reads from it. Bound from Python (shim/_core.py), which
 * therefore needs to know no layout. */
#ifndef HL_CORE_CONTROL_H
#define HL_CORE_CONTROL_H

#include <stdint.h>

#include "page.h"

typedef struct hl_statistics {
    int64_t now_ns;
    uint32_t mode, keeper_state, threads, threads_max, external_processes, processes;
    int32_t external_pid, running, holds;
    uint64_t jumps, proofs, proofs_refused, second_pass_refused, unwrapped_blocks, spinner_kicks, enumerations;
    uint64_t lazy_fires, signals_repeated, trigger_to_wake_ns_total, proof_ns_total;
} hl_statistics;

/* Maps a run's page without taking part in it. NULL: there is none. */
hl_page *hl_page_map(const char *run_dir);
void hl_control_unmap(hl_page *page);

/* Asks the time-keeper for a mode, and (parked only) an epoch, 0 for none; waits until it is done. 0 or -ETIMEDOUT. */
int hl_control_set_mode(hl_page *page, uint32_t mode, int64_t epoch_ns, int timeout_ms);

/* A process that is no participant and does not hold the clock: time-keeper, pricing service. 0 or -ENOSPC. */
int hl_control_exempt(hl_page *page, int32_t pid);

void hl_control_options(hl_page *page, uint32_t no_progress_s, uint32_t outside);
void hl_control_statistics(const hl_page *page, hl_statistics *statistics);

/* Registered participants. Returns how many pids were written. */
int hl_control_processes(const hl_page *page, int32_t *pids, int capacity);

/* Threads that have waited on the clock. deadline_ns: HL_NEVER_NS for none; jumps: made for this thread's deadline. */
typedef struct hl_thread_view {
    int32_t pid, tid;
    uint32_t state, reason, lazy; /* hl_slot_state, hl_wait_reason; 1: a background timer */
    int64_t deadline_ns;
    uint64_t jumps;
} hl_thread_view;
/* Returns how many were written. A line may be stale: nobody is stopped for it. */
int hl_control_threads(const hl_page *page, hl_thread_view *threads, int capacity);

/* Counted events, index 0..: false past the last. kind, text: at least 32 and 200 bytes. */
int hl_control_event(const hl_page *page, int index, char *kind, char *text, uint64_t *count);

#endif
