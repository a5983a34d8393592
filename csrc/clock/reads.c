/* Reading clocks: CLOCK_REALTIME, MONOTONIC, their RAW, COARSE, BOOTTIME and TAI kin, time, gettimeofday, ftime's
 * successors. CPU-time clocks stay real. */
#include "clock_internal.h"

#include <sys/time.h>

static bool virtual_ns(clockid_t clock_id, int64_t *ns)
{
    switch (clock_id) {
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_BOOTTIME: *ns = hl_clock_now_ns(); return true;
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_TAI: *ns = hl_clock_now_ns() + hl_page_realtime_offset_ns(); return true;
    default: return false;
    }
}

HL_EXPORT int clock_gettime(clockid_t clock_id, struct timespec *time)
{
    int64_t ns;
    if (!hl_clock_ready() || !virtual_ns(clock_id, &ns))
        return hl_libc_clock_gettime(clock_id, time);
    *time = hl_sys_timespec(ns);
    return 0;
}

HL_EXPORT int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    struct timeval *volatile out = time; /* declared nonnull, but the kernel takes NULL */
    if (out)
        *out = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    return 0;
}

HL_EXPORT time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

HL_EXPORT int timespec_get(struct timespec *time, int base)
{
    if (base != TIME_UTC)
        return 0;
    clock_gettime(CLOCK_REALTIME, time);
    return base;
}
