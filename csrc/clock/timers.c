/* Timers: timerfd, alarm and setitimer(ITIMER_REAL), timer_create.
 *
 * One thread of ours per process (made when the process arms its first timer) waits on the virtual clock for the earliest of
 * them. What it does at an expiry must make the receiver runnable before it waits again, or the clock could jump in
 * between. So a timerfd is an eventfd of ours (its counter is what a timerfd's is: expirations since the last read), SIGALRM is
 * sent by kill, and a POSIX timer, whose ways to notify are libc's own, is the kernel's, armed for 1 ns and watched
 * until it has fired.
 *
 * What an epoch skips is caught up by arithmetic: 99,000 s of a 10 ms timer one by one took 26 s.
 *
 * The thread is made where the program must not be inside a signal handler (timer_create, timerfd_settime), because making
 * one allocates. Not so for alarm, which may be called there: a process whose first alarm of all is set by a handler that
 * interrupted malloc waits for itself.
 *
 * A child made by fork inherits no armed timer of these. A timerfd stays with the process that armed it: a program that
 * exec starts with it finds it disarmed, and arming it there is told (it would expire in real time). */
#include "clock_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define TIMERS_MAX 256
#define FDINFO_BYTES 256

typedef enum timer_kind { TIMER_FREE = 0, TIMER_FD, TIMER_ALARM, TIMER_POSIX } timer_kind;

typedef struct timer {
    timer_kind kind;
    int fd;
    long eventfd_id; /* the number of a closed descriptor may be another file's by now */
    timer_t id;
    int signal_number; /* sent to the process at an expiry, 0: told in another way */
    int overrun;       /* expirations that the last signal stands for, less itself */
    clockid_t clock_id;
    int64_t deadline_ns, interval_ns; /* HL_NEVER_NS: not armed; 0: once */
} timer;

static timer timers[TIMERS_MAX];
static int32_t timers_pid; /* whose they are */
static bool served;
static _Atomic int32_t owner_pid; /* of the lock, 0: free */
static _Atomic uint32_t changed;

/* With all signals blocked: timer_settime may be called by a handler that interrupts us. A child forked while another
 * thread held the lock finds its parent's pid in it, and nobody who would ever unlock. */
static void lock(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    hl_libc_pthread_sigmask(SIG_SETMASK, &all, before);
    int32_t own_pid = hl_sys_getpid(), seen = 0;
    while (!atomic_compare_exchange_weak(&owner_pid, &seen, own_pid))
        if (seen == own_pid) {
            seen = 0;
            hl_sys_yield();
        }
    if (timers_pid == own_pid)
        return;
    for (int i = 0; i < TIMERS_MAX; i++) { /* forked: they are the parent's, only the descriptors are ours, too */
        timers[i].deadline_ns = HL_NEVER_NS;
        if (timers[i].kind != TIMER_FD)
            timers[i].kind = TIMER_FREE;
    }
    timers_pid = own_pid;
    served = false;
}

