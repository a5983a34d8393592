/* The clock as the core uses it: see clock.h. Every wait here is a futex wait through raw system calls. */
#include "clock.h"

#include <dlfcn.h>
#include <errno.h>
#include <time.h>

#include "export.h"
#include "page.h"
#include "sys.h"
#include "wait.h"

/* Empty polls in a row before a thread counts as waiting. Small: a poll costs more than a parked look. */
#define SPINS_BEFORE_PARKING 16
#define SPIN_PARK_SLICE_NS (INT64_C(2) * HL_NS_PER_MS)

static const char *const reason_texts[HL_WAIT_REASONS] = {
    [HL_WAIT_NONE] = "runs",
    [HL_WAIT_SLEEP] = "sleeps",
    [HL_WAIT_FDS] = "waits for file descriptors",
    [HL_WAIT_SEMAPHORE] = "waits for a semaphore",
    [HL_WAIT_CONDITION] = "waits for a condition variable",
    [HL_WAIT_FUTEX] = "waits for a futex",
    [HL_WAIT_READ] = "waits in a read",
    [HL_WAIT_CHILD] = "waits for a child process",
    [HL_WAIT_DEVICE] = "waits for the device",
    [HL_WAIT_PRICE] = "waits for the price of a launch",
    [HL_WAIT_RENDEZVOUS] = "waits for another rank",
    [HL_WAIT_HOST_TIME] = "spends host time",
    [HL_WAIT_SPIN] = "polls",
};

HL_EXPORT const char *hl_clock_reason_text(hl_wait_reason reason)
{
    return (unsigned)reason < HL_WAIT_REASONS ? reason_texts[reason] : "?";
}

HL_EXPORT bool hl_clock_active(void) { return hl_page_get() != NULL; }

/* libc's own clock_gettime (vDSO, 25 ns) looked up in libc itself, past our interposed one; the raw call until then. */
typedef int (*clock_gettime_fn)(clockid_t, struct timespec *);
static clock_gettime_fn libc_clock_gettime;

__attribute__((constructor(101))) static void find_libc_clock(void)
{
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    if (libc)
        libc_clock_gettime = (clock_gettime_fn)dlsym(libc, "clock_gettime");
}

HL_EXPORT int64_t hl_clock_real_ns(void)
{
    if (!libc_clock_gettime)
        return hl_sys_clock_ns(CLOCK_MONOTONIC);
    struct timespec now;
    libc_clock_gettime(CLOCK_MONOTONIC, &now);
    return hl_sys_ns(&now);
}

HL_EXPORT int64_t hl_clock_now_ns(void)
{
    hl_page *page = hl_page_get();
    return page ? hl_page_now_ns(page) : hl_clock_real_ns();
}

static void sleep_really(int64_t deadline_ns)
{
    for (;;) {
        int64_t left_ns = deadline_ns - hl_clock_real_ns();
        if (left_ns <= 0)
            return;
        struct timespec left = hl_sys_timespec(left_ns);
        hl_sys_call3(SYS_nanosleep, (long)&left, 0, 0);
    }
}

HL_EXPORT void hl_clock_wait_until(int64_t deadline_ns, hl_wait_reason reason)
{
    if (!hl_clock_active()) {
        sleep_really(deadline_ns);
        return;
    }
    if (hl_clock_now_ns() >= deadline_ns)
        return;
    hl_slot *slot = hl_wait_slot();
    uint32_t seen = hl_wait_enter(deadline_ns, HL_WAKE_WORD, reason, false);
    while (hl_clock_now_ns() < deadline_ns) {
        hl_sys_futex_wait(&slot->word, seen, hl_wait_kernel_timeout_ns(deadline_ns));
        seen = atomic_load(&slot->word);
    }
    hl_wait_leave();
}

static bool wait_word_really(_Atomic uint32_t *word, uint32_t seen, int64_t deadline_ns)
{
    while (atomic_load(word) == seen) {
        int64_t left_ns = -1;
        if (deadline_ns != HL_NEVER_NS) {
            left_ns = deadline_ns - hl_clock_real_ns();
            if (left_ns <= 0)
                return false;
        }
        hl_sys_futex_wait(word, seen, left_ns);
    }
    return true;
}

HL_EXPORT bool hl_clock_wait_word(_Atomic uint32_t *word, uint32_t seen, int64_t deadline_ns, hl_wait_reason reason)
{
    if (!hl_clock_active())
        return wait_word_really(word, seen, deadline_ns);
    bool changed = true;
    hl_wait_enter(deadline_ns, HL_WAKE_SIGNAL, reason, false);
    while (atomic_load(word) == seen) {
        if (hl_wait_expired(deadline_ns)) {
            changed = false;
            break;
        }
        hl_sys_futex_wait(word, seen, hl_wait_kernel_timeout_ns(deadline_ns));
    }
    hl_wait_leave();
    return changed;
}

HL_EXPORT void hl_clock_wake_word(_Atomic uint32_t *word) { hl_sys_futex_wake(word, INT32_MAX); }

HL_EXPORT void hl_clock_spin(int64_t next_ns)
{
    static __thread uint32_t spins;
    hl_page *page = hl_page_get();
    uint32_t mode = page ? atomic_load(&page->mode) : HL_MODE_REAL;
    if (mode == HL_MODE_REAL || ++spins < SPINS_BEFORE_PARKING) {
        hl_sys_yield();
        return;
    }
    spins = 0;
    hl_slot *slot = hl_wait_slot();
    uint32_t seen = hl_wait_enter(next_ns, HL_WAKE_SPIN, HL_WAIT_SPIN, false);
    atomic_fetch_add(&slot->parks, 1);
    if (hl_clock_now_ns() < next_ns)
        hl_sys_futex_wait(&slot->word, seen, SPIN_PARK_SLICE_NS);
    hl_wait_leave();
}

HL_EXPORT void hl_clock_hold(void)
{
    hl_process *process = hl_page_process();
    if (process)
        atomic_fetch_add(&process->holds, 1);
}

static void release(hl_process *process)
{
    /* Never below zero: the answer to a process that has died or become another program finds its hold gone. */
    int32_t holds = atomic_load(&process->holds);
    while (holds > 0 && !atomic_compare_exchange_weak(&process->holds, &holds, holds - 1))
        ;
    if (holds == 1)
        hl_page_kick(hl_page_get());
}

HL_EXPORT void hl_clock_release(void)
{
    hl_process *process = hl_page_process();
    if (process)
        release(process);
}

HL_EXPORT void hl_clock_release_for(int32_t pid)
{
    hl_page *page = hl_page_get();
    if (!page)
        return;
    for (int i = 0; i < HL_PROCESSES_MAX; i++)
        if (atomic_load(&page->processes[i].pid) == pid) {
            release(&page->processes[i]);
            return;
        }
}
