/* Inside libhyperlapse_clock.so: libc's own functions, and what the wrappers share.
 *
 * Rules for a wrapper: outside a run it tail-calls libc; inside a run it must give the caller exactly what libc would,
 * with virtual time in place of real time; it must not allocate, lock or print. One file per family of calls. */
#ifndef HL_CLOCK_INTERNAL_H
#define HL_CLOCK_INTERNAL_H

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#include "../core/clock.h"
#include "../core/export.h"
#include "../core/page.h"
#include "../core/report.h"
#include "../core/sys.h"
#include "../core/wait.h"

/* libc's functions past our own, looked up in libc.so.6 itself: RTLD_NEXT depends on the order of preloads. */
#define LIBC_FUNCTIONS(X) \
    X(int, clock_gettime, (clockid_t, struct timespec *)) \
    X(int, clock_nanosleep, (clockid_t, int, const struct timespec *, struct timespec *)) \
    X(int, ppoll, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *)) \
    X(int, pselect, (int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *)) \
    X(int, epoll_pwait, (int, struct epoll_event *, int, int, const sigset_t *)) \
    X(int, sem_wait, (sem_t *)) \
    X(int, sem_timedwait, (sem_t *, const struct timespec *)) \
    X(int, sched_yield, (void)) \
    X(int, pthread_sigmask, (int, const sigset_t *, sigset_t *)) \
    X(int, connect, (int, const struct sockaddr *, socklen_t)) \
    X(int, accept, (int, struct sockaddr *, socklen_t *)) \
    X(int, accept4, (int, struct sockaddr *, socklen_t *, int)) \
    X(int, execve, (const char *, char *const[], char *const[])) \
    X(int, execvpe, (const char *, char *const[], char *const[])) \
    X(int, timerfd_create, (int, int)) \
    X(int, timerfd_gettime, (int, struct itimerspec *)) \
    X(int, timer_create, (clockid_t, struct sigevent *, timer_t *)) \
    X(int, timer_gettime, (timer_t, struct itimerspec *)) \
    X(int, timer_delete, (timer_t)) \
    X(int, timer_getoverrun, (timer_t)) \
    X(int, timerfd_settime, (int, int, const struct itimerspec *, struct itimerspec *)) \
    X(int, timer_settime, (timer_t, int, const struct itimerspec *, struct itimerspec *)) \
    X(int, pthread_mutex_timedlock, (pthread_mutex_t *, const struct timespec *)) \
    X(int, pthread_rwlock_timedrdlock, (pthread_rwlock_t *, const struct timespec *)) \
    X(int, pthread_rwlock_timedwrlock, (pthread_rwlock_t *, const struct timespec *)) \
    X(int, pthread_mutex_clocklock, (pthread_mutex_t *, clockid_t, const struct timespec *)) \
    X(int, pthread_rwlock_clockrdlock, (pthread_rwlock_t *, clockid_t, const struct timespec *)) \
    X(int, pthread_rwlock_clockwrlock, (pthread_rwlock_t *, clockid_t, const struct timespec *)) \
    X(unsigned, alarm, (unsigned))

#define DECLARE(result, name, arguments) extern result(*hl_libc_##name) arguments;
LIBC_FUNCTIONS(DECLARE)
#undef DECLARE

/* Versioned or possibly missing in older glibc. */
extern int (*hl_libc_sem_clockwait)(sem_t *, clockid_t, const struct timespec *);
extern int (*hl_libc_cond_wait)(pthread_cond_t *, pthread_mutex_t *);
extern int (*hl_libc_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
extern int (*hl_libc_cond_clockwait)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
extern int (*hl_libc_cond_broadcast)(pthread_cond_t *);
extern int (*hl_libc_posix_spawn)(pid_t *, const char *, const void *, const void *, char *const[], char *const[]);
extern int (*hl_libc_posix_spawnp)(pid_t *, const char *, const void *, const void *, char *const[], char *const[]);
extern int (*hl_libc_setitimer)(int, const void *, void *);
extern int (*hl_libc_getitimer)(int, void *);

/* True inside a run; resolves libc's functions first, so that a wrapper called before our constructor works. */
bool hl_clock_ready(void);

/* A timed wait made by torch's own background threads (gloo's 10 ms epoll loops, NCCL watchdogs): told by the return
 * address lying in a libtorch object, not by names. They make no jumps: 82 % of an idle server's jumps were theirs. */
bool hl_clock_is_background(void *return_address);
#define HL_BACKGROUND() hl_clock_is_background(__builtin_return_address(0))

/* The interpreter's GIL waits (5 ms pthread_cond_timedwait, real CPU scheduling) are told by the return address lying
 * in the object that holds the interpreter: they stay real. */
bool hl_clock_is_interpreter(void *return_address);

/* Real CLOCK_MONOTONIC absolute time at which a kernel wait for this deadline should end by itself. */
struct timespec hl_clock_real_abstime(int64_t deadline_ns);

/* The virtual deadline of an absolute time on a clock. */
int64_t hl_clock_deadline_of(clockid_t clock_id, const struct timespec *absolute);

static inline bool hl_timespec_valid(const struct timespec *t) { return t->tv_nsec >= 0 && t->tv_nsec < HL_NS_PER_S; }

#endif
