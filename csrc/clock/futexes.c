/* syscall(): Rust's and libstdc++'s futex waits, and raw clock reads, come through it. Other numbers pass. */
#include "clock_internal.h"

#include <errno.h>
#include <stdarg.h>

static long result_of(long status)
{
    if (status >= 0 || status < -4095)
        return status;
    errno = (int)-status;
    return -1;
}

static long wait_futex(const long a[6])
{
    int command = (int)a[1] & FUTEX_CMD_MASK;
    int flags = (int)a[1] & FUTEX_PRIVATE_FLAG;
    const struct timespec *timeout = (const struct timespec *)a[3];
    long bits = command == FUTEX_WAIT ? (long)FUTEX_BITSET_MATCH_ANY : a[5];
    int64_t deadline_ns = HL_NEVER_NS;
    if (timeout && !hl_timespec_valid(timeout))
        return -EINVAL;
    if (timeout && command == FUTEX_WAIT)
        deadline_ns = hl_wait_deadline_ns(hl_sys_ns(timeout));
    else if (timeout)
        deadline_ns = hl_clock_deadline_of(((int)a[1] & FUTEX_CLOCK_REALTIME) ? CLOCK_REALTIME : CLOCK_MONOTONIC, timeout);
    long status;
    hl_wait_enter(deadline_ns, HL_WAKE_SIGNAL, HL_WAIT_FUTEX, timeout && HL_BACKGROUND());
    for (;;) {
        struct timespec until = hl_clock_real_abstime(deadline_ns);
        status = hl_sys_call6(SYS_futex, a[0], FUTEX_WAIT_BITSET | flags, a[2], deadline_ns == HL_NEVER_NS ? 0 : (long)&until,
                              0, bits);
        if (status != -ETIMEDOUT && !(status == -EINTR && hl_wait_kicked()))
            break;
        if (hl_wait_expired(deadline_ns)) {
            status = -ETIMEDOUT;
            break;
        }
    }
    hl_wait_leave();
    return status;
}

static bool is_timed_call(long number, const long a[6])
{
    if (number == SYS_futex) {
        int command = (int)a[1] & FUTEX_CMD_MASK;
        return command == FUTEX_WAIT || command == FUTEX_WAIT_BITSET;
    }
    return number == SYS_clock_gettime || number == SYS_clock_nanosleep || number == SYS_nanosleep;
}

HL_EXPORT long syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (!is_timed_call(number, a) || !hl_clock_ready())
        return result_of(hl_sys_call6(number, a[0], a[1], a[2], a[3], a[4], a[5]));
    switch (number) {
    case SYS_futex: {
        int saved = errno;
        long status = wait_futex(a);
        errno = saved;
        return result_of(status);
    }
    case SYS_clock_gettime: return clock_gettime((clockid_t)a[0], (struct timespec *)a[1]);
    case SYS_nanosleep: return nanosleep((const struct timespec *)a[0], (struct timespec *)a[1]);
    default: {
        int error = clock_nanosleep((clockid_t)a[0], (int)a[1], (const struct timespec *)a[2], (struct timespec *)a[3]);
        return result_of(-error);
    }
    }
}
