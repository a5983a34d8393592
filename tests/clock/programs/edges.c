/* What libc does at its edges, one case an argument. Prints {"elapsed": seconds}. Each of these once hung or was wrong. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static volatile int flag;
static char *self;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void say(double began)
{
    printf("{\"elapsed\": %.9f}\n", now() - began);
    fflush(stdout);
}

static void *sleep_and_say(void *began)
{
    usleep(300000);
    say(*(double *)began);
    exit(0);
}

static void *set_flag(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&mutex);
    flag = 1;
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void *hold_for_300_ms(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&mutex);
    flag = 1;
    usleep(300000);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void *sleep_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        sleep(10);
}

static void *exec_after_100_ms(void *unused)
{
    (void)unused;
    usleep(100000);
    execl(self, self, "sleep", (char *)NULL);
    exit(1);
}

static void *fork_and_wait(void *unused)
{
    (void)unused;
    usleep(1000);
    pid_t child = fork();
    if (!child)
        pthread_exit(NULL); /* the last thread of the child: it ends, with the destructors of what it inherited */
    usleep(200000);
    waitpid(child, NULL, 0);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    struct timespec past = {1, 0}, until;
    double began = now();
    const char *name = argc > 1 ? argv[1] : "";
    self = argv[0];
    if (!strcmp(name, "sleep")) { /* 300 ms */
        usleep(300000);
        say(began);
    } else if (!strcmp(name, "main thread ends first")) {
        static double start;
        start = began;
        pthread_create(&thread, NULL, sleep_and_say, &start);
        pthread_exit(NULL);
    } else if (!strcmp(name, "past deadline gives up the mutex")) {
        pthread_mutex_lock(&mutex);
        pthread_create(&thread, NULL, set_flag, NULL);
        while (!flag)
            pthread_cond_timedwait(&condition, &mutex, &past);
        usleep(300000);
        say(began);
    } else if (!strcmp(name, "sleep is a cancellation point")) {
        pthread_create(&thread, NULL, sleep_for_ever, NULL);
        usleep(300000);
        pthread_cancel(thread);
        pthread_join(thread, NULL);
        say(began);
    } else if (!strcmp(name, "timed lock waits")) {
        pthread_create(&thread, NULL, hold_for_300_ms, NULL);
        while (!flag)
            usleep(1000);
        began = now();
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 60;
        if (pthread_mutex_timedlock(&mutex, &until) != 0)
            return 1;
        say(began);
    } else if (!strcmp(name, "timed lock times out")) {
        pthread_mutex_lock(&mutex);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 300000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_mutex_clocklock(&mutex, CLOCK_MONOTONIC, &until) != ETIMEDOUT)
            return 1;
        say(began);
    } else if (!strcmp(name, "another thread execs")) { /* the new program starts anew */
        pthread_create(&thread, NULL, exec_after_100_ms, NULL);
        for (;;)
            usleep(250000);
    } else if (!strcmp(name, "a thread forks")) {
        pthread_create(&thread, NULL, fork_and_wait, NULL);
        pthread_join(thread, NULL);
        usleep(100000);
        say(began);
    } else {
        return 2;
    }
    return 0;
}
