/* Who maps the segment, which of them is dead, and giving back what the dead held.
 *
 * Why: an engine core that is killed must not keep its 70 GiB, nor a lock, nor an event that another rank waits for. A
 * handler at exit was rejected: nothing runs at SIGKILL. Reaping is lazy, by whoever runs out of something or asks. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "clock.h"
#include "report.h"
#include "segment_private.h"
#include "sys.h"

static _Atomic uint32_t self_index;
static _Atomic uint32_t contexts[HL_DEVICES_MAX]; /* this process's, by device */

typedef struct process_status {
    char state;
    uint64_t threads, start_ticks;
} process_status;

static char *put_number(char *at, int32_t number)
{
    char digits[12];
    int count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count)
        *at++ = digits[--count];
    return at;
}

static uint64_t number_at(const char *at)
{
    uint64_t value = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (uint64_t)(*at - '0');
    return value;
}

/* /proc/PID/stat, fields 3, 20 and 22 (proc(5)). The name in field 2 may hold blanks and brackets. */
static int read_status(int32_t pid, process_status *status)
{
    char path[32] = "/proc/", text[1024];
    memcpy(put_number(path + 6, pid), "/stat", sizeof "/stat");
    int fd = (int)hl_sys_call3(SYS_open, (long)path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long count = hl_sys_call3(SYS_read, fd, (long)text, sizeof text - 1);
    hl_sys_call3(SYS_close, fd, 0, 0);
    if (count <= 0)
        return -ESRCH;
    text[count] = 0;
    char *at = strrchr(text, ')');
    *status = (process_status){0};
    for (int field = 3; at && field <= 22; field++) {
        at = strchr(at + 1, ' ');
        if (at && field == 3)
            status->state = at[1];
        if (at && field == 20)
            status->threads = number_at(at + 1);
        if (at && field == 22)
            status->start_ticks = number_at(at + 1);
    }
    return 0;
}

bool hl_segment_owner_is_dead(hl_segment *segment, uint32_t owner)
{
    if (owner == 0 || owner >= HL_SEGMENT_OWNERS)
        return false;
    hl_owner *record = &segment->owners[owner];
    if (atomic_load(&record->state) != HL_OWNER_LIVE)
        return false;
    int32_t pid = atomic_load(&record->pid);
    uint64_t start_ticks = atomic_load(&record->start_ticks);
    if (hl_sys_call3(SYS_kill, pid, 0, 0) == -ESRCH)
        return true;
    process_status status;
    if (read_status(pid, &status) != 0)
        return hl_sys_call3(SYS_kill, pid, 0, 0) == -ESRCH;
    /* A zombie still answers kill(pid, 0); one whose other threads run is alive. */
    bool ended = status.state == 'X' || (status.state == 'Z' && status.threads <= 1);
    return ended || (start_ticks && status.start_ticks && status.start_ticks != start_ticks);
}

static void free_locks(hl_segment *segment, uint32_t owner)
{
    hl_lock *single[] = {&segment->request_lock, &segment->table_lock, &segment->meeting_lock};
    for (uint32_t i = 0; i < 3 + 2 * HL_DEVICES_MAX; i++) {
        hl_lock *lock = i < 3 ? single[i]
                              : (i % 2 ? &segment->devices[(i - 3) / 2].lock : &segment->devices[(i - 3) / 2].memory_lock);
        uint32_t seen = atomic_load(&lock->word);
        if ((seen & ~HL_LOCK_WAITED) == owner && atomic_compare_exchange_strong(&lock->word, &seen, 0))
            hl_sys_futex_wake(&lock->word, INT32_MAX);
    }
}

static void bury(hl_segment *segment, uint32_t owner, uint32_t *kicks)
{
    free_locks(segment, owner);
    uint32_t high = atomic_load(&segment->contexts_high);
    for (uint32_t i = 1; i <= high; i++) {
        hl_context *context = &segment->contexts[i];
        if (!atomic_load(&context->used) || context->owner != owner)
            continue;
        hl_lock *lock = &segment->devices[context->device].lock;
        hl_lock_acquire(lock);
        hl_timeline_bury(segment, i, kicks);
        hl_lock_release(lock);
        atomic_store(&context->charged_bytes, 0);
        atomic_store(&context->used, 0);
    }
    uint32_t events = atomic_load(&segment->events_pool.high);
    for (uint32_t i = 1; i <= events; i++) {
        uint32_t expected = owner;
        if (atomic_compare_exchange_strong(&segment->events[i].owner, &expected, 0)) {
            atomic_fetch_add(&segment->events[i].generation, 1);
            HL_GIVE(segment, events, i);
        }
    }
    atomic_store(&segment->owners[owner].pid, 0);
    atomic_store(&segment->owners[owner].state, HL_OWNER_FREE);
}

/* all_of_pid: also a living record of that pid, which is what this process was before an exec. Two threads that
 * register at once see each other's pid there, so this runs under the registry lock, when self_index is settled. */
static bool reap(hl_segment *segment, int32_t all_of_pid)
{
    uint32_t kicks = 0;
    bool found = false;
    hl_lock_acquire(&segment->registry_lock);
    uint32_t self = atomic_load(&self_index);
    for (uint32_t i = 1; i < HL_SEGMENT_OWNERS; i++) {
        if (i == self || atomic_load(&segment->owners[i].state) != HL_OWNER_LIVE)
            continue;
        if (atomic_load(&segment->owners[i].pid) == all_of_pid || hl_segment_owner_is_dead(segment, i)) {
            bury(segment, i, &kicks);
            found = true;
        }
    }
    hl_lock_release(&segment->registry_lock);
    if (found) {
        hl_segment_announce(segment);
        hl_timeline_kick(segment, kicks);
    }
    return found;
}

bool hl_segment_reap(hl_segment *segment) { return reap(segment, 0); }

static uint32_t claim_owner(hl_segment *segment, int32_t pid)
{
    for (uint32_t i = 1; i < HL_SEGMENT_OWNERS; i++) {
        hl_owner *owner = &segment->owners[i];
        uint32_t free_state = HL_OWNER_FREE;
        if (!atomic_compare_exchange_strong(&owner->state, &free_state, HL_OWNER_CLAIMED))
            continue;
        process_status status = {0};
        read_status(pid, &status);
        atomic_store(&owner->start_ticks, status.start_ticks);
        atomic_store(&owner->pid, pid);
        atomic_store(&owner->state, HL_OWNER_LIVE);
        return i;
    }
    return 0;
}

/* Two threads may come here at once: the second gives its entry back. A mutex would stay locked in a forked child. */
static uint32_t register_process(void)
{
    hl_segment *segment = hl_segment_need();
    uint32_t index = claim_owner(segment, hl_sys_getpid()), before = 0;
    if (!index)
        hl_report_fatal("more than %u processes use the virtual devices of one run: start fewer workers",
                        HL_SEGMENT_OWNERS - 1);
    if (!atomic_compare_exchange_strong(&self_index, &before, index)) {
        atomic_store(&segment->owners[index].pid, 0);
        atomic_store(&segment->owners[index].state, HL_OWNER_FREE);
        return before;
    }
    return index;
}

uint32_t hl_segment_self(void)
{
    uint32_t index = atomic_load_explicit(&self_index, memory_order_relaxed);
    return index ? index : register_process();
}

void hl_segment_forget(void)
{
    atomic_store(&self_index, 0);
    for (uint32_t i = 0; i < HL_DEVICES_MAX; i++)
        atomic_store(&contexts[i], 0);
    hl_timeline_forget();
    hl_graph_forget();
    hl_ledger_driver_forget();
}

void hl_segment_before_fork(void) { hl_ledger_before_fork(); }

void hl_segment_after_fork_in_parent(void) { hl_ledger_after_fork(false); }

/* The child of a fork has nothing of its parent's devices, as with CUDA. */
void hl_segment_after_fork_in_child(void)
{
    hl_segment_forget();
    hl_ledger_after_fork(true);
}

static uint32_t make_context(hl_segment *segment, uint32_t self, uint32_t device)
{
    for (uint32_t i = 1; i < HL_SEGMENT_CONTEXTS; i++) {
        hl_context *context = &segment->contexts[i];
        if (atomic_load(&context->used))
            continue;
        memset(context, 0, sizeof *context);
        context->owner = self;
        context->device = device;
        if (atomic_load(&segment->contexts_high) < i)
            atomic_store(&segment->contexts_high, i);
        atomic_store(&context->used, 1);
        return i;
    }
    return 0;
}

uint32_t hl_segment_context(hl_segment *segment, uint32_t device)
{
    if (device >= segment->device_count)
        hl_report_fatal("device %u does not exist: this run has %u (see `--gpus`)", device, segment->device_count);
    uint32_t index = atomic_load_explicit(&contexts[device], memory_order_acquire);
    if (index)
        return index;
    uint32_t self = hl_segment_self();
    reap(segment, hl_sys_getpid());
    for (bool again = true; !index && again;) {
        hl_lock_acquire(&segment->registry_lock);
        index = atomic_load(&contexts[device]);
        if (!index && (index = make_context(segment, self, device)))
            atomic_store_explicit(&contexts[device], index, memory_order_release);
        hl_lock_release(&segment->registry_lock);
        again = !index && hl_segment_reap(segment);
    }
    if (!index)
        hl_report_fatal("more than %u process-device pairs in one run: start fewer workers", HL_SEGMENT_CONTEXTS - 1);
    return index;
}
