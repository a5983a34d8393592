/* The proof that nobody can run: every thread of the run is blocked in the kernel, all at one instant.
 *
 * It is sound because a message in flight makes its receiver runnable before the sender's call returns: true of pipes,
 * sockets, futexes and eventfds, not of pseudo-terminals, whose bytes a kernel worker delivers (docs/limitations.md).
 *
 * Evidence. Not the letter S of /proc/TID/stat: a thread sets it before it looks whether it has to sleep at all. wait4
 * reaps a zombie with that letter on; 1 of 25 runs of eight gcc lost 10 virtual seconds in that window. /proc/TID/wchan is
 * exact since Linux 5.16: under the lock that every wake-up takes, it names the function in which a thread sleeps only
 * when the thread is neither running nor being woken nor on a run queue. And /proc/TID/schedstat counts what a thread ran.
 *
 * Rule. Read every thread's count, then see every thread blocked, then read every count again: when none has changed,
 * nobody ran while they were looked at, so nobody woke anybody, and all were blocked at once. (Two looks without
 * the counts are not enough: two threads that hand a message to and fro can each be asleep at each look.) A count
 * of the last proof serves as the first one: whoever has it still has not run since.
 *
 * Rejected, each accepted jumps that lost messages: counters in the page alone, load averages, skipping threads that slept
 * long (a zmq input thread that slept through 50 jumps was woken, had not run yet, and was skipped: 10-61 ms wrong). */
#include "keeper.h"

#include "../core/report.h"
#include "../core/sys.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Kernels before 5.16 name a function for threads that are about to run, too: there, no jump for this long (real time)
 * after a process or thread of the run came or went. */
#define SETTLE_NS (INT64_C(5) * HL_NS_PER_MS)
/* Where /proc/TID/wchan may not be read (a process that made itself undumpable): asleep is who shows S and has not run for
 * this long, in real time. */
#define BLIND_NS (INT64_C(20) * HL_NS_PER_MS)
/* A thread that ran lately is expected to have run again: its count is read before the look, too. */
#define HOT_PROOFS 8

/* Functions that sleep only in the interruptible state, by their names since 5.16. Any other function may be a wait for
 * a disk or for a vfork child, which end without anybody's deadline: the letter then decides. */
static const char *const interruptible[] = {
    "futex_do_wait",     "futex_wait_queue", "futex_wait_queue_me", "ep_poll",   "do_epoll_wait",
    "do_sys_poll",       "do_poll",          "do_select",           "do_wait",   "poll_schedule_timeout",
    "hrtimer_nanosleep", "pipe_read",        "anon_pipe_read",      "sigsuspend", "unix_stream_read_generic",
    "do_sigtimedwait",   "__do_sys_pause",   "inet_csk_accept",     "smpboot_thread_fn",
};

bool keeper_wchan_is_exact(void)
{
    struct utsname name;
    int major = 0, minor = 0;
    return uname(&name) == 0 && sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
           (major > 5 || (major == 5 && minor >= 16));
}

/* The compiler's suffixes (.isra.0, .constprop.0) are no part of a name. */
static bool sleeps_interruptibly(const char *function)
{
    size_t length = strcspn(function, ".");
    for (size_t i = 0; i < sizeof interruptible / sizeof *interruptible; i++)
        if (!strncmp(function, interruptible[i], length) && !interruptible[i][length])
            return true;
    return false;
}

static ssize_t read_text(int fd, char *text, size_t size)
{
    ssize_t count = pread(fd, text, size - 1, 0);
    text[count > 0 ? count : 0] = 0;
    return count;
}

static ssize_t read_task_file(const keeper_thread *thread, const char *name, char *text, size_t size)
{
    char path[96];
    snprintf(path, sizeof path, "/proc/%d/task/%d/%s", thread->pid, thread->tid, name);
    int fd = keeper_open_proc(path);
    if (fd < 0)
        return -1;
    ssize_t count = read_text(fd, text, size);
    close(fd);
    return count;
}

/* What a thread has run: time on a CPU and times it got one. False: it is gone. */
static bool read_counts(int schedstat_fd, keeper_ran *ran)
{
    char text[96], *at = text;
    if (read_text(schedstat_fd, text, sizeof text) <= 0)
        return false;
    ran->time_ns = strtoull(at, &at, 10);
    strtoull(at, &at, 10); /* time it waited for a CPU */
    ran->times = strtoull(at, &at, 10);
    return true;
}

