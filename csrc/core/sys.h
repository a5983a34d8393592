/* System calls made without libc.
 *
 * Why: libhyperlapse_clock.so interposes libc's waits, clocks and syscall(). The core sits below it, so it must not
 * call them, or the clock would wait on itself. Return values are the kernel's: -errno on failure; errno is left alone.
 * x86-64 only, as the project is. */
#ifndef HL_CORE_SYS_H
#define HL_CORE_SYS_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

#define HL_NS_PER_S INT64_C(1000000000)
#define HL_NS_PER_MS INT64_C(1000000)
#define HL_NS_PER_US INT64_C(1000)

static inline long hl_sys_call6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long hl_sys_call3(long number, long a, long b, long c)
{
    return hl_sys_call6(number, a, b, c, 0, 0, 0);
}

static inline struct timespec hl_sys_timespec(int64_t ns)
{
    if (ns < 0)
        ns = 0;
    return (struct timespec){.tv_sec = ns / HL_NS_PER_S, .tv_nsec = ns % HL_NS_PER_S};
}

/* A program may ask for a wait of centuries: saturate instead of overflowing. */
static inline int64_t hl_sys_ns(const struct timespec *time)
{
    if (time->tv_sec >= INT64_MAX / HL_NS_PER_S / 2)
        return INT64_MAX / 2;
    return time->tv_sec * HL_NS_PER_S + time->tv_nsec;
}

static inline int32_t hl_sys_gettid(void) { return (int32_t)hl_sys_call3(SYS_gettid, 0, 0, 0); }
static inline int32_t hl_sys_getpid(void) { return (int32_t)hl_sys_call3(SYS_getpid, 0, 0, 0); }
static inline void hl_sys_yield(void) { (void)hl_sys_call3(SYS_sched_yield, 0, 0, 0); }

static inline long hl_sys_write(int fd, const void *bytes, size_t count)
{
    return hl_sys_call3(SYS_write, fd, (long)bytes, (long)count);
}

/* Shared futex. timeout_ns < 0: none; else relative, real time. 0, -EAGAIN, -EINTR, -ETIMEDOUT. */
static inline long hl_sys_futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t timeout_ns)
{
    struct timespec timeout = hl_sys_timespec(timeout_ns);
    return hl_sys_call6(SYS_futex, (long)word, FUTEX_WAIT, (long)seen, timeout_ns < 0 ? 0 : (long)&timeout, 0, 0);
}

static inline long hl_sys_futex_wake(_Atomic uint32_t *word, int count)
{
    return hl_sys_call6(SYS_futex, (long)word, FUTEX_WAKE, count, 0, 0, 0);
}

static inline long hl_sys_tgkill(int32_t pid, int32_t tid, int signal)
{
    return hl_sys_call3(SYS_tgkill, pid, tid, signal);
}

static inline int64_t hl_sys_clock_ns(int clock_id)
{
    struct timespec now = {0};
    hl_sys_call3(SYS_clock_gettime, clock_id, (long)&now, 0);
    return hl_sys_ns(&now);
}

#endif
