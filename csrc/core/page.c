/* Mapping the clock page, and this process's entry in it. See page.h. */
#include "page.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "export.h"
#include "report.h"
#include "sys.h"
#include "wait.h"
#include "wait_private.h"

/* How long a new process waits for an entry of one that has ended. */
#define ROOM_PATIENCE_NS (INT64_C(5000) * HL_NS_PER_MS)

static hl_page *the_page;
static _Atomic int32_t registered_pid;
static hl_process *the_process;

HL_EXPORT hl_page *hl_page_get(void) { return the_page; }

HL_EXPORT int64_t hl_page_realtime_offset_ns(void)
{
    return the_page ? atomic_load_explicit(&the_page->realtime_offset_ns, memory_order_relaxed) : 0;
}

/* Another host may have moved the shared clock already: a participant waits until the time-keeper knows. False: this is
 * a look from outside of the run, which is to see the last instant that is known. */
static bool wait_while_held(hl_page *page)
{
    if (page != the_page || atomic_load(&registered_pid) == 0)
        return false;
    atomic_fetch_add(&page->hosts.reads, 1);
    hl_page_kick(page);
    while (atomic_load_explicit(&page->mode, memory_order_acquire) == HL_MODE_HELD)
        hl_sys_futex_wait(&page->mode, HL_MODE_HELD, -1);
    return true;
}

HL_EXPORT int64_t hl_page_now_ns(const hl_page *page)
{
    for (;;) {
        uint32_t mode = atomic_load_explicit(&page->mode, memory_order_acquire);
        if (mode == HL_MODE_FROZEN || mode == HL_MODE_PARKED)
            return atomic_load_explicit(&page->now_ns, memory_order_acquire);
        if (mode == HL_MODE_HELD) {
            if (wait_while_held((hl_page *)page))
                continue;
            return atomic_load_explicit(&page->now_ns, memory_order_acquire);
        }
        int64_t now_ns = hl_clock_real_ns() + atomic_load_explicit(&page->offset_ns, memory_order_acquire);
        /* A reader that was preempted while the clock was stopped would see an instant past the stopped one. */
        if (atomic_load_explicit(&page->mode, memory_order_acquire) == mode)
            return now_ns;
    }
}

HL_EXPORT void hl_page_kick(hl_page *page)
{
    atomic_fetch_add(&page->keeper_word, 1);
    if (atomic_load(&page->keeper_sleeps))
        hl_sys_futex_wake(&page->keeper_word, 1);
}

static bool path_of(char *path, size_t size, const char *run_dir)
{
    size_t length = strlen(run_dir);
    if (length + sizeof "/" HL_PAGE_FILE > size)
        return false;
    memcpy(path, run_dir, length);
    memcpy(path + length, "/" HL_PAGE_FILE, sizeof "/" HL_PAGE_FILE);
    return true;
}

