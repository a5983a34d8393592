/* Mutexes and read-write locks with a timeout: std::timed_mutex and std::shared_timed_mutex wait in them.
 *
 * glibc does not return from them on a signal, so the time-keeper cannot end them: the wait is cut into slices of real time,
 * and the lock is tried again after each. That costs real time where a lock is contended for long, never virtual time. */
#include "clock_internal.h"

#include <errno.h>

#define SLICE_NS (INT64_C(2) * HL_NS_PER_MS)

typedef int (*lock_until)(void *lock, clockid_t clock_id, const struct timespec *absolute);

static int lock_before(lock_until try_until, void *lock, int64_t deadline_ns)
{
    struct timespec past = {0};
    int result = try_until(lock, CLOCK_MONOTONIC, &past);
    if (result != ETIMEDOUT)
        return result;
    hl_wait_enter(deadline_ns, HL_WAKE_WORD, HL_WAIT_FUTEX, false);
    do {
        bool expired = hl_wait_expired(deadline_ns);
        struct timespec until = hl_sys_timespec(expired ? 0 : hl_clock_real_ns() + SLICE_NS);
        result = try_until(lock, CLOCK_MONOTONIC, &until);
        if (expired)
            break;
    } while (result == ETIMEDOUT);
    hl_wait_leave();
    return result;
}

#define LOCK(name, type) \
    static int name##_until(void *lock, clockid_t clock_id, const struct timespec *absolute) \
    { \
        return hl_libc_##name((type *)lock, clock_id, absolute); \
    } \
    HL_EXPORT int name(type *lock, clockid_t clock_id, const struct timespec *absolute) \
    { \
        if (!hl_clock_ready() || !hl_timespec_valid(absolute) || (clock_id != CLOCK_REALTIME && clock_id != CLOCK_MONOTONIC)) \
            return hl_libc_##name(lock, clock_id, absolute); \
        return lock_before(name##_until, lock, hl_clock_deadline_of(clock_id, absolute)); \
    }
LOCK(pthread_mutex_clocklock, pthread_mutex_t)
LOCK(pthread_rwlock_clockrdlock, pthread_rwlock_t)
LOCK(pthread_rwlock_clockwrlock, pthread_rwlock_t)

#define REALTIME_LOCK(name, clock_name, type) \
    HL_EXPORT int name(type *restrict lock, const struct timespec *restrict absolute) \
    { \
        if (!hl_clock_ready() || !hl_timespec_valid(absolute)) \
            return hl_libc_##name(lock, absolute); \
        return lock_before(clock_name##_until, lock, hl_clock_deadline_of(CLOCK_REALTIME, absolute)); \
    }
REALTIME_LOCK(pthread_mutex_timedlock, pthread_mutex_clocklock, pthread_mutex_t)
REALTIME_LOCK(pthread_rwlock_timedrdlock, pthread_rwlock_clockrdlock, pthread_rwlock_t)
REALTIME_LOCK(pthread_rwlock_timedwrlock, pthread_rwlock_clockwrlock, pthread_rwlock_t)
