/* Which processes and threads belong to the run: every descendant of the launcher except the exempt ones, and every
 * process that registered in the page.
 *
 * Why not registration alone: a child is invisible between fork and its own registration, and gcc starts cc1 by a vfork +
 * exec that no wrapper sees; prototypes lost 255 ms to 2,760 virtual seconds there. The kernel knows all of them. A member that
 * has not registered (yet, or ever) is external: it lives on real time, and no jump is made while it lives.
 *
 * A pid is given out before its process or thread can be seen, so a census that is taken while a member is inside clone()
 * misses the child (gcc went to sleep in wait4 for a cc1 that nobody looked at: 10 virtual seconds). So the pids that were
 * given out meanwhile are looked at once more when everybody in the census is blocked, hence outside of clone():
 * proved_pid says how far that was done.
 *
 * A census is stale when one of the pids given out since is a process or thread of the run, when a thread of it is gone, when a
 * process registered, or became another program (its stack start moved: exec). Pids given out to others cost one look each. */
#include "keeper.h"

#include "../core/wait.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCAN_MAX 32768
/* More new pids than this are not looked at one by one: a new census is cheaper. */
#define LOOKS_MAX 256

typedef struct scanned {
    int32_t pid, parent, threads;
    char state;
    uint64_t start_stack;
    bool ours;
} scanned;

static scanned table[SCAN_MAX];

static void fatal(const char *what)
{
    fprintf(stderr, "hyperlapse-keeper: %s\n", what);
    abort();
}

/* A failure would drop a running thread from the proof in silence, unless it is that the process has ended. */
static void check_proc(int error)
{
    if (error != 0 && error != ENOENT && error != ESRCH)
        fatal(error == EMFILE || error == ENFILE ? "too few file descriptors for the threads of the run: raise ulimit -n"
                                                 : "cannot read the run states of processes under /proc (hidepid?)");
}

int keeper_open_proc(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        check_proc(errno);
    return fd;
}

/* The next entry that is a process or thread, 0 at the end. */
static int32_t next_id(DIR *directory)
{
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(directory);
        if (!entry) {
            check_proc(errno);
            return 0;
        }
        if (isdigit((unsigned char)entry->d_name[0]))
            return atoi(entry->d_name);
    }
}

static bool read_process(int32_t pid, scanned *out)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = keeper_open_proc(path);
    if (fd < 0)
        return false;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    if (count <= 0)
        return false;
    text[count] = 0;
    char *at = strrchr(text, ')');
    if (!at)
        return false;
    unsigned long long start_stack = 0;
    long threads = 0;
    int parent = 0;
    char state = '?';
    /* after the name: state 3, ppid 4, ..., num_threads 20, ..., startstack 28 */
    if (sscanf(at + 1, " %c %d", &state, &parent) != 2)
        return false;
    char *p = at + 1;
    for (int field = 3; p && field <= 28; field++) {
        while (*p == ' ')
            p++;
        if (field == 20)
            threads = strtol(p, NULL, 10);
        if (field == 28)
            start_stack = strtoull(p, NULL, 10);
        p = strchr(p, ' ');
    }
    *out = (scanned){.pid = pid, .parent = parent, .threads = (int32_t)threads, .state = state, .start_stack = start_stack};
    return true;
}

/* A leader that exited while other threads live is a zombie too, but has more than one task. */
static bool is_dead(const scanned *process)
{
    return (process->state == 'Z' || process->state == 'X') && process->threads <= 1;
}

static bool is_exempt(const hl_page *page, int32_t pid)
{
    for (int i = 0; i < HL_EXEMPT_MAX; i++)
        if (atomic_load(&page->exempt[i]) == pid)
            return true;
    return false;
}

static hl_process *registered(hl_page *page, int32_t pid)
{
    for (int i = 0; i < HL_PROCESSES_MAX; i++)
        if (atomic_load(&page->processes[i].pid) == pid)
            return &page->processes[i];
    return NULL;
}

static int scan(keeper *k)
{
    int count = 0;
    DIR *directory = opendir("/proc");
    if (!directory) {
        check_proc(errno);
        fatal("/proc is gone: the run states of threads cannot be read");
    }
    for (int32_t pid; count < SCAN_MAX && (pid = next_id(directory));)
        if (read_process(pid, &table[count]))
            count++;
    closedir(directory);
    if (count == SCAN_MAX)
        fatal("this host has too many processes to look at");
    for (bool changed = true; changed;) {
        changed = false;
        for (int i = 0; i < count; i++) {
            if (table[i].ours || table[i].pid == k->page->launcher_pid || is_exempt(k->page, table[i].pid))
                continue;
            bool child = table[i].parent == k->page->launcher_pid || registered(k->page, table[i].pid);
            for (int j = 0; !child && j < count; j++)
                child = table[j].ours && table[j].pid == table[i].parent;
            if (child)
                table[i].ours = changed = true;
        }
    }
    return count;
}

static int open_task_file(int32_t pid, int32_t tid, const char *name)
{
    char path[96];
    snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tid, name);
    return keeper_open_proc(path);
}

