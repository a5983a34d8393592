/* The proof that nobody can run: the kernel's run state of every thread of the run.
 *
 * It is sound because a message in flight makes its receiver runnable before the sender's call returns: true of pipes,
 * sockets, futexes and eventfds, not of pseudo-terminals, whose bytes a kernel worker delivers (docs/limitations.md). Counters alone,
 * load averages and skipping threads that slept long were tried: each accepted jumps that lost messages (a zmq input thread
 * that slept through 50 jumps was woken, had not run yet, and was skipped: 10-61 ms wrong). D and T count as running: disk
 * waits and the parent of a vfork will go on without anybody's deadline.
 *
 * Two passes: in one pass a thread read as asleep may be woken by a thread that is read as asleep a moment
 * later. What still could slip through both passes must block outside our wrappers twice; `activity` catches the rest. */
#include "keeper.h"

#include "../core/sys.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A leader's line is read whole: it tells a new thread (num_threads) and an exec (startstack). */
static bool leader_changed(keeper *k, const keeper_thread *thread, const char *after_name)
{
    keeper_member *member = &k->members[thread->member];
    const char *p = after_name;
    long threads = 0;
    uint64_t start_stack = 0;
    for (int field = 3; p && field <= 28; field++) {
        while (*p == ' ')
            p++;
        if (field == 20)
            threads = strtol(p, NULL, 10);
        if (field == 28)
            start_stack = strtoull(p, NULL, 10);
        p = strchr(p, ' ');
    }
    return threads != member->threads || start_stack != member->start_stack;
}

/* 'S' when asleep; any other state otherwise; 'G' when it is gone or changed and the census must be taken again. */
static char state_of(keeper *k, const keeper_thread *thread)
{
    char text[512];
    ssize_t count = pread(thread->stat_fd, text, thread->member >= 0 ? sizeof text - 1 : 96, 0);
    if (count <= 0)
        return 'G';
    text[count] = 0;
    const char *name_end = strrchr(text, ')');
    if (!name_end || name_end + 2 >= text + count)
        return '?';
    if (thread->member >= 0 && leader_changed(k, thread, name_end + 1))
        return 'G';
    char state = name_end[2];
    if (state == 'Z' && thread->member >= 0 && k->members[thread->member].threads > 1)
        return 'S'; /* the main thread has ended by pthread_exit, its threads have not */
    return state == 'I' ? 'S' : state;
}

bool keeper_pass(keeper *k)
{
    for (int i = 0; i < k->thread_count; i++) {
        char state = state_of(k, &k->threads[i]);
        if (state == 'S')
            continue;
        if (state == 'G' || state == 'Z' || state == 'X') {
            k->census_stale = true;
            return false;
        }
        if (i > 0) { /* the next failing test then costs one read */
            keeper_thread hot = k->threads[i];
            memmove(&k->threads[1], &k->threads[0], sizeof hot * (size_t)i);
            k->threads[0] = hot;
        }
        return false;
    }
    return true;
}

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

/* No jump for this long after a process or thread of the run came or went, in real time. The two known windows (a pid that is
 * given out before its task can be seen, a zombie whose parent is woken a moment later) are closed by keeper_confirm_census
 * and wait_for_exits; with both, one of about 40 runs of 8 gcc on a loaded machine still lost its 10 virtual seconds. */
#define SETTLE_NS (INT64_C(5) * HL_NS_PER_MS)

/* A process that ends is seen as a zombie a moment before its parent is woken: both happen in one section of the kernel that
 * holds tasklist_lock for writing, but a virtual CPU can be taken away in the middle of it, and the run states are read
 * without that lock. Signal 0 to our own process group takes it for reading: after that the parent has been woken, and
 * the second pass sees it. */
static void wait_for_exits(void) { kill(0, 0); }

bool keeper_prove_quiet(keeper *k)
{
    hl_page *page = k->page;
    int64_t began_ns = hl_clock_real_ns();
    uint64_t activity = atomic_load(&page->activity);
    bool quiet = false;
    atomic_fetch_add(&page->proofs, 1);
    keeper_census(k);
    bool all_wrapped = atomic_load(&page->running) == 0;
    if (keeper_pass(k)) {
        quiet = keeper_confirm_census(k);
        wait_for_exits(); /* of those too that the census just saw as zombies */
        quiet = quiet && keeper_pass(k);
        if (!quiet)
            atomic_fetch_add(&page->second_pass_refused, 1);
    }
    /* A change among the processes settles in kernel sections that no state shows (see SETTLE_NS). */
    if (quiet && hl_clock_real_ns() - k->census_real_ns < SETTLE_NS)
        quiet = false;
    /* A thread or process made since the census was taken was in no pass. */
    if (quiet && keeper_newest_pid(k) != k->newest_pid)
        quiet = false;
    if (quiet && (atomic_load(&page->activity) != activity || (all_wrapped && atomic_load(&page->running) != 0)))
        quiet = false;
    if (quiet && !all_wrapped)
        mark_unwrapped(page);
    if (!quiet)
        atomic_fetch_add(&page->proofs_refused, 1);
    atomic_fetch_add(&page->proof_ns_total, (uint64_t)(hl_clock_real_ns() - began_ns));
    return quiet;
}
