/* Slots and the two halves of every wait. See wait.h and page.h for the rules.
 *
 * The wake signal's handler only sets a thread-local flag: broadcasting a condition variable from a handler was tried
 * and is not async-signal-safe (glibc's condvar has an internal lock), so conditions have a broadcaster thread. */
#include "wait.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "export.h"
#include "report.h"
#include "sys.h"
#include "wait_private.h"

/* Frozen: the time-keeper ends every wait; the kernel timeout only bounds the harm of a lost wake-up. */
#define FROZEN_SLICE_NS (INT64_C(2) * HL_NS_PER_S)

static __thread hl_slot *my_slot;
static __thread int32_t my_pid;
static __thread volatile sig_atomic_t kicked;
static pthread_key_t slot_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void on_wake_signal(int signal_number)
{
    (void)signal_number;
    kicked = 1;
}

HL_EXPORT void hl_wait_free_slot(hl_page *page, hl_slot *slot)
{
    atomic_store(&slot->deadline_ns, HL_NEVER_NS);
    if (atomic_exchange(&slot->state, HL_SLOT_BLOCKED) == HL_SLOT_RUNNING)
        atomic_fetch_sub(&page->running, 1);
    atomic_store(&slot->tid, 0);
    atomic_store(&slot->pid, 0); /* last: from here it is another's to claim */
}

static void release_slot(void *value)
{
    hl_slot *slot = value;
    my_slot = NULL;
    /* A forked child inherits the value of the thread that forked: the slot is still the parent's. */
    if (atomic_load(&slot->pid) == hl_sys_getpid() && atomic_load(&slot->tid) == hl_sys_gettid())
        hl_wait_free_slot(hl_page_get(), slot);
}

static void set_up(void)
{
    /* SA_RESTART: a late signal must not end a call of the program's own with EINTR. Waits with a timeout (poll, select,
     * epoll, timed futexes), which are all that we end by signal, are never restarted: signal(7). */
    struct sigaction action = {.sa_handler = on_wake_signal, .sa_flags = SA_RESTART};
    if (pthread_key_create(&slot_key, release_slot) != 0 || sigaction(SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX, &action, NULL) != 0)
        hl_report_fatal("cannot set up waiting on the virtual clock (thread keys or signal %d unavailable)",
                        SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX);
}

void hl_wait_forget_thread(void) { my_slot = NULL; }

static hl_slot *claim(hl_page *page)
{
    int32_t pid = hl_sys_getpid();
    for (int i = 0; i < HL_SLOTS_MAX; i++) {
        hl_slot *slot = &page->slots[i];
        int32_t nobody = 0;
        if (atomic_load(&slot->pid) || !atomic_compare_exchange_strong(&slot->pid, &nobody, pid))
            continue;
        atomic_store(&slot->deadline_ns, HL_NEVER_NS);
        atomic_store(&slot->condition, 0);
        atomic_store(&slot->lazy, 0);
        atomic_store(&slot->jumps, 0);
        atomic_store(&slot->reason, HL_WAIT_NONE);
        atomic_store(&slot->wake, HL_WAKE_WORD);
        atomic_store(&slot->state, HL_SLOT_RUNNING);
        atomic_store(&slot->tid, hl_sys_gettid());
        atomic_fetch_add(&page->running, 1);
        int32_t used = atomic_load(&page->slots_used);
        while (used < i + 1 && !atomic_compare_exchange_weak(&page->slots_used, &used, i + 1))
            ;
        return slot;
    }
    hl_report_fatal("more than %d threads wait on one virtual clock: cap thread pools (OMP_NUM_THREADS=1, ...)", HL_SLOTS_MAX);
}

HL_EXPORT hl_slot *hl_wait_slot(void)
{
    /* The process is compared because _Fork and clone run no fork handlers. */
    if (my_slot && my_pid == hl_sys_getpid())
        return my_slot;
    hl_page *page = hl_page_get();
    pthread_once(&once, set_up);
    hl_page_process();
    my_pid = hl_sys_getpid();
    my_slot = claim(page);
    pthread_setspecific(slot_key, my_slot);
    return my_slot;
}

HL_EXPORT uint32_t hl_wait_enter(int64_t deadline_ns, hl_wake_kind wake, hl_wait_reason reason, bool lazy)
{
    hl_page *page = hl_page_get();
    hl_slot *slot = hl_wait_slot();
    uint32_t word = atomic_load(&slot->word);
    kicked = 0;
    atomic_store_explicit(&slot->wake, wake, memory_order_relaxed);
    atomic_store_explicit(&slot->reason, reason, memory_order_relaxed);
    atomic_store_explicit(&slot->lazy, lazy, memory_order_relaxed);
    atomic_store_explicit(&slot->woken_real_ns, 0, memory_order_relaxed);
    atomic_store(&slot->deadline_ns, deadline_ns);
    uint32_t before = atomic_exchange(&slot->state, HL_SLOT_BLOCKED);
    atomic_fetch_add(&page->activity, 1);
    if (before == HL_SLOT_RUNNING && atomic_fetch_sub(&page->running, 1) == 1) {
        atomic_store_explicit(&page->trigger_real_ns, 0, memory_order_relaxed);
        hl_page_kick(page);
    }
    return word;
}

HL_EXPORT void hl_wait_leave(void)
{
    hl_page *page = hl_page_get();
    hl_slot *slot = my_slot;
    atomic_store(&slot->deadline_ns, HL_NEVER_NS);
    if (atomic_exchange(&slot->state, HL_SLOT_RUNNING) != HL_SLOT_RUNNING)
        atomic_fetch_add(&page->running, 1);
    atomic_fetch_add(&page->activity, 1);
}

HL_EXPORT int64_t hl_wait_deadline_ns(int64_t timeout_ns)
{
    int64_t now_ns = hl_clock_now_ns();
    if (timeout_ns >= HL_NEVER_NS / 2 || timeout_ns > HL_NEVER_NS - now_ns - HL_WAIT_KERNEL_LATENESS_NS)
        return HL_NEVER_NS;
    return now_ns + timeout_ns + HL_WAIT_KERNEL_LATENESS_NS;
}

HL_EXPORT bool hl_wait_expired(int64_t deadline_ns)
{
    return deadline_ns != HL_NEVER_NS && hl_clock_now_ns() >= deadline_ns;
}

HL_EXPORT int64_t hl_wait_kernel_timeout_ns(int64_t deadline_ns)
{
    if (deadline_ns == HL_NEVER_NS)
        return -1;
    hl_page *page = hl_page_get();
    uint32_t mode = page ? atomic_load(&page->mode) : HL_MODE_REAL;
    int64_t left_ns = deadline_ns - hl_clock_now_ns();
    if (left_ns <= 0)
        return 0;
    if (mode == HL_MODE_REAL || mode == HL_MODE_FLOW)
        return left_ns;
    return FROZEN_SLICE_NS;
}

HL_EXPORT bool hl_wait_kicked(void)
{
    bool was = kicked;
    kicked = 0;
    return was;
}
