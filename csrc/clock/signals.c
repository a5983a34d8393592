/* Keeping our wake signal deliverable: libzmq blocks every signal in its I/O threads. */
#include "clock_internal.h"

#include <errno.h>

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
