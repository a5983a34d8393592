/* The time-keeper's loop. Usage: hyperlapse-keeper RUN_DIR
 *
 * It carries out the launcher's requests, wakes who is due, and when everybody waits moves the clock to the earliest
 * deadline. It must never jump over a deadline, while a launch is unpriced, or while a process of the run lives on real
 * time. When nobody can go on it says so and marks the page; when the launcher is gone it ends the run. */
#include "keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../core/control.h"
#include "../core/segment.h"
#include "../core/sys.h"

/* Threads parked in calls that we do not wrap never trigger us: look at least this often. */
#define POLL_NS (INT64_C(500) * HL_NS_PER_US)
#define IDLE_NS (INT64_C(50) * HL_NS_PER_MS)
/* Background timers (see lazy) may jump only when nothing else has a deadline for this long, in real time. */
#define LAZY_ALONE_NS (INT64_C(50) * HL_NS_PER_MS)
#define SECOND_NS HL_NS_PER_S
/* So many looks at a due thread that does not move, then one whether it is alive. */
#define LOOKS_FOR_THE_DEAD 256
/* A re-armed kernel timeout makes a thread run for a moment; this many refused proofs in a row are somebody at work. */
#define FAILURES_THAT_MEAN_WORK 300

static volatile sig_atomic_t stopping;
static keeper the_keeper;

static void on_stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static void sleep_on_word(hl_page *page, int64_t timeout_ns)
{
    uint32_t seen = atomic_load(&page->keeper_word);
    atomic_store(&page->keeper_sleeps, 1);
    if (atomic_load(&page->asked) == atomic_load(&page->done))
        hl_sys_futex_wait(&page->keeper_word, seen, timeout_ns);
    atomic_store(&page->keeper_sleeps, 0);
}

/* Waits for a reason to look. False: they still run and something moves, so a look is not worth it yet. */
static bool wait_for_trigger(hl_page *page)
{
    if (atomic_load(&page->running) <= 0)
        return true;
    uint64_t activity = atomic_load(&page->activity);
    uint32_t seen = atomic_load(&page->keeper_word);
    atomic_store(&page->keeper_sleeps, 1);
    if (atomic_load(&page->running) > 0)
        hl_sys_futex_wait(&page->keeper_word, seen, POLL_NS);
    atomic_store(&page->keeper_sleeps, 0);
    return atomic_load(&page->running) <= 0 || atomic_load(&page->activity) == activity;
}

static void carry_out_requests(keeper *k)
{
    hl_page *page = k->page;
    uint32_t asked = atomic_load(&page->asked);
    if (asked == atomic_load(&page->done))
        return;
    hl_segment_open(k->run_dir); /* holds of unpriced launches; a run without devices has no segment */
    k->shared = atomic_load(&page->hosts.shared);
    uint32_t mode = atomic_load(&page->asked_mode), before = atomic_load(&page->mode);
    int64_t epoch_ns = atomic_load(&page->asked_epoch_ns), now_ns = hl_page_now_ns(page);
    bool stood = before == HL_MODE_PARKED || before == HL_MODE_FROZEN;
    bool stands = mode == HL_MODE_PARKED || mode == HL_MODE_FROZEN;
    if (stands) {
        /* Readers of a running clock may be a few microseconds past now_ns: time must not step back for them. */
        int64_t from_ns = stood ? now_ns : now_ns + 100 * HL_NS_PER_US;
        atomic_store(&page->now_ns, epoch_ns > from_ns ? epoch_ns : from_ns);
        if (epoch_ns > 0)
            atomic_store(&page->realtime_offset_ns, HL_PAGE_EPOCH_DATE_NS - epoch_ns);
    } else {
        atomic_store(&page->offset_ns, now_ns - hl_clock_real_ns());
    }
    atomic_store(&page->mode, mode);
    keeper_wake_all(k);
    atomic_store(&page->done, asked);
    hl_sys_futex_wake(&page->done, INT32_MAX);
}

static void jump_to(hl_page *page, int64_t instant_ns)
{
    if (atomic_load(&page->mode) == HL_MODE_FLOW) {
        int64_t offset_ns = instant_ns - hl_clock_real_ns();
        if (offset_ns > atomic_load(&page->offset_ns))
            atomic_store(&page->offset_ns, offset_ns);
    } else if (instant_ns > atomic_load(&page->now_ns)) {
        atomic_store(&page->now_ns, instant_ns);
    }
    atomic_fetch_add(&page->jumps, 1);
}

static void write_report_file(keeper *k, const char *why)
{
    char path[512];
    snprintf(path, sizeof path, "%s/no-progress.txt", k->run_dir);
    FILE *out = fopen(path, "we");
    if (out) {
        keeper_no_progress_report(k, out, why);
        fclose(out);
    }
}

