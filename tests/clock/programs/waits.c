/* Every timed wait of libc that waits for nothing else, with its argument table. Prints {"case": elapsed seconds}. */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
static int first = 1;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct timespec of(long long ns) { return (struct timespec){ns / 1000000000, ns % 1000000000}; }

static struct timespec after(clockid_t clock, long long ns)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return of(t.tv_sec * 1000000000LL + t.tv_nsec + ns);
}

static void report(const char *name, long long began, int ok)
{
    if (!ok) {
        fprintf(stderr, "%s: wrong result, errno %d\n", name, errno);
        exit(1);
    }
    printf("%s\"%s\": %.9f", first ? "{" : ", ", name, (now() - began) / 1e9);
    first = 0;
}

#define CASE(name, expression) \
    do { \
        errno = 0; \
        long long began = now(); \
        int ok = (expression); \
        report(name, began, ok); \
    } while (0)

int main(void)
{
    struct timespec t = of(100 * MS), rest, zero = {0, 0}, wrong = {0, 2000000000}, past = {1, 0};
    struct timeval tv;
    sem_t sem;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t real_cond = PTHREAD_COND_INITIALIZER, mono_cond;
    pthread_condattr_t attr;
    uint32_t word = 7;
    int epoll = epoll_create1(0);
    struct epoll_event event;
    sem_init(&sem, 0, 0);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&mono_cond, &attr);

    CASE("nanosleep 100", nanosleep(&t, &rest) == 0);
    CASE("nanosleep 0", nanosleep(&zero, NULL) == 0);
    CASE("nanosleep invalid 0", nanosleep(&wrong, NULL) == -1 && errno == EINVAL);
    CASE("usleep 100", usleep(100000) == 0);
    CASE("sleep 1000", sleep(1) == 0);
    CASE("clock_nanosleep monotonic 100", clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL) == 0);
    t = after(CLOCK_REALTIME, 100 * MS);
    CASE("clock_nanosleep realtime absolute 100", clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL) == 0);
    CASE("clock_nanosleep past 0", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &past, NULL) == 0);
    CASE("clock_nanosleep invalid 0", clock_nanosleep(CLOCK_MONOTONIC, 0, &wrong, NULL) == EINVAL);
    CASE("poll 100", poll(NULL, 0, 100) == 0);
    CASE("poll 0", poll(NULL, 0, 0) == 0);
    t = of(100 * MS);
    CASE("ppoll 100", ppoll(NULL, 0, &t, NULL) == 0);
    CASE("ppoll invalid 0", ppoll(NULL, 0, &wrong, NULL) == -1 && errno == EINVAL);
    tv = (struct timeval){0, 100000};
    CASE("select 100", select(0, NULL, NULL, NULL, &tv) == 0 && tv.tv_sec == 0 && tv.tv_usec == 0);
    tv = (struct timeval){-1, 0};
    CASE("select negative 0", select(0, NULL, NULL, NULL, &tv) == -1 && errno == EINVAL);
    CASE("pselect 100", pselect(0, NULL, NULL, NULL, &t, NULL) == 0);
    CASE("epoll_wait 100", epoll_wait(epoll, &event, 1, 100) == 0);
    CASE("epoll_wait 0", epoll_wait(epoll, &event, 1, 0) == 0);
    CASE("epoll_wait bad capacity 0", epoll_wait(epoll, &event, 0, 100) == -1 && errno == EINVAL);
    CASE("epoll_pwait 100", epoll_pwait(epoll, &event, 1, 100, NULL) == 0);
    t = after(CLOCK_REALTIME, 100 * MS);
    CASE("sem_timedwait 100", sem_timedwait(&sem, &t) == -1 && errno == ETIMEDOUT);
    t = after(CLOCK_MONOTONIC, 100 * MS);
    CASE("sem_clockwait 100", sem_clockwait(&sem, CLOCK_MONOTONIC, &t) == -1 && errno == ETIMEDOUT);
    CASE("sem_timedwait past 0", sem_timedwait(&sem, &past) == -1 && errno == ETIMEDOUT);
    CASE("sem_timedwait invalid 0", sem_timedwait(&sem, &wrong) == -1 && errno == EINVAL);
    sem_post(&sem);
    CASE("sem_timedwait posted 0", sem_timedwait(&sem, &past) == 0);
    pthread_mutex_lock(&mutex);
    t = after(CLOCK_REALTIME, 100 * MS);
    CASE("cond_timedwait realtime 100", pthread_cond_timedwait(&real_cond, &mutex, &t) == ETIMEDOUT);
    t = after(CLOCK_MONOTONIC, 100 * MS);
    CASE("cond_timedwait monotonic 100", pthread_cond_timedwait(&mono_cond, &mutex, &t) == ETIMEDOUT);
    t = after(CLOCK_MONOTONIC, 100 * MS);
    CASE("cond_clockwait 100", pthread_cond_clockwait(&real_cond, &mutex, CLOCK_MONOTONIC, &t) == ETIMEDOUT);
    CASE("cond_timedwait past 0", pthread_cond_timedwait(&real_cond, &mutex, &past) == ETIMEDOUT);
    CASE("cond_timedwait invalid 0", pthread_cond_timedwait(&real_cond, &mutex, &wrong) == EINVAL);
    t = of(100 * MS);
    CASE("futex wait 100", syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &t, NULL, 0) == -1 && errno == ETIMEDOUT);
    CASE("futex changed 0", syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 8, &t, NULL, 0) == -1 && errno == EAGAIN);
    t = after(CLOCK_REALTIME, 100 * MS);
    CASE("futex bitset realtime 100",
         syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 7, &t, NULL, ~0u) == -1 && errno == ETIMEDOUT);
    printf("}\n");
    return 0;
}
