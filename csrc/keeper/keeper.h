/* The time-keeper: one process per host, the only writer of virtual time.
 *
 *   main.c         the loop: carry out requests, wake who is due, prove that nobody can run, jump
 *   census.c       which processes and threads belong to the run
 *   proof.c        does any of them run? (the kernel's run states, never counters)
 *   wake.c         deadlines: the earliest one, and waking those that are due
 *   no_progress.c  the report when nobody can go on
 */
#ifndef HL_KEEPER_H
#define HL_KEEPER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../core/page.h"

#define KEEPER_THREADS_MAX 16384

typedef struct keeper_thread {
    int32_t pid, tid;
    int stat_fd;
    int32_t member; /* index in members for the thread group leader, -1 for other threads, -2 for a kernel thread */
} keeper_thread;

typedef struct keeper_member {
    int32_t pid;
    int32_t threads;
    uint64_t start_stack;
    bool external; /* on real time: it never registered (no shim in it), or not yet */
} keeper_member;

typedef struct keeper {
    hl_page *page;
    const char *run_dir;
    keeper_thread threads[KEEPER_THREADS_MAX];
    int thread_count;
    keeper_member members[HL_PROCESSES_MAX];
    int member_count, external_count;
    uint32_t newest_pid;   /* /proc/loadavg's last field when the census was taken */
    int64_t census_real_ns; /* when it was taken */
    bool census_stale;
    bool census_provisional; /* not yet confirmed: see keeper_confirm_census */
    int loadavg_fd;
} keeper;

/* Takes the census when it is stale: every descendant of the launcher that is not exempt, every registered process. */
void keeper_census(keeper *k);

/* Call when everybody in the census has been seen asleep. False: it was not complete, and has been taken again. */
bool keeper_confirm_census(keeper *k);

/* The pid that the kernel gave out last: unchanged means that no process or thread was made since. */
uint32_t keeper_newest_pid(const keeper *k);

/* True when every thread of every member is asleep and nothing happened meanwhile. */
bool keeper_prove_quiet(keeper *k);

/* One pass over the run states, hottest thread first. */
bool keeper_pass(keeper *k);

int64_t keeper_earliest_deadline_ns(const keeper *k, bool lazy_too, hl_slot **slot);
void keeper_wake_due(keeper *k);
void keeper_wake_all(keeper *k);

/* Gives every parked poller one more look. True: none found anything. */
bool keeper_kick_spinners(keeper *k);

int64_t keeper_holds(const keeper *k);

/* Prints each participant, thread, kernel state, what it waits for and until when; `why` is the first line. */
void keeper_no_progress_report(keeper *k, FILE *out, const char *why);

#endif
