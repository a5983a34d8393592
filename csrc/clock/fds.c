/* poll, ppoll, select, pselect, epoll_wait, epoll_pwait, epoll_pwait2: waits for file descriptors with a timeout.
 *
 * Inside a run the kernel waits in a slice chosen by the clock's mode; the time-keeper ends the wait at its virtual deadline
 * by a signal, which becomes the timeout's result, never an EINTR. A caller's signal mask is used without our signal. */
#include "clock_internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define FOREVER (-1)

/* One kernel wait of at most slice_ns (FOREVER: no limit). Returns as the call does. */
typedef int (*wait_once)(void *call, int64_t slice_ns);

static const struct timespec *slice_of(int64_t slice_ns, struct timespec *buffer)
{
    if (slice_ns < 0)
        return NULL;
    *buffer = hl_sys_timespec(slice_ns);
    return buffer;
}

static int wait_for_fds(wait_once once, void *call, int64_t timeout_ns, bool background)
{
    if (timeout_ns == 0)
        return once(call, 0);
    int64_t deadline_ns = timeout_ns < 0 ? HL_NEVER_NS : hl_wait_deadline_ns(timeout_ns);
    int result;
    hl_wait_enter(deadline_ns, HL_WAKE_SIGNAL, HL_WAIT_FDS, background);
    for (;;) {
        result = once(call, hl_wait_kernel_timeout_ns(deadline_ns));
        if (result > 0)
            break;
        if (result < 0 && !(errno == EINTR && hl_wait_kicked()))
            break;
        if (hl_wait_expired(deadline_ns)) {
            result = once(call, 0);
            break;
        }
    }
    int saved = errno;
    hl_wait_leave();
    errno = saved;
    return result;
}

static const sigset_t *without_ours(const sigset_t *mask, sigset_t *buffer)
{
    if (!mask)
        return NULL;
    *buffer = *mask;
    sigdelset(buffer, SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX);
    return buffer;
}

static int64_t milliseconds(int timeout) { return timeout < 0 ? FOREVER : timeout * HL_NS_PER_MS; }

/* ---- poll ---- */

typedef struct poll_call {
    struct pollfd *fds;
    nfds_t count;
    const sigset_t *mask;
} poll_call;

static int poll_once(void *argument, int64_t slice_ns)
{
    poll_call *call = argument;
    struct timespec buffer;
    return hl_libc_ppoll(call->fds, call->count, slice_of(slice_ns, &buffer), call->mask);
}

HL_EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    poll_call call = {fds, count, NULL};
    if (!hl_clock_ready())
        return poll_once(&call, milliseconds(timeout));
    return wait_for_fds(poll_once, &call, milliseconds(timeout), timeout > 0 && HL_BACKGROUND());
}

HL_EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    sigset_t buffer;
    poll_call call = {fds, count, without_ours(mask, &buffer)};
    if (!hl_clock_ready() || (timeout && (!hl_timespec_valid(timeout) || timeout->tv_sec < 0)))
        return hl_libc_ppoll(fds, count, timeout, mask);
    return wait_for_fds(poll_once, &call, timeout ? hl_sys_ns(timeout) : FOREVER, false);
}

/* ---- select ---- */

typedef struct select_call {
    int count;
    fd_set *sets[3];
    char saved[3][4096]; /* the sets may be larger than FD_SETSIZE: glibc does not check */
    const sigset_t *mask;
} select_call;

static int select_once(void *argument, int64_t slice_ns)
{
    select_call *call = argument;
    struct timespec buffer;
    size_t bytes = ((size_t)call->count + 63) / 64 * 8;
    for (int i = 0; i < 3; i++) /* an interrupted select leaves the sets undefined */
        if (call->sets[i])
            memcpy(call->sets[i], call->saved[i], bytes);
    return hl_libc_pselect(call->count, call->sets[0], call->sets[1], call->sets[2], slice_of(slice_ns, &buffer), call->mask);
}

static int select_for(int count, fd_set *r, fd_set *w, fd_set *e, int64_t timeout_ns, const sigset_t *mask)
{
    select_call call = {.count = count, .sets = {r, w, e}, .mask = mask};
    size_t bytes = ((size_t)count + 63) / 64 * 8;
    for (int i = 0; i < 3; i++)
        if (call.sets[i])
            memcpy(call.saved[i], call.sets[i], bytes);
    return wait_for_fds(select_once, &call, timeout_ns, false);
}

static bool select_needs_libc(int count) { return !hl_clock_ready() || count < 0 || count > 4096 * 8; }

