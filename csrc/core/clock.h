/* The clock as the rest of the core sees it: read it, wait on it, hold it.
 *
 * Why: streams, bridges and the libc wrappers must share one way to wait for a virtual instant; a second one
 * would be a second place where time can go wrong. Everything here is integer nanoseconds of the virtual
 * CLOCK_MONOTONIC. Nothing here may call a libc function that libhyperlapse_clock.so interposes (raw system
 * calls only, see sys.h), or a wait inside a wait would deadlock on the clock it is part of.
 *
 * Without a run directory in the environment the clock is real: hl_clock_active() is false, now is
 * CLOCK_MONOTONIC and waits sleep.
 */
#ifndef HL_CORE_CLOCK_H
#define HL_CORE_CLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define HL_NEVER_NS INT64_MAX

/* What a thread waits for; printed by the no-progress report, never used to decide anything. */
typedef enum hl_wait_reason {
    HL_WAIT_NONE = 0,
    HL_WAIT_SLEEP,
    HL_WAIT_FDS,        /* poll, select, epoll */
    HL_WAIT_SEMAPHORE,
    HL_WAIT_CONDITION,
    HL_WAIT_FUTEX,
    HL_WAIT_READ,       /* blocking read, recv, accept */
    HL_WAIT_CHILD,      /* waitpid */
    HL_WAIT_DEVICE,     /* a resolved stream or event: has a deadline */
    HL_WAIT_PRICE,      /* an unpriced launch */
    HL_WAIT_RENDEZVOUS, /* another rank */
    HL_WAIT_HOST_TIME,  /* host time charged to this thread */
    HL_WAIT_SPIN,       /* polls without result */
    HL_WAIT_REASONS
} hl_wait_reason;

const char *hl_clock_reason_text(hl_wait_reason reason);

/* True when this process takes part in a run (HYPERLAPSE_RUN_DIR names one). */
bool hl_clock_active(void);

/* The virtual CLOCK_MONOTONIC. One load in a frozen run. */
int64_t hl_clock_now_ns(void);

/* Real CLOCK_MONOTONIC, for reports and for time spent outside the run. */
int64_t hl_clock_real_ns(void);

/* Returns when the virtual clock has reached deadline_ns, exactly (no overshoot when frozen). Never EINTR. */
void hl_clock_wait_until(int64_t deadline_ns, hl_wait_reason reason);

/* Waits until *word != seen or the virtual clock has reached deadline_ns (HL_NEVER_NS: only the word).
 * The word lies in memory shared between processes. Returns true when the word changed. */
bool hl_clock_wait_word(_Atomic uint32_t *word, uint32_t seen, int64_t deadline_ns, hl_wait_reason reason);

/* Wakes every thread in hl_clock_wait_word on this word (the caller has changed it). */
void hl_clock_wake_word(_Atomic uint32_t *word);

/* Call after a poll without result (cudaEventQuery -> not ready, sched_yield): after some of them the thread
 * counts as waiting and returns at each jump for one more look. next_ns: the earliest instant at which the
 * poll can succeed by itself, or HL_NEVER_NS. */
void hl_clock_spin(int64_t next_ns);

/* While any process holds the clock no jump is made (an unpriced launch is on its way). Counted per process, so
 * that a process that dies gives its holds back. Balanced calls. */
void hl_clock_hold(void);
void hl_clock_release(void);

/* A hold taken by one process and released by another: the pricing service gives back what the launcher took. */
void hl_clock_release_for(int32_t pid);

#endif