static hl_page *map_file(const char *path, int flags, int *error)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0) {
        *error = -errno;
        return NULL;
    }
    hl_page *page = NULL;
    if ((flags & O_CREAT) && ftruncate(fd, sizeof(hl_page)) != 0) {
        *error = -errno;
    } else {
        void *address = mmap(NULL, sizeof(hl_page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (address == MAP_FAILED)
            *error = -errno;
        else
            page = address;
    }
    close(fd);
    return page;
}

HL_EXPORT int hl_page_create(const char *run_dir, int32_t launcher_pid)
{
    char path[512];
    int error = 0;
    if (!path_of(path, sizeof path, run_dir))
        return -ENAMETOOLONG;
    hl_page *page = map_file(path, O_RDWR | O_CREAT | O_EXCL, &error);
    if (!page)
        return error;
    page->version = HL_PAGE_VERSION;
    page->size_bytes = sizeof *page;
    page->launcher_pid = launcher_pid;
    atomic_store(&page->offset_ns, HL_PAGE_START_NS - hl_sys_clock_ns(CLOCK_MONOTONIC));
    atomic_store(&page->realtime_offset_ns, hl_sys_clock_ns(CLOCK_REALTIME) - HL_PAGE_START_NS);
    atomic_store(&page->mode, HL_MODE_REAL);
    atomic_store(&page->no_progress_s, 10);
    for (int i = 0; i < HL_SLOTS_MAX; i++)
        atomic_store(&page->slots[i].deadline_ns, HL_NEVER_NS);
    page->magic = HL_PAGE_MAGIC;
    munmap(page, sizeof *page);
    return 0;
}

/* Field 28 of /proc/self/stat: the stack's start, chosen anew by every exec (address randomisation), so that the
 * time-keeper can tell a registered process from what it became by an exec that nobody announced. */
static uint64_t own_start_stack(void)
{
    char text[1024];
    int fd = (int)hl_sys_call3(SYS_open, (long)"/proc/self/stat", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    long count = hl_sys_call3(SYS_read, fd, (long)text, sizeof text - 1);
    hl_sys_call3(SYS_close, fd, 0, 0);
    if (count <= 0)
        return 0;
    text[count] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 28; field++) {
        at = strchr(at + 1, ' ');
    }
    uint64_t value = 0;
    for (at = at ? at + 1 : text + count; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (uint64_t)(*at - '0');
    return value;
}

static hl_process *claim_free_entry(int32_t pid)
{
    for (int i = 0; i < HL_PROCESSES_MAX; i++) {
        int32_t nobody = 0;
        if (atomic_compare_exchange_strong(&the_page->processes[i].pid, &nobody, pid))
            return &the_page->processes[i];
    }
    return NULL;
}

/* Entries of processes that have ended are the time-keeper's to give back, and on real time it looks for none unasked: a
 * shell that polls a server's health fills the table in two minutes. */
static hl_process *find_or_claim(int32_t pid)
{
    for (int i = 0; i < HL_PROCESSES_MAX; i++)
        if (atomic_load(&the_page->processes[i].pid) == pid)
            return &the_page->processes[i];
    hl_process *entry = claim_free_entry(pid);
    int64_t give_up_ns = hl_clock_real_ns() + ROOM_PATIENCE_NS;
    while (!entry && hl_clock_real_ns() < give_up_ns) {
        atomic_store(&the_page->room_wanted, 1);
        hl_page_kick(the_page);
        _Atomic uint32_t nobody_wakes = 0;
        hl_sys_futex_wait(&nobody_wakes, 0, HL_NS_PER_MS);
        entry = claim_free_entry(pid);
    }
    if (entry)
        return entry;
    hl_report_fatal("more than %d processes on one virtual clock: start fewer workers, or end those that are done",
                    HL_PROCESSES_MAX);
}

HL_EXPORT hl_process *hl_page_process(void)
{
    if (!the_page)
        return NULL;
    int32_t pid = hl_sys_getpid();
    if (atomic_load(&registered_pid) == pid)
        return the_process;
    hl_process *process = find_or_claim(pid);
    /* After an exec the threads of the program that this process was are gone, with their deadlines and locks; its thread may
     * even have our thread id. Its launches are still being priced: their holds stay. */
    for (int i = 0; i < atomic_load(&the_page->slots_used); i++)
        if (atomic_load(&the_page->slots[i].pid) == pid) {
            atomic_store(&the_page->slots[i].condition_busy, 0);
            hl_wait_free_slot(the_page, &the_page->slots[i]);
        }
    atomic_store(&process->start_stack, own_start_stack());
    the_process = process;
    atomic_store(&registered_pid, pid);
    atomic_fetch_add(&the_page->registrations, 1);
    hl_page_kick(the_page);
    return process;
}

static void after_fork_in_child(void)
{
    hl_wait_forget_thread();
    hl_page_process();
}

__attribute__((constructor(101))) static void attach(void)
{
    const char *run_dir = getenv("HYPERLAPSE_RUN_DIR");
    if (!run_dir || !*run_dir)
        return;
    char path[512];
    int error = 0;
    if (!path_of(path, sizeof path, run_dir))
        hl_report_fatal("HYPERLAPSE_RUN_DIR is too long: %s", run_dir);
    hl_page *page = map_file(path, O_RDWR, &error);
    if (!page) {
        if (error == -ENOENT)
            return; /* a run directory without a clock: the devices are virtual, the time is real */
        hl_report_fatal("cannot open the clock page %s (error %d): has the run that made it ended?", path, -error);
    }
    if (page->magic != HL_PAGE_MAGIC || page->version != HL_PAGE_VERSION || page->size_bytes != sizeof *page)
        hl_report_fatal("the clock page %s was made by another version of hyperlapse (page version %u, ours %u): "
                        "install the same version in both environments",
                        path, page->version, HL_PAGE_VERSION);
    the_page = page;
    /* A process that is exempt (the launcher's own services) reads the page, but is no participant. */
    if (getenv("HYPERLAPSE_EXEMPT"))
        return;
    hl_page_process();
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

HL_EXPORT hl_page *hl_page_map(const char *run_dir)
{
    char path[512];
    int error = 0;
    if (!path_of(path, sizeof path, run_dir))
        return NULL;
    return map_file(path, O_RDWR, &error);
}