/* Somebody waits for file descriptors without a deadline, or reads its standard input: not a deadlock where people or
 * programs outside of the run may answer (an idle server, a shell's prompt). */
bool keeper_waits_for_the_world(const keeper *k)
{
    static const char *const calls[] = {"0 0x0 ", "7 ",   "23 ",  "232 ", "270 ", "271 ",
                                        "281 ",   "441 ", "43 ",  "288 ", "45 ",  "47 "};
    /* read(0), poll, select, epoll_wait, pselect6, ppoll, epoll_pwait, epoll_pwait2, accept, accept4, recvfrom, recvmsg */
    if (!atomic_load(&k->page->outside))
        return false;
    for (int i = 0; i < k->thread_count; i++) {
        char path[96], text[64] = "";
        if (k->threads[i].member < 0) /* a kernel thread shows zeros, which would read as read(0) */
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", k->threads[i].pid, k->threads[i].tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t count = read(fd, text, sizeof text - 1);
        close(fd);
        for (size_t c = 0; count > 0 && c < sizeof calls / sizeof *calls; c++)
            if (!strncmp(text, calls[c], strlen(calls[c])))
                return true;
    }
    return false;
}

static void give_up(keeper *k, const char *why)
{
    keeper_no_progress_report(k, stderr, why);
    write_report_file(k, why);
    atomic_store(&k->page->keeper_state, HL_KEEPER_NO_PROGRESS);
    hl_sys_futex_wake(&k->page->keeper_state, INT32_MAX);
}

/* What stands still, and for how long, in real time. */
typedef struct patience {
    int64_t since_ns;
    const char *why;
    bool told;
} patience;

static void no_patience(patience *p) { *p = (patience){0}; }

static bool lost_patience(patience *p, const char *why, int64_t limit_ns)
{
    int64_t now_ns = hl_clock_real_ns();
    if (p->why != why)
        *p = (patience){.since_ns = now_ns, .why = why};
    return !p->told && limit_ns > 0 && now_ns - p->since_ns > limit_ns && (p->told = true);
}

/* The launcher is gone (killed): its run must not outlive it, nor the shared memory of the run. */
static void end_the_run(keeper *k)
{
    int32_t pids[HL_PROCESSES_MAX];
    int count = hl_control_processes(k->page, pids, HL_PROCESSES_MAX);
    for (int i = 0; i < count; i++)
        kill(pids[i], SIGKILL);
    for (int i = 0; i < k->member_count; i++) /* those on real time never registered */
        kill(k->members[i].pid, SIGKILL);
    DIR *directory = opendir(k->run_dir);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        unlinkat(dirfd(directory), entry->d_name, 0);
    if (directory)
        closedir(directory);
    rmdir(k->run_dir);
}

static void back_off(hl_page *page, int failures)
{
    if (failures < 3)
        hl_sys_yield();
    else
        sleep_on_word(page, failures < 60 ? 20 * HL_NS_PER_US : failures < 200 ? 100 * HL_NS_PER_US : POLL_NS);
}

