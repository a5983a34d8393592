/* nanosleep and its family. glibc's sleep and usleep do not go through nanosleep's PLT entry: each is its own wrapper. */
#include "clock_internal.h"

#include <errno.h>
#include <unistd.h>

/* 0, or EINTR when a signal of the program's own arrived. */
static int sleep_until(int64_t deadline_ns)
{
    int result = 0;
    int saved = errno;
    if (hl_wait_expired(deadline_ns))
        return 0;
    hl_slot *slot = hl_wait_slot();
    uint32_t seen = hl_wait_enter(deadline_ns, HL_WAKE_WORD, HL_WAIT_SLEEP, false);
    while (!hl_wait_expired(deadline_ns)) {
        /* glibc's sleeps can be cancelled while they block; a raw futex wait only where cancellation may strike at once. */
        int type;
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
        long status = hl_sys_futex_wait(&slot->word, seen, hl_wait_kernel_timeout_ns(deadline_ns));
        pthread_setcanceltype(type, NULL);
        seen = atomic_load(&slot->word);
        if (status == -EINTR && !hl_wait_kicked() && !hl_wait_expired(deadline_ns)) {
            result = EINTR;
            break;
        }
    }
    hl_wait_leave();
    errno = saved;
    return result;
}

HL_EXPORT int clock_nanosleep(clockid_t clock_id, int flags, const struct timespec *request, struct timespec *remain)
{
    if (!hl_clock_ready() || (clock_id != CLOCK_REALTIME && clock_id != CLOCK_MONOTONIC && clock_id != CLOCK_BOOTTIME &&
                              clock_id != CLOCK_TAI))
        return hl_libc_clock_nanosleep(clock_id, flags, request, remain);
    if (!hl_timespec_valid(request) || request->tv_sec < 0)
        return EINVAL;
    bool absolute = flags & TIMER_ABSTIME;
    clockid_t base = clock_id == CLOCK_TAI ? CLOCK_REALTIME : clock_id;
    int64_t deadline_ns = absolute ? hl_clock_deadline_of(base, request) : hl_wait_deadline_ns(hl_sys_ns(request));
    if (!absolute && request->tv_sec == 0 && request->tv_nsec == 0) {
        hl_libc_sched_yield();
        return 0;
    }
    pthread_testcancel();
    int result = sleep_until(deadline_ns);
    if (result == EINTR && remain && !absolute)
        *remain = hl_sys_timespec(deadline_ns - HL_WAIT_KERNEL_LATENESS_NS - hl_clock_now_ns());
    return result;
}

HL_EXPORT int nanosleep(const struct timespec *request, struct timespec *remain)
{
    int result = clock_nanosleep(CLOCK_MONOTONIC, 0, request, remain);
    if (!result)
        return 0;
    errno = result;
    return -1;
}

HL_EXPORT int usleep(useconds_t microseconds)
{
    struct timespec request = hl_sys_timespec((int64_t)microseconds * HL_NS_PER_US);
    return nanosleep(&request, NULL);
}

HL_EXPORT unsigned sleep(unsigned seconds)
{
    struct timespec request = {.tv_sec = seconds}, remain = {0};
    if (!nanosleep(&request, &remain))
        return 0;
    return (unsigned)(remain.tv_sec + (remain.tv_nsec >= HL_NS_PER_S / 2));
}
