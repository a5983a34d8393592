/* Condition variables.
 *
 * glibc swallows EINTR inside its condition waits, so a wait is ended by a broadcast, made by one broadcaster thread per process
 * (created at the process's first timed condition wait) when the time-keeper says that a deadline has come. A broadcast wakes other
 * waiters too: they see a spurious wake-up, which POSIX allows. The waiter keeps the condition from being destroyed
 * under the broadcaster by taking `condition_busy` before it leaves. */
#include "clock_internal.h"

#include <errno.h>

static _Atomic int32_t broadcaster_pid;

static void lock_condition(hl_slot *slot)
{
    uint32_t unlocked = 0;
    while (!atomic_compare_exchange_weak(&slot->condition_busy, &unlocked, 1)) {
        unlocked = 0;
        hl_sys_yield();
    }
}

static void unlock_condition(hl_slot *slot) { atomic_store(&slot->condition_busy, 0); }

static void *broadcast_loop(void *argument)
{
    hl_process *process = argument;
    hl_page *page = hl_page_get();
    int32_t pid = hl_sys_getpid();
    /* This thread never touches the virtual clock: it waits on the real kernel, for the time-keeper only. */
    for (;;) {
        uint32_t seen = atomic_load(&process->broadcast);
        for (int i = 0; i < atomic_load(&page->slots_used); i++) {
            hl_slot *slot = &page->slots[i];
            if (atomic_load(&slot->pid) != pid || !atomic_exchange(&slot->broadcast_due, 0))
                continue;
            lock_condition(slot);
            uintptr_t condition = atomic_load(&slot->condition);
            if (condition && atomic_load(&slot->pid) == pid) /* not given back meanwhile, to a thread of another process */
                hl_libc_cond_broadcast((pthread_cond_t *)condition);
            unlock_condition(slot);
        }
        hl_sys_futex_wait(&process->broadcast, seen, -1);
    }
    return NULL;
}

static void need_broadcaster(void)
{
    int32_t pid = hl_sys_getpid(), seen = atomic_load(&broadcaster_pid);
    if (seen == pid || !atomic_compare_exchange_strong(&broadcaster_pid, &seen, pid))
        return;
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    hl_libc_pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    if (pthread_create(&thread, &attributes, broadcast_loop, hl_page_process()) != 0)
        hl_report_fatal("cannot create the thread that ends timed condition waits: raise the limit of threads (ulimit -u)");
    pthread_attr_destroy(&attributes);
    hl_libc_pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int wait_condition(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t deadline_ns, bool background)
{
    int result;
    need_broadcaster();
    hl_slot *slot = hl_wait_slot();
    uint32_t seen = hl_wait_enter(deadline_ns, HL_WAKE_CONDITION, HL_WAIT_CONDITION, background);
    atomic_store(&slot->condition, (uintptr_t)condition);
    for (;;) {
        if (hl_wait_expired(deadline_ns)) { /* a deadline in the past: libc still gives up the mutex for a moment */
            struct timespec past = {0};
            result = hl_libc_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &past);
            break;
        }
        struct timespec until = hl_clock_real_abstime(deadline_ns);
        result = hl_libc_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &until);
        if (result != ETIMEDOUT) /* ETIMEDOUT: only a slice of the kernel's has ended */
            break;
    }
    if (result == 0 && atomic_load(&slot->word) != seen && hl_wait_expired(deadline_ns)) {
        /* Ended by the time-keeper. The program's own signal may have come at the same instant and chosen this thread: it is
         * passed on, so that nobody else waits for it in vain. */
        result = ETIMEDOUT;
        hl_libc_cond_broadcast(condition);
    }
    lock_condition(slot);
    atomic_store(&slot->condition, 0);
    unlock_condition(slot);
    hl_wait_leave();
    return result;
}

/* The clock that an absolute time of pthread_cond_timedwait is in: glibc keeps it in this bit (nptl/pthread_cond_init.c,
 * unchanged since 2.25). */
static clockid_t clock_of(const pthread_cond_t *condition)
{
    return (condition->__data.__wrefs & 2) ? CLOCK_MONOTONIC : CLOCK_REALTIME;
}

/* CPython waits for the GIL in 5 ms turns: real CPU scheduling, with an absolute time that it computed from the virtual clock. */
#define GIL_TURN_LIMIT_NS (INT64_C(10) * HL_NS_PER_MS)

static int wait_for_gil(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *absolute)
{
    int64_t left_ns = hl_clock_deadline_of(clock_of(condition), absolute) - hl_clock_now_ns();
    if (left_ns < 0)
        left_ns = 0;
    if (left_ns > GIL_TURN_LIMIT_NS)
        left_ns = GIL_TURN_LIMIT_NS;
    struct timespec until = hl_sys_timespec(hl_clock_real_ns() + left_ns);
    return hl_libc_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &until);
}

HL_EXPORT int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                                     const struct timespec *restrict absolute)
{
    if (!hl_clock_ready() || !hl_timespec_valid(absolute))
        return hl_libc_cond_timedwait(condition, mutex, absolute);
    if (hl_clock_is_interpreter(__builtin_return_address(0)))
        return wait_for_gil(condition, mutex, absolute);
    return wait_condition(condition, mutex, hl_clock_deadline_of(clock_of(condition), absolute), HL_BACKGROUND());
}

HL_EXPORT int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock_id,
                                     const struct timespec *absolute)
{
    if (!hl_clock_ready() || !hl_timespec_valid(absolute) || (clock_id != CLOCK_REALTIME && clock_id != CLOCK_MONOTONIC))
        return hl_libc_cond_clockwait(condition, mutex, clock_id, absolute);
    return wait_condition(condition, mutex, hl_clock_deadline_of(clock_id, absolute), HL_BACKGROUND());
}

HL_EXPORT int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    if (!hl_clock_ready() || hl_clock_is_interpreter(__builtin_return_address(0)))
        return hl_libc_cond_wait(condition, mutex);
    hl_wait_enter(HL_NEVER_NS, HL_WAKE_WORD, HL_WAIT_CONDITION, false);
    int result = hl_libc_cond_wait(condition, mutex);
    hl_wait_leave();
    return result;
}