static void run(keeper *k)
{
    hl_page *page = k->page;
    patience stuck = {0};
    int64_t lazy_since_ns = 0, triggered_ns = 0;
    int failures = 0;
    while (!stopping) {
        int64_t limit_ns = (int64_t)atomic_load(&page->no_progress_s) * SECOND_NS;
        carry_out_requests(k);
        if (getppid() != page->launcher_pid) {
            end_the_run(k);
            return;
        }
        if (atomic_exchange(&page->room_wanted, 0)) {
            k->census_stale = true;
            keeper_census(k);
        }
        uint32_t mode = atomic_load(&page->mode);
        if (mode == HL_MODE_REAL || mode == HL_MODE_PARKED) {
            if (mode == HL_MODE_PARKED)
                keeper_wake_due(k);
            no_patience(&stuck);
            sleep_on_word(page, IDLE_NS);
            continue;
        }
        keeper_wake_due(k);
        hl_slot *slot = NULL;
        int64_t deadline_ns = keeper_earliest_deadline_ns(k, false, &slot);
        if (deadline_ns <= hl_page_now_ns(page)) { /* woken, on its way: time stands until it has seen it */
            if (lost_patience(&stuck, "a due thread", limit_ns))
                give_up(k, "a thread whose deadline has come does not look at the clock (stopped, or in a signal handler?)");
            if (++failures % LOOKS_FOR_THE_DEAD == 0) { /* it may have ended without giving its slot back */
                k->census_stale = true;
                keeper_census(k);
            }
            back_off(page, failures);
            continue;
        }
        bool idle = deadline_ns == HL_NEVER_NS && !k->shared; /* other hosts wait for this one's sleep */
        if (!idle && !wait_for_trigger(page))
            continue;
        if (!triggered_ns)
            triggered_ns = hl_clock_real_ns();
        if (k->shared)
            keeper_before_proof(k);
        if (!keeper_prove_quiet(k)) {
            if (++failures > FAILURES_THAT_MEAN_WORK)
                no_patience(&stuck);
            if (idle)
                sleep_on_word(page, POLL_NS);
            else
                back_off(page, failures);
            continue;
        }
        failures = 0;
        /* Everybody sleeps. */
        if (k->external_count) {
            if (lost_patience(&stuck, "a process on real time is alive", limit_ns))
                keeper_no_progress_report(k, stderr, "the clock is held: a process of the run is not on the virtual clock "
                                                     "(waiting for it to end)");
            sleep_on_word(page, POLL_NS);
            k->census_stale = true;
            continue;
        }
        if (k->holds) {
            if (lost_patience(&stuck, "a launch has no price", limit_ns))
                give_up(k, "a launch waits for its price: is the pricing service alive?");
            sleep_on_word(page, POLL_NS);
            continue;
        }
        if (k->shared) {
            no_patience(&stuck); /* the coordinator's, who knows what the other hosts wait for */
            if (keeper_agree(k))
                triggered_ns = 0;
            else
                failures++;
            continue;
        }
        if (!keeper_kick_spinners(k)) {
            failures++;
            continue;
        }
        deadline_ns = keeper_earliest_deadline_ns(k, false, &slot);
        if (deadline_ns == HL_NEVER_NS) {
            if (!lazy_since_ns)
                lazy_since_ns = hl_clock_real_ns();
            if (lost_patience(&stuck, "everybody waits", limit_ns)) {
                if (!keeper_waits_for_the_world(k))
                    give_up(k, "everybody waits, and nobody has a deadline");
            }
            if (hl_clock_real_ns() - lazy_since_ns < LAZY_ALONE_NS) {
                sleep_on_word(page, POLL_NS);
                continue;
            }
            deadline_ns = keeper_earliest_deadline_ns(k, true, &slot);
            if (deadline_ns == HL_NEVER_NS) {
                sleep_on_word(page, IDLE_NS);
                continue;
            }
        } else {
            lazy_since_ns = 0;
            no_patience(&stuck);
        }
        if (deadline_ns <= hl_page_now_ns(page))
            continue;
        if (mode != atomic_load(&page->mode) || atomic_load(&page->asked) != atomic_load(&page->done))
            continue;
        jump_to(page, deadline_ns);
        atomic_fetch_add(&slot->jumps, 1);
        keeper_wake_due(k);
        atomic_fetch_add(&page->trigger_to_wake_ns_total, (uint64_t)(hl_clock_real_ns() - triggered_ns));
        triggered_ns = 0;
        failures = 0;
    }
}

bool keeper_is_called(const keeper *k)
{
    return stopping || atomic_load(&k->page->asked) != atomic_load(&k->page->done) ||
           getppid() != k->page->launcher_pid;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: hyperlapse-keeper RUN_DIR (started by `hyperlapse run`)\n");
        return 2;
    }
    keeper *k = &the_keeper;
    k->run_dir = argv[1];
    k->page = hl_page_map(argv[1]);
    if (!k->page) {
        fprintf(stderr, "hyperlapse-keeper: cannot map the clock page in %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    k->loadavg_fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    if (k->loadavg_fd < 0) {
        fprintf(stderr, "hyperlapse-keeper: /proc is not mounted: the run states of threads cannot be read\n");
        return 1;
    }
    struct rlimit files = {0};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1);
    struct sigaction action = {.sa_handler = on_stop};
    sigaction(SIGTERM, &action, NULL);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is the launcher's to handle */
    k->census_stale = true;
    k->exact = keeper_wchan_is_exact();
    k->counts = keeper_counts_are_kept();
    k->proved_pid = keeper_newest_pid(k); /* the run has no process yet */
    atomic_store(&k->page->keeper_pid, getpid());
    hl_control_exempt(k->page, getpid());
    atomic_store(&k->page->keeper_state, HL_KEEPER_RUNNING);
    hl_sys_futex_wake(&k->page->keeper_state, INT32_MAX);
    run(k);
    uint32_t running = HL_KEEPER_RUNNING;
    atomic_compare_exchange_strong(&k->page->keeper_state, &running, HL_KEEPER_STOPPED);
    return 0;
}