static void close_thread(const keeper_thread *thread)
{
    close(thread->wchan_fd);
    if (thread->schedstat_fd >= 0)
        close(thread->schedstat_fd);
    if (thread->stat_fd >= 0)
        close(thread->stat_fd);
}

/* member: -1 for a kernel thread. */
static void add_thread(keeper *k, int32_t pid, int32_t tid, int32_t member)
{
    keeper_thread thread = {.pid = pid, .tid = tid, .member = member, .hot = 1, .schedstat_fd = -1, .stat_fd = -1};
    thread.wchan_fd = open_task_file(pid, tid, "wchan");
    if (thread.wchan_fd < 0)
        return; /* gone meanwhile */
    thread.schedstat_fd = open_task_file(pid, tid, "schedstat");
    if (thread.schedstat_fd >= 0 && pid == tid && member >= 0)
        thread.stat_fd = open_task_file(pid, tid, "stat");
    if (thread.schedstat_fd < 0 || (pid == tid && member >= 0 && thread.stat_fd < 0)) {
        close_thread(&thread);
        return;
    }
    if (k->thread_count == KEEPER_THREADS_MAX)
        fatal("the run has too many threads: cap thread pools (OMP_NUM_THREADS=1, ...)");
    k->threads[k->thread_count++] = thread;
}

static void add_process(keeper *k, const scanned *process, int32_t member)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", process->pid);
    DIR *directory = opendir(path);
    int threads = 0;
    if (!directory)
        check_proc(errno);
    for (int32_t tid; directory && (tid = next_id(directory)); threads++)
        add_thread(k, process->pid, tid, member);
    if (directory)
        closedir(directory);
    k->members[member].threads = threads;
}

/* Loopback packets that a loaded CPU leaves to ksoftirqd are messages in flight. Invisible inside containers. */
static void add_softirq_threads(keeper *k, int count)
{
    for (int i = 0; i < count; i++) {
        char path[64], name[32] = "";
        if (table[i].parent != 2)
            continue;
        snprintf(path, sizeof path, "/proc/%d/comm", table[i].pid);
        int fd = keeper_open_proc(path);
        if (fd < 0)
            continue;
        if (read(fd, name, sizeof name - 1) > 0 && !strncmp(name, "ksoftirqd/", 10))
            add_thread(k, table[i].pid, table[i].pid, -1);
        close(fd);
    }
}

static void forget_process(hl_page *page, hl_process *process, int32_t pid)
{
    for (int i = 0; i < atomic_load(&page->slots_used); i++) {
        hl_slot *slot = &page->slots[i];
        if (atomic_load(&slot->pid) != pid)
            continue;
        atomic_store(&slot->condition_busy, 0); /* its broadcaster may have been killed while it held this */
        hl_wait_free_slot(page, slot);
    }
    atomic_store(&process->holds, 0);
    atomic_store(&process->start_stack, 0);
    atomic_store(&process->pid, 0);
}

/* Slots of threads that ended without a destructor (exec, raw exit) would hold a deadline for ever. */
static void forget_dead_threads(keeper *k)
{
    hl_page *page = k->page;
    for (int i = 0; i < atomic_load(&page->slots_used); i++) {
        hl_slot *slot = &page->slots[i];
        int32_t pid = atomic_load(&slot->pid), tid = atomic_load(&slot->tid);
        if (!pid || !tid)
            continue;
        bool alive = false;
        for (int j = 0; !alive && j < k->thread_count; j++)
            alive = k->threads[j].tid == tid && k->threads[j].pid == pid;
        /* Not in the census: it ended, or it was made since. */
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/task/%d", pid, tid);
        alive = alive || access(path, F_OK) == 0;
        int32_t dead = tid; /* unless its thread has given it back meanwhile, and another one has it now */
        if (!alive && atomic_compare_exchange_strong(&slot->tid, &dead, 0))
            hl_wait_free_slot(page, slot);
    }
}

uint32_t keeper_newest_pid(const keeper *k)
{
    char text[128];
    ssize_t count = pread(k->loadavg_fd, text, sizeof text - 1, 0);
    if (count <= 0)
        return 0;
    text[count] = 0;
    char *last = strrchr(text, ' ');
    return last ? (uint32_t)strtoul(last + 1, NULL, 10) : 0;
}

static bool is_member(const keeper *k, int32_t pid)
{
    for (int i = 0; i < k->member_count; i++)
        if (k->members[i].pid == pid)
            return true;
    return false;
}

static bool in_census(const keeper *k, int32_t tid)
{
    for (int i = 0; i < k->thread_count; i++)
        if (k->threads[i].tid == tid)
            return true;
    return false;
}

static long status_field(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    return at ? strtol(at + strlen(name), NULL, 10) : 0;
}

/* Is this pid a living process or thread of the run that the census lacks? */
static bool is_missing(const keeper *k, int32_t pid)
{
    char path[64], text[2048];
    if (in_census(k, pid))
        return false;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    int fd = keeper_open_proc(path);
    if (fd < 0)
        return false;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    text[count > 0 ? count : 0] = 0;
    const char *state = strstr(text, "\nState:\t");
    bool dead = !state || ((state[8] == 'Z' || state[8] == 'X') && status_field(text, "\nThreads:\t") <= 1);
    int32_t group = (int32_t)status_field(text, "\nTgid:\t"), parent = (int32_t)status_field(text, "\nPPid:\t");
    if (dead || is_exempt(k->page, group))
        return false;
    return is_member(k, group) || is_member(k, parent) || parent == k->page->launcher_pid || registered(k->page, group);
}