static bool read_ran(const keeper_thread *thread, keeper_ran *ran) { return read_counts(thread->schedstat_fd, ran); }

bool keeper_counts_are_kept(void)
{
    keeper_ran own = {0};
    int fd = keeper_open_proc("/proc/self/schedstat");
    bool kept = fd >= 0 && read_counts(fd, &own) && own.times > 0;
    if (fd >= 0)
        close(fd);
    return kept;
}

static bool same_ran(keeper_ran a, keeper_ran b) { return a.time_ns == b.time_ns && a.times == b.times; }

typedef enum look { LOOK_ASLEEP, LOOK_RUNS, LOOK_GONE } look;

/* The letter of /proc/TID/stat, 0 when the thread is gone. */
static char letter_of(const keeper_thread *thread)
{
    char text[512];
    if (read_task_file(thread, "stat", text, sizeof text) <= 0)
        return 0;
    const char *name_end = strrchr(text, ')');
    return name_end && name_end[1] ? name_end[2] : 0;
}

/* wchan told nothing. Reading `syscall` takes a thread off the run queue that only lags on it after it went to sleep
 * (Linux 6.12 and newer leave it there for fairness; needs the right to trace). */
static look look_again(keeper *k, keeper_thread *thread)
{
    char text[192];
    keeper_member *member = thread->member >= 0 ? &k->members[thread->member] : NULL;
    char letter = letter_of(thread);
    if (letter == 0 || letter == 'X')
        return LOOK_GONE;
    if (letter == 'Z') /* a leader that has ended by pthread_exit while its threads go on */
        return member && thread->tid == thread->pid && member->threads > 1 ? LOOK_ASLEEP : LOOK_GONE;
    if (letter != 'S' && letter != 'I')
        return LOOK_RUNS;
    if (!member) /* a kernel thread: only the superuser may ask where it sleeps */
        return LOOK_ASLEEP;
    if (member->wchan_works) {
        read_task_file(thread, "syscall", text, sizeof text);
        if (read_text(thread->wchan_fd, text, sizeof text) > 0 && strcmp(text, "0") != 0 && sleeps_interruptibly(text))
            return LOOK_ASLEEP;
        return LOOK_RUNS;
    }
    keeper_ran ran;
    int64_t now_ns = hl_clock_real_ns();
    if (!read_ran(thread, &ran))
        return LOOK_GONE;
    if (!thread->blind_since_ns || !same_ran(ran, thread->blind_ran)) {
        thread->blind_since_ns = now_ns;
        thread->blind_ran = ran;
    }
    if (now_ns - thread->blind_since_ns <= BLIND_NS)
        return LOOK_RUNS;
    k->blind_pid = thread->pid;
    return LOOK_ASLEEP;
}

static look look_at(keeper *k, keeper_thread *thread)
{
    char text[96];
    ssize_t count = read_text(thread->wchan_fd, text, sizeof text);
    if (count <= 0)
        return LOOK_GONE;
    if (count == 1 && text[0] == '0')
        return look_again(k, thread);
    if (thread->member >= 0)
        k->members[thread->member].wchan_works = true;
    if (sleeps_interruptibly(text))
        return LOOK_ASLEEP;
    /* Blocked; the letter is that of this sleep, or it ran in between, which its count will show. */
    char letter = letter_of(thread);
    if (letter == 'Z')
        return look_again(k, thread);
    return letter == 'S' || letter == 'I' ? LOOK_ASLEEP : letter ? LOOK_RUNS : LOOK_GONE;
}

/* It runs: it is looked at first next time, so that the next failing proof costs one read. */
static void make_first(keeper *k, int index)
{
    keeper_thread first = k->threads[index];
    memmove(&k->threads[1], &k->threads[0], sizeof first * (size_t)index);
    k->threads[0] = first;
}

static bool is_blocked(keeper *k, int index)
{
    look seen = look_at(k, &k->threads[index]);
    if (seen == LOOK_GONE)
        k->census_stale = true;
    else if (seen == LOOK_RUNS && index > 0)
        make_first(k, index);
    return seen == LOOK_ASLEEP;
}

static bool all_blocked(keeper *k)
{
    for (int i = 0; i < k->thread_count; i++)
        if (!is_blocked(k, i))
            return false;
    return true;
}

