/* A signal of the program's own ends a wait with EINTR, at the virtual instant at which it was sent. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static pthread_t main_thread;
static _Atomic int step; /* waits that were interrupted */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void on_signal(int n) { (void)n; }

static void *send_signals(void *unused)
{
    (void)unused;
    while (step < 3) { /* natively one may come before the wait that it is for: there is another one */
        usleep(200000);
        pthread_kill(main_thread, SIGUSR1);
    }
    return NULL;
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t thread;
    struct timespec hour = {3600, 0}, left;
    sem_t sem;
    sem_init(&sem, 0, 0);
    sigaction(SIGUSR1, &action, NULL);
    main_thread = pthread_self();
    double began = now(); /* before the sender's first 200 ms */
    pthread_create(&thread, NULL, send_signals, NULL);
    if (nanosleep(&hour, &left) != -1 || errno != EINTR)
        return 1;
    step++;
    printf("{\"sleep\": %.9f, \"left\": %.9f", now() - began, (double)left.tv_sec + (double)left.tv_nsec / 1e9);
    if (poll(NULL, 0, 3600000) != -1 || errno != EINTR)
        return 2;
    step++;
    printf(", \"poll\": %.9f", now() - began);
    if (sem_wait(&sem) != -1 || errno != EINTR)
        return 3;
    step++;
    printf(", \"sem\": %.9f}\n", now() - began);
    return 0;
}