static void unlock(const sigset_t *before)
{
    atomic_store(&owner_pid, 0);
    hl_libc_pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* -1: not an eventfd. */
static long eventfd_id_of(int fd)
{
    char path[64] = "/proc/self/fdinfo/", text[FDINFO_BYTES];
    char digits[12], *to = path + strlen(path);
    int count = 0;
    do
        digits[count++] = (char)('0' + fd % 10);
    while (fd /= 10);
    while (count)
        *to++ = digits[--count];
    *to = 0;
    int info = (int)hl_sys_call3(SYS_open, (long)path, O_RDONLY | O_CLOEXEC, 0);
    if (info < 0)
        return -1;
    long size = hl_sys_call3(SYS_read, info, (long)text, sizeof text - 1);
    hl_sys_call3(SYS_close, info, 0, 0);
    text[size > 0 ? size : 0] = 0;
    const char *at = strstr(text, "eventfd-id:");
    if (!at)
        return strstr(text, "eventfd-count:") ? 0 : -1; /* before Linux 5.2 they have no ids */
    long id = 0;
    for (at += strlen("eventfd-id:"); *at == ' ' || (*at >= '0' && *at <= '9'); at++)
        if (*at != ' ')
            id = id * 10 + (*at - '0');
    return id;
}

static bool still_open(const timer *t) { return t->eventfd_id == eventfd_id_of(t->fd); }

static void fire_posix(timer_t id)
{
    struct itimerspec at_once = {.it_value = {.tv_nsec = 1}}, left;
    hl_libc_timer_settime(id, 0, &at_once, NULL);
    while (hl_libc_timer_gettime(id, &left) == 0 && (left.it_value.tv_sec || left.it_value.tv_nsec))
        hl_sys_yield();
}

/* Here all signals are blocked: what was sent to the process and not delivered is pending. */
static bool is_pending(int signal_number)
{
    uint64_t pending = 0;
    hl_sys_call3(SYS_rt_sigpending, (long)&pending, sizeof pending, 0);
    return pending & (UINT64_C(1) << (signal_number - 1));
}

static void count_overrun(timer *t, int64_t count)
{
    int64_t overrun = t->signal_number && is_pending(t->signal_number) ? t->overrun + count : count - 1;
    t->overrun = overrun < INT32_MAX ? (int)overrun : INT32_MAX;
}

/* As the kernel does for one that was late: however many intervals have passed, one signal. */
static void expire(timer *t, int64_t now_ns)
{
    int64_t count = t->interval_ns ? (now_ns - t->deadline_ns) / t->interval_ns + 1 : 1;
    switch (t->kind) {
    case TIMER_FD:
        if (!still_open(t)) {
            *t = (timer){.kind = TIMER_FREE, .deadline_ns = HL_NEVER_NS};
            return;
        }
        hl_sys_write(t->fd, &(uint64_t){(uint64_t)count}, sizeof(uint64_t));
        break;
    case TIMER_ALARM: hl_sys_call3(SYS_kill, hl_sys_getpid(), SIGALRM, 0); break;
    case TIMER_POSIX:
        count_overrun(t, count);
        fire_posix(t->id);
        break;
    default: break;
    }
    t->deadline_ns = t->interval_ns ? t->deadline_ns + count * t->interval_ns : HL_NEVER_NS;
}

static void *serve(void *unused)
{
    (void)unused;
    for (;;) {
        sigset_t before;
        int64_t earliest_ns = HL_NEVER_NS;
        uint32_t seen = atomic_load(&changed);
        lock(&before);
        int64_t now_ns = hl_clock_now_ns();
        for (int i = 0; i < TIMERS_MAX; i++) {
            timer *t = &timers[i];
            if (t->kind != TIMER_FREE && t->deadline_ns != HL_NEVER_NS && t->deadline_ns <= now_ns)
                expire(t, now_ns);
            if (t->kind != TIMER_FREE && t->deadline_ns < earliest_ns)
                earliest_ns = t->deadline_ns;
        }
        unlock(&before);
        hl_clock_wait_word(&changed, seen, earliest_ns, HL_WAIT_SLEEP);
    }
    return NULL;
}

static void start_service(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t most, before;
    sigfillset(&most); /* the program's signals are not for this thread; ours ends its wait */
    sigdelset(&most, SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX);
    hl_libc_pthread_sigmask(SIG_SETMASK, &most, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    if (pthread_create(&thread, &attributes, serve, NULL) != 0)
        hl_report_fatal("cannot create the thread that serves virtual timers: raise the limit of threads (ulimit -u)");
    pthread_attr_destroy(&attributes);
    hl_libc_pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void need_service(void)
{
    sigset_t before;
    lock(&before);
    bool start = !served;
    served = true;
    unlock(&before);
    if (start)
        start_service();
}

static bool arms(const struct itimerspec *value) { return value->it_value.tv_sec || value->it_value.tv_nsec; }

static struct itimerspec left_of(const timer *t)
{
    struct itimerspec left = {0};
    if (!t || t->deadline_ns == HL_NEVER_NS)
        return left;
    int64_t ns = t->deadline_ns - HL_WAIT_KERNEL_LATENESS_NS - hl_clock_now_ns();
    left.it_value = hl_sys_timespec(ns > 0 ? ns : 1);
    left.it_interval = hl_sys_timespec(t->interval_ns);
    return left;
}

static bool is_valid(const struct itimerspec *value)
{
    return hl_timespec_valid(&value->it_value) && hl_timespec_valid(&value->it_interval) && value->it_value.tv_sec >= 0 &&
           value->it_interval.tv_sec >= 0;
}

/* Arms or disarms; the lock is held. */
static void set(timer *t, const struct itimerspec *value, bool absolute)
{
    t->interval_ns = hl_sys_ns(&value->it_interval);
    t->deadline_ns = !arms(value) ? HL_NEVER_NS
                     : absolute   ? hl_clock_deadline_of(t->clock_id, &value->it_value)
                                  : hl_wait_deadline_ns(hl_sys_ns(&value->it_value));
    t->overrun = 0;
    atomic_fetch_add(&changed, 1);
    hl_clock_wake_word(&changed);
}

static timer *find(timer_kind kind, int fd, timer_t id)
{
    for (int i = 0; i < TIMERS_MAX; i++) {
        timer *t = &timers[i];
        if (t->kind == kind && (kind != TIMER_FD || (t->fd == fd && still_open(t))) && (kind != TIMER_POSIX || t->id == id))
            return t;
    }
    return NULL;
}

static timer *claim(timer_kind kind)
{
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < TIMERS_MAX; i++)
            if (timers[i].kind == TIMER_FREE || (pass && timers[i].kind == TIMER_FD && !still_open(&timers[i]))) {
                timers[i] = (timer){.kind = kind, .fd = -1, .deadline_ns = HL_NEVER_NS};
                return &timers[i];
            }
    return NULL;
}

static bool is_virtual(clockid_t clock_id)
{
    return clock_id != CLOCK_PROCESS_CPUTIME_ID && clock_id != CLOCK_THREAD_CPUTIME_ID && clock_id >= 0;
}

/* ---- timerfd ---- */

HL_EXPORT int timerfd_create(int clock_id, int flags)
{
    int fd = hl_libc_timerfd_create(clock_id, flags); /* checks the arguments */
    if (fd < 0 || !hl_clock_ready())
        return fd;
    hl_sys_call3(SYS_close, fd, 0, 0);
    fd = eventfd(0, ((flags & TFD_CLOEXEC) ? EFD_CLOEXEC : 0) | ((flags & TFD_NONBLOCK) ? EFD_NONBLOCK : 0));
    if (fd < 0)
        return fd;
    sigset_t before;
    lock(&before);
    timer *t = claim(TIMER_FD);
    if (t) {
        t->fd = fd;
        t->clock_id = clock_id;
        t->eventfd_id = eventfd_id_of(fd);
    }
    unlock(&before);
    if (!t)
        hl_report_fatal("more than %d timers in one process on the virtual clock", TIMERS_MAX);
    return fd;
}

HL_EXPORT int timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    if (!hl_clock_ready() || !value || !is_valid(value))
        return hl_libc_timerfd_settime(fd, flags, value, old);
    sigset_t before;
    if (arms(value))
        need_service();
    lock(&before);
    timer *t = find(TIMER_FD, fd, NULL);
    if (t) {
        uint64_t unread;
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        if (old)
            *old = left_of(t);
        if (hl_sys_call3(SYS_poll, (long)&poll_fd, 1, 0) > 0) /* setting a timer forgets its unread expirations */
            hl_sys_call3(SYS_read, fd, (long)&unread, sizeof unread);
        set(t, value, flags & TFD_TIMER_ABSTIME);
    }
    unlock(&before);
    if (!t) { /* made by the program that this one was before an exec */
        if (arms(value))
            hl_report_event("unvirtualised-wait", "timerfd_settime");
        return hl_libc_timerfd_settime(fd, flags, value, old);
    }
    return 0;
}

HL_EXPORT int timerfd_gettime(int fd, struct itimerspec *value)
{
    if (!hl_clock_ready() || !value)
        return hl_libc_timerfd_gettime(fd, value);
    sigset_t before;
    lock(&before);
    timer *t = find(TIMER_FD, fd, NULL);
    if (t)
        *value = left_of(t);
    unlock(&before);
    return t ? 0 : hl_libc_timerfd_gettime(fd, value);
}

/* ---- alarm, setitimer ---- */

static struct itimerspec set_alarm(const struct itimerspec *value)
{
    sigset_t before;
    if (value && arms(value))
        need_service();
    lock(&before);
    timer *t = find(TIMER_ALARM, 0, NULL);
    struct itimerspec old = left_of(t);
    if (value && !t && (t = claim(TIMER_ALARM)))
        t->clock_id = CLOCK_MONOTONIC;
    if (value && t)
        set(t, value, false);
    unlock(&before);
    if (value && !t)
        hl_report_fatal("more than %d timers in one process on the virtual clock", TIMERS_MAX);
    return old;
}

static struct timeval to_timeval(struct timespec time)
{
    return (struct timeval){.tv_sec = time.tv_sec, .tv_usec = time.tv_nsec / 1000};
}

static struct timespec to_timespec(struct timeval time)
{
    return (struct timespec){.tv_sec = time.tv_sec, .tv_nsec = time.tv_usec * 1000};
}

HL_EXPORT int setitimer(__itimer_which_t which, const struct itimerval *value, struct itimerval *old)
{
    if (!hl_clock_ready() || which != ITIMER_REAL || !value)
        return hl_libc_setitimer((int)which, value, old);
    struct itimerspec request = {.it_interval = to_timespec(value->it_interval), .it_value = to_timespec(value->it_value)};
    if (!is_valid(&request)) {
        errno = EINVAL;
        return -1;
    }
    struct itimerspec before = set_alarm(&request);
    if (old)
        *old = (struct itimerval){.it_interval = to_timeval(before.it_interval), .it_value = to_timeval(before.it_value)};
    return 0;
}

HL_EXPORT int getitimer(__itimer_which_t which, struct itimerval *value)
{
    if (!hl_clock_ready() || which != ITIMER_REAL || !value)
        return hl_libc_getitimer((int)which, value);
    struct itimerspec now = set_alarm(NULL);
    *value = (struct itimerval){.it_interval = to_timeval(now.it_interval), .it_value = to_timeval(now.it_value)};
    return 0;
}

HL_EXPORT unsigned alarm(unsigned seconds)
{
    if (!hl_clock_ready())
        return hl_libc_alarm(seconds);
    struct itimerspec request = {.it_value = {.tv_sec = seconds}}, before = set_alarm(&request);
    unsigned left = (unsigned)before.it_value.tv_sec + (before.it_value.tv_nsec >= HL_NS_PER_S / 2);
    return left || !before.it_value.tv_nsec ? left : 1; /* never 0 while one was pending */
}

/* ---- timer_create ---- */

HL_EXPORT int timer_create(clockid_t clock_id, struct sigevent *restrict event, timer_t *restrict id)
{
    int result = hl_libc_timer_create(clock_id, event, id);
    if (result != 0 || !hl_clock_ready() || !is_virtual(clock_id))
        return result;
    sigset_t before;
    need_service();
    lock(&before);
    timer *t = claim(TIMER_POSIX);
    if (t) {
        t->id = *id;
        t->clock_id = clock_id;
        t->signal_number = !event ? SIGALRM : event->sigev_notify == SIGEV_SIGNAL ? event->sigev_signo : 0;
    }
    unlock(&before);
    if (!t)
        hl_report_fatal("more than %d timers in one process on the virtual clock", TIMERS_MAX);
    return 0;
}

HL_EXPORT int timer_settime(timer_t id, int flags, const struct itimerspec *restrict value, struct itimerspec *restrict old)
{
    if (!hl_clock_ready() || !value || !is_valid(value))
        return hl_libc_timer_settime(id, flags, value, old);
    sigset_t before;
    lock(&before);
    timer *t = find(TIMER_POSIX, 0, id);
    if (t) {
        if (old)
            *old = left_of(t);
        set(t, value, flags & TIMER_ABSTIME);
    }
    unlock(&before);
    return t ? 0 : hl_libc_timer_settime(id, flags, value, old);
}

HL_EXPORT int timer_gettime(timer_t id, struct itimerspec *value)
{
    if (!hl_clock_ready() || !value)
        return hl_libc_timer_gettime(id, value);
    sigset_t before;
    lock(&before);
    timer *t = find(TIMER_POSIX, 0, id);
    if (t)
        *value = left_of(t);
    unlock(&before);
    return t ? 0 : hl_libc_timer_gettime(id, value);
}

HL_EXPORT int timer_getoverrun(timer_t id)
{
    if (!hl_clock_ready())
        return hl_libc_timer_getoverrun(id);
    sigset_t before;
    lock(&before);
    timer *t = find(TIMER_POSIX, 0, id);
    int overrun = t ? t->overrun : 0;
    unlock(&before);
    return t ? overrun : hl_libc_timer_getoverrun(id);
}

HL_EXPORT int timer_delete(timer_t id)
{
    if (hl_clock_ready()) {
        sigset_t before;
        lock(&before);
        timer *t = find(TIMER_POSIX, 0, id);
        if (t)
            *t = (timer){.kind = TIMER_FREE, .deadline_ns = HL_NEVER_NS};
        unlock(&before);
    }
    return hl_libc_timer_delete(id);
}
