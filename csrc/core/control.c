/* See control.h. */
#include "control.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "export.h"
#include "sys.h"

HL_EXPORT void hl_control_unmap(hl_page *page) { munmap(page, sizeof *page); }

HL_EXPORT int hl_control_set_mode(hl_page *page, uint32_t mode, int64_t epoch_ns, int timeout_ms)
{
    /* Two callers at once (`hyperlapse clock` beside the launcher): the values of one request stay together. */
    int64_t began_ns = hl_clock_real_ns();
    uint32_t nobody = 0;
    while (!atomic_compare_exchange_weak(&page->asking, &nobody, 1)) {
        if (hl_clock_real_ns() - began_ns > HL_NS_PER_S)
            break; /* a caller that was killed in the three lines below */
        nobody = 0;
        hl_sys_yield();
    }
    uint32_t before = atomic_load(&page->asked);
    while (atomic_load(&page->done) != before && hl_clock_real_ns() - began_ns < timeout_ms * HL_NS_PER_MS)
        hl_sys_yield();
    atomic_store(&page->asked_mode, mode);
    atomic_store(&page->asked_epoch_ns, epoch_ns);
    uint32_t asked = atomic_fetch_add(&page->asked, 1) + 1;
    atomic_store(&page->asking, 0);
    hl_page_kick(page);
    int64_t give_up_ns = hl_clock_real_ns() + timeout_ms * HL_NS_PER_MS;
    for (;;) {
        uint32_t done = atomic_load(&page->done);
        if ((int32_t)(done - asked) >= 0)
            return 0;
        int64_t left_ns = give_up_ns - hl_clock_real_ns();
        if (left_ns <= 0)
            return -ETIMEDOUT;
        hl_sys_futex_wait(&page->done, done, left_ns);
    }
}

HL_EXPORT int hl_control_exempt(hl_page *page, int32_t pid)
{
    for (int i = 0; i < HL_EXEMPT_MAX; i++) {
        int32_t nobody = 0;
        if (atomic_compare_exchange_strong(&page->exempt[i], &nobody, pid)) {
            hl_page_kick(page);
            return 0;
        }
    }
    return -ENOSPC;
}

HL_EXPORT void hl_control_options(hl_page *page, uint32_t no_progress_s, uint32_t outside)
{
    atomic_store(&page->outside, outside);
    atomic_store(&page->no_progress_s, no_progress_s);
}

HL_EXPORT void hl_control_statistics(const hl_page *page, hl_statistics *statistics)
{
    memset(statistics, 0, sizeof *statistics);
    statistics->now_ns = hl_page_now_ns(page);
    statistics->mode = atomic_load(&page->mode);
    statistics->keeper_state = atomic_load(&page->keeper_state);
    statistics->threads = atomic_load(&page->threads);
    statistics->threads_max = atomic_load(&page->threads_max);
    statistics->external_processes = atomic_load(&page->external_processes);
    statistics->external_pid = atomic_load(&page->external_pid);
    statistics->running = atomic_load(&page->running);
    for (int i = 0; i < HL_PROCESSES_MAX; i++)
        if (atomic_load(&page->processes[i].pid)) {
            statistics->processes++;
            statistics->holds += atomic_load(&page->processes[i].holds);
        }
    statistics->jumps = atomic_load(&page->jumps);
    statistics->proofs = atomic_load(&page->proofs);
    statistics->proofs_refused = atomic_load(&page->proofs_refused);
    statistics->second_pass_refused = atomic_load(&page->second_pass_refused);
    statistics->unwrapped_blocks = atomic_load(&page->unwrapped_blocks);
    statistics->spinner_kicks = atomic_load(&page->spinner_kicks);
    statistics->enumerations = atomic_load(&page->enumerations);
    statistics->lazy_fires = atomic_load(&page->lazy_fires);
    statistics->signals_repeated = atomic_load(&page->signals_repeated);
    statistics->trigger_to_wake_ns_total = atomic_load(&page->trigger_to_wake_ns_total);
    statistics->proof_ns_total = atomic_load(&page->proof_ns_total);
}

HL_EXPORT int hl_control_processes(const hl_page *page, int32_t *pids, int capacity)
{
    int count = 0;
    for (int i = 0; i < HL_PROCESSES_MAX && count < capacity; i++) {
        int32_t pid = atomic_load(&page->processes[i].pid);
        if (pid)
            pids[count++] = pid;
    }
    return count;
}

HL_EXPORT int hl_control_threads(const hl_page *page, hl_thread_view *threads, int capacity)
{
    int count = 0;
    for (int i = 0; i < atomic_load(&page->slots_used) && count < capacity; i++) {
        const hl_slot *slot = &page->slots[i];
        int32_t pid = atomic_load(&slot->pid);
        if (!pid)
            continue;
        threads[count++] = (hl_thread_view){.pid = pid,
                                            .tid = atomic_load(&slot->tid),
                                            .state = atomic_load(&slot->state),
                                            .reason = atomic_load(&slot->reason),
                                            .lazy = atomic_load(&slot->lazy),
                                            .deadline_ns = atomic_load(&slot->deadline_ns),
                                            .jumps = atomic_load(&slot->jumps)};
    }
    return count;
}

HL_EXPORT int hl_control_event(const hl_page *page, int index, char *kind, char *text, uint64_t *count)
{
    if (index < 0 || index >= HL_EVENTS_MAX || atomic_load(&page->events[index].used) != 2)
        return 0;
    memcpy(kind, page->events[index].kind, HL_EVENT_KIND_BYTES);
    memcpy(text, page->events[index].text, HL_EVENT_TEXT_BYTES);
    *count = atomic_load(&page->events[index].count);
    return 1;
}
