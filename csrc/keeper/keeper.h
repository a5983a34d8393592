/* The time-keeper: one process per host, the only writer of virtual time.
 *
 *   main.c         the loop: carry out requests, wake who is due, prove that nobody can run, jump
 *   census.c       which processes and threads belong to the run
 *   proof.c        does any of them run? (the kernel's run states, never counters)
 *   wake.c         deadlines: the earliest one, and waking those that are due
 *   no_progress.c  the report when nobody can go on
 *   hosts.c        several hosts: asking the coordinator instead of jumping
 *   connections.c  several hosts: how many bytes left for other hosts and came from them
 */
#ifndef HL_KEEPER_H
#define HL_KEEPER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../core/page.h"

#define KEEPER_THREADS_MAX 16384

/* What a thread has run so far. */
typedef struct keeper_ran {
    uint64_t time_ns, times;
} keeper_ran;

typedef struct keeper_thread {
    int32_t pid, tid;
    int wchan_fd, schedstat_fd;
    int stat_fd;    /* thread group leaders only, else -1 */
    int32_t member; /* index in members, -1 for a kernel thread */
    int32_t hot;    /* ran lately: proofs until it counts as cold */
    keeper_ran ran; /* at the last look */
    int64_t blind_since_ns;
    keeper_ran blind_ran;
} keeper_thread;

typedef struct keeper_member {
    int32_t pid;
    int32_t threads;
    uint64_t start_stack;
    bool external;    /* on real time: it never registered (no shim in it), or not yet */
    bool wchan_works; /* the kernel has told us where a thread of it sleeps */
} keeper_member;

typedef struct keeper {
    hl_page *page;
    const char *run_dir;
    keeper_thread threads[KEEPER_THREADS_MAX];
    int thread_count;
    keeper_member members[HL_PROCESSES_MAX];
    int member_count, external_count;
    uint32_t newest_pid;    /* up to it every new pid has been looked at, though perhaps too early: see census.c */
    uint32_t proved_pid;    /* up to it every new pid has been looked at while nobody could be inside clone() */
    uint32_t registrations; /* of the page, when the census was taken */
    int64_t census_real_ns; /* when it was taken */
    int64_t holds;          /* at the instant of the last proof that all are asleep */
    int32_t blind_pid;      /* whose sleep the last proof could not see and took for granted, 0: nobody's */
    bool census_stale;
    int loadavg_fd;
    bool exact;  /* this kernel's wchan tells who sleeps */
    bool counts; /* this kernel counts what threads run */
    bool shared; /* other hosts share this clock */
} keeper;

/* Takes the census when it is stale: every descendant of the launcher that is not exempt, every registered process. */
void keeper_census(keeper *k);

/* Call when everybody in the census is blocked, hence outside of clone(). False: a process or thread of the run is missing
 * in it, and it will be taken again. */
bool keeper_census_is_complete(keeper *k);

/* True when a process became another program since the census. */
bool keeper_leader_changed(const keeper *k, const keeper_thread *thread);

/* Opens a file of /proc; -1 when its process has ended. Any other failure ends the run. */
int keeper_open_proc(const char *path);

/* The pid that the kernel gave out last. */
uint32_t keeper_newest_pid(const keeper *k);

/* True when every thread of every member was asleep at one instant. */
bool keeper_prove_quiet(keeper *k);

/* Linux 5.16 and newer: see proof.c. */
bool keeper_wchan_is_exact(void);

/* False on a kernel without CONFIG_SCHED_INFO. */
bool keeper_counts_are_kept(void);

int64_t keeper_earliest_deadline_ns(const keeper *k, bool lazy_too, hl_slot **slot);
void keeper_wake_due(keeper *k);
void keeper_wake_all(keeper *k);

/* Gives every parked poller one more look. True: none found anything. */
bool keeper_kick_spinners(keeper *k);

int64_t keeper_holds(const keeper *k);

/* Several hosts share the clock: counts what has come from other hosts; before the proof that all sleep. */
void keeper_before_proof(keeper *k);

/* After that proof: proves it again while nobody can read the clock, reports it, and waits for the coordinator's answer.
 * False: somebody runs, or the answer was to look again. */
bool keeper_agree(keeper *k);

/* True when the loop has something to do that cannot wait for another host: a request, the end. */
bool keeper_is_called(const keeper *k);

/* True when people or programs outside of the run may answer what its processes wait for. */
bool keeper_waits_for_the_world(const keeper *k);

/* Reads the kernel's counters of every connection to another node. search: look for new ones first. */
void keeper_connections_read(keeper *k, bool search);

/* Reads them once more, from connection to connection. False: one of them came, went or changed its state. */
bool keeper_connections_read_again(keeper *k);

/* What was received by the first reading and sent by the second. */
uint32_t keeper_connections_copy(hl_connection *connections);

/* Prints each participant, thread, kernel state, what it waits for and until when; `why` is the first line. */
void keeper_no_progress_report(keeper *k, FILE *out, const char *why);

#endif
