/* The clock page: the one shared-memory page set through which all participants of a host see the same virtual time.
 *
 * Rules. Time words have one writer, the time-keeper. A slot belongs to one thread; only its thread and the
 * time-keeper write it. Counters (activity, running) are hints that say when a look is worth it; they never prove
 * anything: the proof is the kernel's run state of every thread (csrc/keeper/proof.c). A design in which counters
 * decide was tried and loses messages (a woken thread that has not run yet is still counted as blocked).
 */
#ifndef HL_CORE_PAGE_H
#define HL_CORE_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "clock.h"
#include "hosts.h"

#define HL_PAGE_MAGIC UINT32_C(0x68796c61)
#define HL_PAGE_VERSION 4u
#define HL_PAGE_FILE "clock"
#define HL_SLOTS_MAX 4096
#define HL_PROCESSES_MAX 512
#define HL_EXEMPT_MAX 64
#define HL_EVENTS_MAX 512

/* Where virtual CLOCK_MONOTONIC starts: small, so that a double of seconds keeps it to far below 1 ns. */
#define HL_PAGE_START_NS (INT64_C(1000) * INT64_C(1000000000))
/* The date that an epoch stands for, 2026-01-01T00:00:00Z: programs that compute with time.time() round the same way on
 * every day. */
#define HL_PAGE_EPOCH_DATE_NS (INT64_C(1767225600) * INT64_C(1000000000))

#define HL_EVENT_KIND_BYTES 32
#define HL_EVENT_TEXT_BYTES 200

/* Wakes a thread out of a kernel wait. glibc keeps the first two real-time signals; this one is far from what programs use. */
#define HL_WAKE_SIGNAL_FROM_MAX 2 /* SIGRTMAX - 2 */

typedef enum hl_clock_mode {
    HL_MODE_REAL = 0, /* virtual = real + offset, no jumps: start-up of a server */
    HL_MODE_PARKED,   /* stands still, no jumps: between start-up and the load generator */
    HL_MODE_FROZEN,   /* moves by jumps only */
    HL_MODE_FLOW,     /* follows real time while anybody runs, jumps when nobody does */
    HL_MODE_HELD,     /* frozen, shared with other hosts, which may just have moved it: reads wait (hosts.h) */
    HL_MODES
} hl_clock_mode;

typedef enum hl_slot_state { HL_SLOT_RUNNING = 0, HL_SLOT_BLOCKED, HL_SLOT_UNWRAPPED } hl_slot_state;

typedef enum hl_wake_kind {
    HL_WAKE_WORD = 0,  /* the slot's own futex: exact, no signal */
    HL_WAKE_SIGNAL,    /* a kernel wait: interrupt it */
    HL_WAKE_CONDITION, /* a glibc condition variable: its process's broadcaster thread */
    HL_WAKE_SPIN       /* a parked poller: woken at every jump */
} hl_wake_kind;

typedef struct hl_slot {
    _Atomic int32_t pid; /* 0: free */
    _Atomic int32_t tid;
    _Atomic int64_t deadline_ns; /* HL_NEVER_NS: none */
    _Atomic uint32_t word;       /* futex: changed by the time-keeper to wake */
    _Atomic uint32_t state;      /* hl_slot_state, a hint */
    _Atomic uint32_t wake;       /* hl_wake_kind */
    _Atomic uint32_t reason;     /* hl_wait_reason */
    _Atomic uint32_t lazy;       /* a background timer: never makes a jump, fires when its instant has passed */
    _Atomic uint32_t parks;      /* how often it parked as a spinner */
    _Atomic int64_t woken_real_ns;
    _Atomic uint64_t jumps;      /* jumps made for this thread's deadline */
    _Atomic uintptr_t condition; /* pthread_cond_t * in its own process */
    _Atomic uint32_t condition_busy;
    _Atomic uint32_t broadcast_due; /* set by the time-keeper for the broadcaster */
} __attribute__((aligned(128))) hl_slot;

