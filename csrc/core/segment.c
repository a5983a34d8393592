/* Mapping the shared segment, its locks and its pools. See segment.h for the rules. */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "export.h"
#include "report.h"
#include "segment_private.h"
#include "sys.h"

/* How long a lock may be held before its owner is suspected to be dead (real time). Lock-held work is microseconds. */
#define LOCK_SUSPECT_NS (INT64_C(20) * HL_NS_PER_MS)
#define LOCK_SPINS 100

static _Atomic(hl_segment *) the_segment;
static pthread_mutex_t attach_mutex = PTHREAD_MUTEX_INITIALIZER;
static bool looked;

static bool path_of(char *path, size_t size, const char *run_dir)
{
    size_t length = strlen(run_dir);
    if (length + sizeof "/" HL_SEGMENT_FILE > size)
        return false;
    memcpy(path, run_dir, length);
    memcpy(path + length, "/" HL_SEGMENT_FILE, sizeof "/" HL_SEGMENT_FILE);
    return true;
}

static hl_segment *map_fd(int fd)
{
    void *address = mmap(NULL, sizeof(hl_segment), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (address == MAP_FAILED)
        return NULL;
    madvise(address, sizeof(hl_segment), MADV_DONTDUMP);
    return address;
}

static int map_path(const char *path, hl_segment **segment)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct stat status;
    int error = fstat(fd, &status) != 0 ? -errno : 0;
    if (!error && (uint64_t)status.st_size != sizeof(hl_segment))
        error = -EPROTO;
    if (!error && !(*segment = map_fd(fd)))
        error = -errno;
    close(fd);
    if (error)
        return error;
    if ((*segment)->magic != HL_SEGMENT_MAGIC || (*segment)->version != HL_SEGMENT_VERSION ||
        (*segment)->size_bytes != sizeof(hl_segment)) {
        munmap(*segment, sizeof(hl_segment));
        return -EPROTO;
    }
    return 0;
}

static void adopt(hl_segment *segment)
{
    static bool once;
    if (!once)
        pthread_atfork(hl_segment_before_fork, hl_segment_after_fork_in_parent, hl_segment_after_fork_in_child);
    once = true;
    atomic_store(&the_segment, segment);
}

HL_EXPORT int hl_segment_open(const char *run_dir)
{
    char path[512];
    if (!path_of(path, sizeof path, run_dir))
        return -ENAMETOOLONG;
    pthread_mutex_lock(&attach_mutex);
    hl_segment *segment = NULL, *before = atomic_load(&the_segment);
    int error = map_path(path, &segment);
    if (!error) {
        looked = true;
        hl_segment_forget();
        adopt(segment);
        if (before)
            munmap(before, sizeof *before);
    }
    pthread_mutex_unlock(&attach_mutex);
    return error;
}

static hl_segment *attach(void)
{
    const char *run_dir = getenv("HYPERLAPSE_RUN_DIR");
    if (!run_dir || !*run_dir)
        return NULL;
    char path[512];
    if (!path_of(path, sizeof path, run_dir))
        hl_report_fatal("HYPERLAPSE_RUN_DIR is too long: %s", run_dir);
    hl_segment *segment = NULL;
    int error = map_path(path, &segment);
    if (error == -ENOENT)
        return NULL; /* a run without devices */
    if (error == -EPROTO)
        hl_report_fatal("the device segment %s was made by another version of hyperlapse: install the same version in "
                        "both environments", path);
    if (error)
        hl_report_fatal("cannot open the device segment %s (error %d): has the run that made it ended?", path, -error);
    return segment;
}

hl_segment *hl_segment_get(void)
{
    hl_segment *segment = atomic_load_explicit(&the_segment, memory_order_acquire);
    if (segment || looked)
        return segment;
    pthread_mutex_lock(&attach_mutex);
    segment = atomic_load(&the_segment);
    if (!segment && !looked) {
        segment = attach();
        if (segment)
            adopt(segment);
        looked = true;
    }
    pthread_mutex_unlock(&attach_mutex);
    return segment;
}

