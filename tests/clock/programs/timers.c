/* timerfd, alarm, setitimer and POSIX timers. Prints {"case": elapsed seconds}; the last number of a case is what it takes in ms. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
static int first = 1;
static volatile sig_atomic_t caught;
static sem_t notified;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct timespec of(long long ns) { return (struct timespec){ns / 1000000000, ns % 1000000000}; }

#define CASE(name, expression) \
    do { \
        errno = 0; \
        long long began = now(); \
        int ok = (expression); \
        if (!ok) { \
            fprintf(stderr, "%s: wrong result, errno %d\n", name, errno); \
            exit(1); \
        } \
        printf("%s\"%s\": %.9f", first ? "{" : ", ", name, (now() - began) / 1e9); \
        first = 0; \
    } while (0)

static void on_signal(int number) { caught = number; }
static void on_thread(union sigval value)
{
    if (value.sival_int == 42)
        sem_post(&notified);
}

static int arm(int fd, int flags, long long first_ns, long long every_ns)
{
    struct itimerspec value = {.it_value = of(first_ns), .it_interval = of(every_ns)};
    return timerfd_settime(fd, flags, &value, NULL) == 0;
}

static uint64_t expirations(int fd)
{
    uint64_t count = 0;
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

static int wait_signal(int number)
{
    sigset_t none;
    sigemptyset(&none);
    caught = 0;
    sigsuspend(&none);
    return caught == number;
}

static void sleep_ns(long long ns)
{
    struct timespec t = of(ns);
    nanosleep(&t, NULL);
}

static int in_child(int fd)
{
    /* Alarms are not inherited; the descriptor is, and its parent goes on serving it. */
    pid_t child = fork();
    int status = 0;
    if (child == 0)
        _exit(alarm(0) == 0 && expirations(fd) == 1 ? 0 : 1);
    return waitpid(child, &status, 0) == child && status == 0;
}

int main(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), other = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    struct itimerspec left;
    struct itimerval interval = {.it_value = {0, 100000}, .it_interval = {0, 100000}}, none = {0}, old;
    struct timespec real;
    struct sigevent by_signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct sigevent by_thread = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread, .sigev_value.sival_int = 42};
    struct itimerspec once = {.it_value = of(100 * MS)};
    timer_t timer;
    signal(SIGALRM, on_signal);
    signal(SIGUSR1, on_signal);
    sem_init(&notified, 0, 0);
    sigset_t blocked; /* but in wait_signal: none is missed on a busy machine */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, NULL);

    CASE("timerfd read 100", arm(fd, 0, 100 * MS, 0) && expirations(fd) == 1);
    CASE("timerfd absolute 100", arm(fd, TFD_TIMER_ABSTIME, now() + 100 * MS, 0) && expirations(fd) == 1);
    clock_gettime(CLOCK_REALTIME, &real);
    CASE("timerfd date 100", arm(other, TFD_TIMER_ABSTIME, real.tv_sec * 1000000000LL + real.tv_nsec + 100 * MS, 0) &&
                                 poll(&(struct pollfd){.fd = other, .events = POLLIN}, 1, -1) == 1 && expirations(other) == 1);
    CASE("timerfd nonblocking 0", arm(other, 0, 100 * MS, 0) && read(other, &left, 8) == -1 && errno == EAGAIN && arm(other, 0, 0, 0));
    CASE("timerfd past 0", arm(fd, TFD_TIMER_ABSTIME, 1, 0) && expirations(fd) == 1);
    CASE("timerfd periodic 300", arm(fd, 0, 100 * MS, 100 * MS) && expirations(fd) >= 1 && (sleep_ns(150 * MS), expirations(fd) >= 1) &&
                                     expirations(fd) >= 1 && arm(fd, 0, 0, 0));
    CASE("timerfd unread add up 350", arm(fd, 0, 100 * MS, 100 * MS) && (sleep_ns(350 * MS), expirations(fd) >= 3) && arm(fd, 0, 0, 0));
    CASE("timerfd poll 100", arm(fd, 0, 100 * MS, 0) && poll(&ready, 1, 5000) == 1 && expirations(fd) == 1);
    CASE("timerfd set again 100", arm(fd, 0, 5000 * MS, 0) && arm(fd, 0, 100 * MS, 0) && expirations(fd) == 1);
    CASE("timerfd disarmed 200", arm(fd, 0, 100 * MS, 0) && arm(fd, 0, 0, 0) && poll(&ready, 1, 200) == 0);
    CASE("timerfd set forgets 100", arm(fd, TFD_TIMER_ABSTIME, 1, 0) && poll(&ready, 1, 1000) == 1 && arm(fd, 0, 100 * MS, 0) &&
                                        expirations(fd) == 1);
    CASE("timerfd left 0", arm(fd, 0, 50000 * MS, 7 * MS) && timerfd_gettime(fd, &left) == 0 && left.it_value.tv_sec <= 50 &&
                               left.it_value.tv_sec >= 20 && left.it_interval.tv_nsec == 7 * MS && arm(fd, 0, 0, 0));
    CASE("timerfd wrong 0", timerfd_settime(-1, 0, &once, NULL) == -1 && errno == EBADF && timerfd_create(12345, 0) == -1 &&
                                errno == EINVAL && timerfd_settime(0, 0, &once, NULL) == -1);
    CASE("timerfd in a child 100", alarm(1000) == 0 && arm(fd, 0, 100 * MS, 0) && in_child(fd) && alarm(0) >= 900);
    CASE("alarm 1000", alarm(1) == 0 && wait_signal(SIGALRM));
    CASE("alarm replaced 1000", alarm(1000) == 0 && alarm(1) >= 900 && wait_signal(SIGALRM) && alarm(0) == 0);
    CASE("setitimer 200", setitimer(ITIMER_REAL, &interval, NULL) == 0 && wait_signal(SIGALRM) && wait_signal(SIGALRM) &&
                              setitimer(ITIMER_REAL, &none, &old) == 0 && old.it_interval.tv_usec == 100000);
    CASE("getitimer 0", getitimer(ITIMER_REAL, &old) == 0 && old.it_value.tv_sec == 0 && old.it_value.tv_usec == 0);
    CASE("timer_create signal 100", timer_create(CLOCK_MONOTONIC, &by_signal, &timer) == 0 &&
                                        timer_settime(timer, 0, &once, NULL) == 0 && wait_signal(SIGUSR1) &&
                                        timer_gettime(timer, &left) == 0 && left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0 &&
                                        timer_delete(timer) == 0);
    CASE("timer_create thread 100", timer_create(CLOCK_REALTIME, &by_thread, &timer) == 0 &&
                                        timer_settime(timer, 0, &once, NULL) == 0 && sem_wait(&notified) == 0 && timer_delete(timer) == 0);
    CASE("timer_create overrun 350", timer_create(CLOCK_MONOTONIC, &by_signal, &timer) == 0 &&
                                         timer_settime(timer, 0, &(struct itimerspec){of(100 * MS), of(100 * MS)}, NULL) == 0 &&
                                         (sleep_ns(350 * MS), wait_signal(SIGUSR1)) && timer_getoverrun(timer) >= 2 &&
                                         timer_delete(timer) == 0);
    printf("}\n");
    return 0;
}
