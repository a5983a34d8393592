/* Arms a timer of every kind for each millisecond, says so, and is told when the clock has been moved far ahead. Each must have
 * counted what was skipped, as the kernel does, and told it once. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL

static volatile sig_atomic_t alarms;
static void on_alarm(int number) { alarms += number == SIGALRM; }

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* How many of the milliseconds since an instant between the two have passed; the last one may be on its way. */
static int counts(const char *what, long long count, long long earliest, long long latest)
{
    long long most = (now() - earliest) / MS, least = (now() - latest) / MS - 2;
    if (count < least || count > most)
        fprintf(stderr, "%s: %lld, not %lld to %lld\n", what, count, least, most);
    return count >= least && count <= most;
}

int main(void)
{
    struct itimerspec every = {.it_value = {0, MS}, .it_interval = {0, MS}}, none = {0};
    struct itimerval interval = {.it_value = {0, 1000}, .it_interval = {0, 1000}}, disarmed = {0};
    struct sigevent by_signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct timespec pause = {.tv_nsec = 50 * MS};
    timer_t timer;
    uint64_t expirations = 0;
    char byte;
    sigset_t both, pending;
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGALRM);
    sigprocmask(SIG_BLOCK, &both, NULL);
    signal(SIGALRM, on_alarm);
    signal(SIGUSR1, on_alarm);
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    if (fd < 0 || timer_create(CLOCK_MONOTONIC, &by_signal, &timer) != 0)
        return 2;
    long long earliest = now();
    timerfd_settime(fd, 0, &every, NULL);
    timer_settime(timer, 0, &every, NULL);
    setitimer(ITIMER_REAL, &interval, NULL);
    long long latest = now();
    if (write(1, "x", 1) != 1 || read(0, &byte, 1) != 1)
        return 3;
    long long before = now();
    nanosleep(&pause, NULL);
    if (now() - before < 50 * MS || read(fd, &expirations, sizeof expirations) != sizeof expirations)
        return 4;
    int right = counts("timerfd", (long long)expirations, earliest, latest) &
                counts("overrun", timer_getoverrun(timer) + 1, earliest, latest);
    timer_settime(timer, 0, &none, NULL);
    timerfd_settime(fd, 0, &none, NULL);
    setitimer(ITIMER_REAL, &disarmed, NULL);
    sigpending(&pending);
    sigprocmask(SIG_UNBLOCK, &both, NULL);
    return right && sigismember(&pending, SIGUSR1) && alarms == 1 ? 0 : 5;
}