hl_segment *hl_segment_need(void)
{
    hl_segment *segment = hl_segment_get();
    if (!segment)
        hl_report_fatal("no virtual device here: start this program through `hyperlapse run`");
    return segment;
}

int hl_segment_create(const char *run_dir, hl_segment **segment)
{
    char path[512];
    if (!path_of(path, sizeof path, run_dir))
        return -ENAMETOOLONG;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int error = ftruncate(fd, sizeof(hl_segment)) != 0 ? -errno : 0;
    if (!error && !(*segment = map_fd(fd)))
        error = -errno;
    close(fd);
    if (error)
        unlink(path);
    return error;
}

void hl_segment_announce(hl_segment *segment)
{
    atomic_fetch_add(&segment->generation, 1);
    hl_clock_wake_word(&segment->generation);
}

void hl_lock_wake(hl_lock *lock) { hl_sys_futex_wake(&lock->word, 1); }

/* Sleeps and spins here are real time: the owner is a running thread, so the time-keeper sees that not all wait. */
void hl_lock_acquire_slowly(hl_lock *lock, uint32_t self)
{
    for (int i = 0; i < LOCK_SPINS; i++) {
        uint32_t nobody = 0;
        if (!atomic_load_explicit(&lock->word, memory_order_relaxed) && atomic_compare_exchange_weak(&lock->word, &nobody, self))
            return;
        __builtin_ia32_pause();
    }
    for (;;) {
        uint32_t seen = atomic_load(&lock->word);
        if (!seen) {
            if (atomic_compare_exchange_strong(&lock->word, &seen, self | HL_LOCK_WAITED))
                return;
            continue;
        }
        if (!(seen & HL_LOCK_WAITED)) {
            if (!atomic_compare_exchange_strong(&lock->word, &seen, seen | HL_LOCK_WAITED))
                continue;
            seen |= HL_LOCK_WAITED;
        }
        long result = hl_sys_futex_wait(&lock->word, seen, LOCK_SUSPECT_NS);
        if (result == -ETIMEDOUT && atomic_load(&lock->word) == seen &&
            hl_segment_owner_is_dead(hl_segment_get(), seen & ~HL_LOCK_WAITED) &&
            atomic_compare_exchange_strong(&lock->word, &seen, self | HL_LOCK_WAITED))
            return;
    }
}

static _Atomic uint32_t *link_of(void *base, size_t stride, uint32_t index)
{
    return (_Atomic uint32_t *)((char *)base + stride * index);
}

uint32_t hl_pool_take(hl_pool *pool, void *base, size_t stride, uint32_t capacity)
{
    uint64_t head = atomic_load(&pool->head);
    while ((uint32_t)head) {
        uint32_t next = atomic_load(link_of(base, stride, (uint32_t)head));
        uint64_t after = ((head >> 32) + 1) << 32 | next;
        if (atomic_compare_exchange_weak(&pool->head, &head, after)) {
            atomic_fetch_add(&pool->used, 1);
            return (uint32_t)head;
        }
    }
    uint32_t high = atomic_load(&pool->high);
    do {
        if (high + 1 >= capacity)
            return 0;
    } while (!atomic_compare_exchange_weak(&pool->high, &high, high + 1));
    atomic_fetch_add(&pool->used, 1);
    return high + 1;
}

void hl_pool_give(hl_pool *pool, void *base, size_t stride, uint32_t index)
{
    uint64_t head = atomic_load(&pool->head), after;
    do {
        atomic_store(link_of(base, stride, index), (uint32_t)head);
        after = ((head >> 32) + 1) << 32 | index;
    } while (!atomic_compare_exchange_weak(&pool->head, &head, after));
    atomic_fetch_sub(&pool->used, 1);
}