/* True: none of the pids from..to is missing in the census. */
static bool none_missing(const keeper *k, uint32_t from, uint32_t to)
{
    for (uint32_t pid = from; pid != to + 1; pid++)
        if (is_missing(k, (int32_t)pid))
            return false;
    return true;
}

/* Many pids were given out, or they began anew at the lowest: the whole of /proc is looked at again. */
static bool new_census_finds_the_same(keeper *k)
{
    static int32_t before[KEEPER_THREADS_MAX];
    int count = k->thread_count;
    for (int i = 0; i < count; i++)
        before[i] = k->threads[i].tid;
    k->census_stale = true;
    keeper_census(k);
    bool same = k->thread_count == count;
    for (int i = 0; same && i < count; i++) {
        same = false;
        for (int j = 0; !same && j < count; j++)
            same = before[j] == k->threads[i].tid;
    }
    return same;
}

bool keeper_census_is_complete(keeper *k)
{
    uint32_t newest = keeper_newest_pid(k);
    if (newest == k->proved_pid)
        return true;
    if (newest - k->proved_pid < LOOKS_MAX) {
        if (!none_missing(k, k->proved_pid + 1, newest)) {
            k->census_stale = true;
            return false;
        }
        k->newest_pid = newest;
    } else if (!new_census_finds_the_same(k)) {
        return false;
    }
    k->proved_pid = newest;
    return true;
}

static bool is_current(keeper *k)
{
    if (k->census_stale || k->registrations != atomic_load(&k->page->registrations))
        return false;
    uint32_t newest = keeper_newest_pid(k);
    if (newest == k->newest_pid)
        return true;
    bool current = newest - k->newest_pid < LOOKS_MAX && none_missing(k, k->newest_pid + 1, newest);
    if (current)
        k->newest_pid = newest;
    return current;
}

bool keeper_leader_changed(const keeper *k, const keeper_thread *thread)
{
    char text[1024];
    ssize_t count = pread(thread->stat_fd, text, sizeof text - 1, 0);
    text[count > 0 ? count : 0] = 0;
    const char *p = strrchr(text, ')');
    for (int field = 2; p && field < 28; field++)
        p = strchr(p + 1, ' ');
    return !p || strtoull(p + 1, NULL, 10) != k->members[thread->member].start_stack;
}

void keeper_census(keeper *k)
{
    hl_page *page = k->page;
    if (is_current(k))
        return;
    atomic_fetch_add(&page->enumerations, 1);
    k->registrations = atomic_load(&page->registrations);
    k->newest_pid = keeper_newest_pid(k); /* before the scan: what is made during it is looked at afterwards */
    for (int i = 0; i < k->thread_count; i++)
        close_thread(&k->threads[i]);
    k->thread_count = k->member_count = k->external_count = 0;
    int count = scan(k);
    add_softirq_threads(k, count);
    for (int i = 0; i < HL_PROCESSES_MAX; i++) {
        int32_t pid = atomic_load(&page->processes[i].pid);
        bool alive = !pid;
        for (int j = 0; !alive && j < count; j++)
            alive = table[j].pid == pid && !is_dead(&table[j]);
        /* Not in the scan: it ended, or it registered since. Only a look of its own can tell. */
        scanned now;
        if (!alive)
            alive = read_process(pid, &now) && !is_dead(&now);
        if (!alive)
            forget_process(page, &page->processes[i], pid);
    }
    int32_t external_pid = 0;
    for (int i = 0; i < count; i++) {
        const scanned *process = &table[i];
        if (!process->ours || is_dead(process))
            continue;
        if (k->member_count == HL_PROCESSES_MAX)
            fatal("the run has too many processes: start fewer workers");
        hl_process *entry = registered(page, process->pid);
        uint64_t start_stack = entry ? atomic_load(&entry->start_stack) : 0;
        bool external = !entry || (start_stack && process->start_stack && start_stack != process->start_stack);
        int32_t member = k->member_count++;
        k->members[member] =
            (keeper_member){.pid = process->pid, .start_stack = process->start_stack, .external = external};
        add_process(k, process, member);
        if (external) {
            k->external_count++;
            external_pid = process->pid;
        }
    }
    for (int i = 0; i < count; i++)
        table[i].ours = false;
    k->census_real_ns = hl_clock_real_ns();
    forget_dead_threads(k);
    atomic_store(&page->external_processes, (uint32_t)k->external_count);
    atomic_store(&page->external_pid, external_pid);
    atomic_store(&page->threads, (uint32_t)k->thread_count);
    if (atomic_load(&page->threads_max) < (uint32_t)k->thread_count)
        atomic_store(&page->threads_max, (uint32_t)k->thread_count);
    k->census_stale = false;
}
