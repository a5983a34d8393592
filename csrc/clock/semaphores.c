/* POSIX semaphores: CPython 3.11's Lock, Event and Queue wait in sem_clockwait. */
#include "clock_internal.h"

#include <errno.h>

static int wait_semaphore(sem_t *semaphore, int64_t deadline_ns)
{
    int result;
    if (sem_trywait(semaphore) == 0)
        return 0;
    hl_wait_enter(deadline_ns, HL_WAKE_SIGNAL, HL_WAIT_SEMAPHORE, false);
    for (;;) {
        if (deadline_ns == HL_NEVER_NS) {
            result = hl_libc_sem_wait(semaphore);
        } else {
            struct timespec until = hl_clock_real_abstime(deadline_ns);
            result = hl_libc_sem_clockwait(semaphore, CLOCK_MONOTONIC, &until);
        }
        if (result == 0)
            break;
        bool ours = errno == ETIMEDOUT || (errno == EINTR && hl_wait_kicked());
        if (!ours)
            break;
        if (hl_wait_expired(deadline_ns)) {
            result = sem_trywait(semaphore);
            if (result != 0)
                errno = ETIMEDOUT;
            break;
        }
    }
    int saved = errno;
    hl_wait_leave();
    errno = saved;
    return result;
}

HL_EXPORT int sem_clockwait(sem_t *semaphore, clockid_t clock_id, const struct timespec *absolute)
{
    if (!hl_clock_ready() || !hl_timespec_valid(absolute) || (clock_id != CLOCK_REALTIME && clock_id != CLOCK_MONOTONIC))
        return hl_libc_sem_clockwait(semaphore, clock_id, absolute);
    return wait_semaphore(semaphore, hl_clock_deadline_of(clock_id, absolute));
}

HL_EXPORT int sem_timedwait(sem_t *semaphore, const struct timespec *absolute)
{
    if (!hl_clock_ready() || !hl_timespec_valid(absolute))
        return hl_libc_sem_timedwait(semaphore, absolute);
    return wait_semaphore(semaphore, hl_clock_deadline_of(CLOCK_REALTIME, absolute));
}

HL_EXPORT int sem_wait(sem_t *semaphore)
{
    if (!hl_clock_ready())
        return hl_libc_sem_wait(semaphore);
    return wait_semaphore(semaphore, HL_NEVER_NS);
}
