/* Children of a process whose timers are being served while it forks: each sets a timer of its own. Prints {"elapsed": seconds}. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000L
#define TIMERS 200
#define FORKS 40

/* Of its own CPU time, up to as much as serving the timers takes: the forks fall anywhere into that. */
static void compute(long ns)
{
    struct timespec began, now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &began);
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((now.tv_sec - began.tv_sec) * 1000 * MS + now.tv_nsec - began.tv_nsec < ns);
}

int main(void)
{
    struct timespec pause = {.tv_nsec = 10 * MS}, began, ended, next;
    struct itimerspec every = {.it_value = pause, .it_interval = pause};
    clock_gettime(CLOCK_MONOTONIC, &began);
    next = every.it_value = began;
    for (int i = 0; i < TIMERS; i++)
        timerfd_settime(timerfd_create(CLOCK_MONOTONIC, 0), TFD_TIMER_ABSTIME, &every, NULL);
    for (int i = 0; i < FORKS; i++) {
        next.tv_nsec += 10 * MS;
        if (next.tv_nsec >= 1000 * MS) {
            next.tv_nsec -= 1000 * MS;
            next.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL); /* ends when the timers expire */
        compute(i * MS / FORKS);
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            int fd = timerfd_create(CLOCK_MONOTONIC, 0);
            unsigned long long count = 0;
            struct itimerspec once = {.it_value = {.tv_nsec = MS}};
            _exit(alarm(1000) == 0 && timerfd_settime(fd, 0, &once, NULL) == 0 && read(fd, &count, 8) == 8 && count == 1 ? 0 : 1);
        }
        if (waitpid(child, &status, 0) != child || status != 0) {
            fprintf(stderr, "child %d: status %d\n", i, status);
            return 1;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("{\"elapsed\": %.9f}\n", (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
    return 0;
}
