/* Keeping our wake signal deliverable: libzmq blocks every signal in its I/O threads. And timers that we do not
 * virtualise: they are counted, so that the run's report can say that its result is not to be trusted. */
#include "clock_internal.h"

#include <errno.h>
#include <sys/time.h>

static const sigset_t *without_ours(int how, const sigset_t *set, sigset_t *buffer)
{
    if (!set || how == SIG_UNBLOCK)
        return set;
    *buffer = *set;
    sigdelset(buffer, SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX);
    return buffer;
}

HL_EXPORT int pthread_sigmask(int how, const sigset_t *restrict set, sigset_t *restrict old)
{
    sigset_t buffer;
    if (!hl_clock_ready())
        return hl_libc_pthread_sigmask(how, set, old);
    return hl_libc_pthread_sigmask(how, without_ours(how, set, &buffer), old);
}

HL_EXPORT int sigprocmask(int how, const sigset_t *restrict set, sigset_t *restrict old)
{
    int error = pthread_sigmask(how, set, old);
    if (!error)
        return 0;
    errno = error;
    return -1;
}

HL_EXPORT int timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    if (hl_clock_ready() && value && (value->it_value.tv_sec || value->it_value.tv_nsec))
        hl_report_event("unvirtualised-wait", "timerfd_settime");
    return hl_libc_timerfd_settime(fd, flags, value, old);
}

HL_EXPORT int setitimer(__itimer_which_t which, const struct itimerval *value, struct itimerval *old)
{
    if (hl_clock_ready() && which == ITIMER_REAL && value && (value->it_value.tv_sec || value->it_value.tv_usec))
        hl_report_event("unvirtualised-wait", "setitimer");
    return hl_libc_setitimer((int)which, value, old);
}

HL_EXPORT int timer_settime(timer_t timer, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    if (hl_clock_ready() && value && (value->it_value.tv_sec || value->it_value.tv_nsec))
        hl_report_event("unvirtualised-wait", "timer_settime");
    return hl_libc_timer_settime(timer, flags, value, old);
}

HL_EXPORT unsigned alarm(unsigned seconds)
{
    if (hl_clock_ready() && seconds)
        hl_report_event("unvirtualised-wait", "alarm");
    return hl_libc_alarm(seconds);
}