HL_EXPORT int select(int count, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e, struct timeval *restrict timeout)
{
    if (timeout && (timeout->tv_sec < 0 || timeout->tv_usec < 0)) {
        errno = EINVAL;
        return -1;
    }
    int64_t timeout_ns = FOREVER;
    struct timespec request;
    if (timeout) {
        request = (struct timespec){.tv_sec = timeout->tv_sec + timeout->tv_usec / 1000000,
                                    .tv_nsec = timeout->tv_usec % 1000000 * 1000};
        timeout_ns = hl_sys_ns(&request);
    }
    if (select_needs_libc(count))
        return hl_libc_pselect(count, r, w, e, timeout ? &request : NULL, NULL);
    int64_t began_ns = hl_clock_now_ns();
    int result = select_for(count, r, w, e, timeout_ns, NULL);
    if (timeout) { /* Linux writes back what is left */
        int64_t left_ns = timeout_ns - (hl_clock_now_ns() - began_ns);
        struct timespec left = hl_sys_timespec(left_ns);
        *timeout = (struct timeval){.tv_sec = left.tv_sec, .tv_usec = left.tv_nsec / 1000};
    }
    return result;
}

HL_EXPORT int pselect(int count, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e,
                      const struct timespec *restrict timeout, const sigset_t *restrict mask)
{
    sigset_t buffer;
    if (select_needs_libc(count) || (timeout && (!hl_timespec_valid(timeout) || timeout->tv_sec < 0)))
        return hl_libc_pselect(count, r, w, e, timeout, mask);
    return select_for(count, r, w, e, timeout ? hl_sys_ns(timeout) : FOREVER, without_ours(mask, &buffer));
}

/* ---- epoll ---- */

typedef struct epoll_call {
    int fd;
    struct epoll_event *events;
    int capacity;
    const sigset_t *mask;
} epoll_call;

/* epoll_pwait2 (Linux 5.11) has nanosecond timeouts; older kernels get milliseconds, rounded up: in a frozen run the slice
 * does not matter, the time-keeper ends the wait. */
static int epoll_once(void *argument, int64_t slice_ns)
{
    static _Atomic bool missing;
    epoll_call *call = argument;
    if (slice_ns <= 0 || atomic_load_explicit(&missing, memory_order_relaxed)) {
        int64_t ms = slice_ns <= 0 ? slice_ns : (slice_ns + HL_NS_PER_MS - 1) / HL_NS_PER_MS;
        return hl_libc_epoll_pwait(call->fd, call->events, call->capacity, ms > INT32_MAX ? INT32_MAX : (int)ms, call->mask);
    }
    struct timespec buffer = hl_sys_timespec(slice_ns);
    long result = hl_sys_call6(SYS_epoll_pwait2, call->fd, (long)call->events, call->capacity, (long)&buffer,
                               (long)call->mask, call->mask ? 8 : 0);
    if (result == -ENOSYS) {
        atomic_store(&missing, true);
        return epoll_once(argument, slice_ns);
    }
    if (result >= 0)
        return (int)result;
    errno = (int)-result;
    return -1;
}

static int epoll_for(int fd, struct epoll_event *events, int capacity, int64_t timeout_ns, const sigset_t *mask, bool background)
{
    sigset_t buffer;
    epoll_call call = {fd, events, capacity, without_ours(mask, &buffer)};
    return wait_for_fds(epoll_once, &call, timeout_ns, background);
}

HL_EXPORT int epoll_wait(int fd, struct epoll_event *events, int capacity, int timeout)
{
    if (!hl_clock_ready())
        return hl_libc_epoll_pwait(fd, events, capacity, timeout, NULL);
    return epoll_for(fd, events, capacity, milliseconds(timeout), NULL, timeout > 0 && HL_BACKGROUND());
}

HL_EXPORT int epoll_pwait(int fd, struct epoll_event *events, int capacity, int timeout, const sigset_t *mask)
{
    if (!hl_clock_ready())
        return hl_libc_epoll_pwait(fd, events, capacity, timeout, mask);
    return epoll_for(fd, events, capacity, milliseconds(timeout), mask, timeout > 0 && HL_BACKGROUND());
}

HL_EXPORT int epoll_pwait2(int fd, struct epoll_event *events, int capacity, const struct timespec *timeout, const sigset_t *mask)
{
    if (timeout && (!hl_timespec_valid(timeout) || timeout->tv_sec < 0)) {
        errno = EINVAL;
        return -1;
    }
    int64_t timeout_ns = timeout ? hl_sys_ns(timeout) : FOREVER;
    epoll_call call = {fd, events, capacity, mask};
    if (!hl_clock_ready())
        return epoll_once(&call, timeout_ns);
    return epoll_for(fd, events, capacity, timeout_ns, mask, timeout_ns > 0 && HL_BACKGROUND());
}