typedef struct hl_process {
    _Atomic int32_t pid;            /* 0: free */
    _Atomic int32_t holds;          /* outstanding holds of this process */
    _Atomic uint64_t start_stack;   /* /proc/PID/stat field 28: differs after every exec */
    _Atomic uint32_t broadcast;     /* futex of the process's condition broadcaster */
} hl_process;

typedef struct hl_event_count {
    _Atomic uint32_t used; /* 0 free, 1 being written, 2 valid */
    _Atomic uint64_t count;
    char kind[HL_EVENT_KIND_BYTES];
    char text[HL_EVENT_TEXT_BYTES];
} hl_event_count;

typedef enum hl_keeper_state { HL_KEEPER_STARTING = 0, HL_KEEPER_RUNNING, HL_KEEPER_NO_PROGRESS, HL_KEEPER_STOPPED } hl_keeper_state;

typedef struct hl_page {
    uint32_t magic, version;
    uint64_t size_bytes;
    _Atomic int64_t realtime_offset_ns; /* virtual CLOCK_REALTIME - virtual CLOCK_MONOTONIC; changes only with an epoch */
    int32_t launcher_pid;           /* its descendants, less the exempt ones, are the run */

    _Atomic uint32_t mode __attribute__((aligned(64)));
    _Atomic int64_t now_ns;         /* parked, frozen */
    _Atomic int64_t offset_ns;      /* real, flow: virtual = real + offset */

    _Atomic uint64_t activity __attribute__((aligned(64))); /* changed by every wrapped wait, in and out */
    _Atomic int32_t running;                                /* threads whose slot says running */

    _Atomic uint32_t keeper_word __attribute__((aligned(64))); /* futex: something for the time-keeper */
    _Atomic uint32_t keeper_sleeps;
    _Atomic uint32_t keeper_state;
    _Atomic int32_t keeper_pid;
    _Atomic int64_t trigger_real_ns;

    /* Requests of the launcher, carried out by the time-keeper: write the values, then bump `asked`. */
    _Atomic uint32_t asked, done, asking;
    _Atomic uint32_t asked_mode;
    _Atomic int64_t asked_epoch_ns; /* > 0: move a parked clock forward to this instant */

    _Atomic uint32_t no_progress_s; /* 0: never give up */
    _Atomic uint32_t outside;       /* 1: people or programs outside of the run may answer what its processes wait for */
    _Atomic int32_t slots_used;
    _Atomic int32_t exempt[HL_EXEMPT_MAX];
    _Atomic uint32_t registrations; /* bumped by every process that registers */
    _Atomic uint32_t room_wanted;   /* 1: `processes` is full; the time-keeper is to look which of them have ended */
    hl_process processes[HL_PROCESSES_MAX];

    /* Written by the time-keeper, read by reports. */
    _Atomic uint64_t jumps, proofs, proofs_refused, second_pass_refused, unwrapped_blocks, spinner_kicks, enumerations;
    _Atomic uint64_t trigger_to_wake_ns_total, proof_ns_total, lazy_fires, signals_repeated;
    _Atomic uint32_t threads, threads_max, external_processes;
    _Atomic int32_t external_pid;

    hl_event_count events[HL_EVENTS_MAX];
    hl_slot slots[HL_SLOTS_MAX];
    hl_hosts hosts;
} hl_page;

/* The mapped page of this process; NULL outside a run. */
hl_page *hl_page_get(void);

/* Launcher only: creates the page file in run_dir. 0 or -errno. */
int hl_page_create(const char *run_dir, int32_t launcher_pid);

/* The virtual time that the page shows now (any mode). */
int64_t hl_page_now_ns(const hl_page *page);

/* The virtual clock's offset of CLOCK_REALTIME. */
int64_t hl_page_realtime_offset_ns(void);

/* This process's entry; registers it when it has none (start, fork, exec). Fatal when the table is full. */
hl_process *hl_page_process(void);

/* Wakes the time-keeper if it sleeps. */
void hl_page_kick(hl_page *page);

#endif