/* Before the look: the counts of those that ran lately. Whoever ran may have become another program. */
static bool count_the_hot(keeper *k)
{
    for (int i = 0; i < k->thread_count; i++) {
        keeper_thread *thread = &k->threads[i];
        if (!thread->hot)
            continue;
        keeper_ran before = thread->ran;
        if (!read_ran(thread, &thread->ran) || (thread->stat_fd >= 0 && keeper_leader_changed(k, thread))) {
            k->census_stale = true;
            return false;
        }
        if (!same_ran(before, thread->ran))
            thread->hot = HOT_PROOFS;
    }
    return true;
}

/* After the look: true when no count has changed. */
static bool nobody_ran(keeper *k)
{
    bool same = true;
    for (int i = 0; i < k->thread_count; i++) {
        keeper_thread *thread = &k->threads[i];
        keeper_ran ran;
        if (!read_ran(thread, &ran)) {
            k->census_stale = true;
            return false;
        }
        if (!same_ran(ran, thread->ran)) {
            thread->ran = ran;
            thread->hot = HOT_PROOFS;
            same = false;
        }
    }
    for (int i = 0; same && i < k->thread_count; i++)
        if (k->threads[i].hot)
            k->threads[i].hot--;
    return same;
}

/* A process that ends is seen as a zombie a moment before its parent is woken: both happen in one section of the kernel
 * that holds tasklist_lock for writing, but a virtual CPU can be taken away in the middle of it. Signal 0 to our own
 * process group takes that lock for reading: after it, the parent has been woken. */
static void wait_for_exits(void) { kill(0, 0); }

/* Everybody sleeps although some slots claim to run: they block in calls that we do not wrap. Marking them makes the
 * running counter reach zero again, so that the next last blocker wakes us at once instead of after a poll. */
static void mark_unwrapped(hl_page *page)
{
    for (int i = 0; i < atomic_load(&page->slots_used); i++) {
        uint32_t running = HL_SLOT_RUNNING;
        hl_slot *slot = &page->slots[i];
        if (atomic_load(&slot->pid) && atomic_load(&slot->tid) &&
            atomic_compare_exchange_strong(&slot->state, &running, HL_SLOT_UNWRAPPED)) {
            atomic_fetch_sub(&page->running, 1);
            atomic_fetch_add(&page->unwrapped_blocks, 1);
        }
    }
}

/* A jump may rest on this proof, and a thread that was about to sleep and lost its CPU for so long would fool it. */
static void tell_of_the_blind(const keeper *k)
{
    char path[64], name[32] = "", text[HL_EVENT_TEXT_BYTES];
    snprintf(path, sizeof path, "/proc/%d/comm", k->blind_pid);
    int fd = keeper_open_proc(path);
    if (fd >= 0) {
        read_text(fd, name, sizeof name);
        close(fd);
    }
    name[strcspn(name, "\n")] = 0;
    snprintf(text, sizeof text, "%s hides where its threads sleep (not dumpable?): asleep is who has not run for %d ms", name,
             (int)(BLIND_NS / HL_NS_PER_MS));
    hl_report_event_on(k->page, "blind-proof", text);
}

static bool is_quiet(keeper *k)
{
    hl_page *page = k->page;
    k->blind_pid = 0;
    uint64_t activity = atomic_load(&page->activity);
    if (k->thread_count && !is_blocked(k, 0))
        return false;
    if (!count_the_hot(k))
        return false;
    wait_for_exits(); /* of those that the census saw as zombies */
    /* Here, because from the counts on nobody runs who could launch anything, and whom the pricing service releases before
     * this is seen running by what follows. Read before the proof, a launch that came in between was jumped over; read after
     * it, a price that came in between was. */
    k->holds = keeper_holds(k);
    if (!all_blocked(k))
        return false;
    bool still = nobody_ran(k) && (k->counts || all_blocked(k)) && atomic_load(&page->activity) == activity;
    if (!still)
        atomic_fetch_add(&page->second_pass_refused, 1);
    return still && (k->exact || hl_clock_real_ns() - k->census_real_ns > SETTLE_NS);
}

bool keeper_prove_quiet(keeper *k)
{
    hl_page *page = k->page;
    int64_t began_ns = hl_clock_real_ns();
    atomic_fetch_add(&page->proofs, 1);
    keeper_census(k);
    bool quiet = is_quiet(k) && keeper_census_is_complete(k);
    if (quiet && k->blind_pid)
        tell_of_the_blind(k);
    if (quiet)
        mark_unwrapped(page);
    else
        atomic_fetch_add(&page->proofs_refused, 1);
    atomic_fetch_add(&page->proof_ns_total, (uint64_t)(hl_clock_real_ns() - began_ns));
    return quiet;
}
