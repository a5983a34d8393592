/* The shared GPU segment: one sparse file `<run_dir>/gpu`, mapped by every process of a run.
 *
 * Why: the instants of a stream's work depend on facts that other processes bring (a price, another rank), so whoever
 * brings a fact must be able to resolve the work of a process that sleeps. That needs streams, events, prices and
 * memory counts in one place that all can write. Messages to a daemon that owns them were rejected: a launch would
 * cost a round trip.
 *
 * Rules. Indices only, never pointers: each process maps the file elsewhere. Index 0 of every table is "none". A lock
 * is held for bounded work only, never across a wait. A process may be killed at any instruction: locks know their
 * owner and are taken over, work is appended by its owner only, and resolving an operation twice gives the same
 * instants. Processes that are no participants (launcher, reports) read without locks, because a participant that
 * sleeps on a lock of theirs would look idle to the time-keeper; the pricing service locks only while the clock is
 * held for a request. */
#ifndef HL_CORE_SEGMENT_H
#define HL_CORE_SEGMENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "price.h"
#include "timeline.h"

#define HL_SEGMENT_MAGIC UINT32_C(0x68796c67)
#define HL_SEGMENT_VERSION 2u
#define HL_SEGMENT_FILE "gpu"

#define HL_SEGMENT_OWNERS 1024u
#define HL_SEGMENT_CONTEXTS 2048u
#define HL_STREAM_INDEX_BITS 14
#define HL_SEGMENT_STREAMS (1u << HL_STREAM_INDEX_BITS)
#define HL_EVENT_INDEX_BITS 20
#define HL_SEGMENT_EVENTS (1u << HL_EVENT_INDEX_BITS)
#define HL_SEGMENT_OPERATIONS (1u << 20)
#define HL_SEGMENT_MARKS (1u << 18)
#define HL_SEGMENT_REQUESTS 4096u
#define HL_SEGMENT_REQUEST_CHAINS 4096u
#define HL_SEGMENT_PRICE_SETS (1u << 15)
#define HL_SEGMENT_PRICE_WAYS 8u
#define HL_SEGMENT_NAMES (1u << 16)
#define HL_SEGMENT_MEETINGS 8192u
#define HL_SEGMENT_MEETING_CHAINS 4096u

/* 0: free; else the owner's index, with the bit when somebody sleeps on it. */
typedef struct hl_lock {
    _Atomic uint32_t word;
} hl_lock;
#define HL_LOCK_WAITED UINT32_C(0x80000000)

/* Elements that were used before (a stack; the upper half of head counts changes) and the first never used one. */
typedef struct hl_pool {
    _Atomic uint64_t head;
    _Atomic uint32_t high;
    _Atomic uint32_t used;
} hl_pool;

typedef struct hl_key {
    uint64_t low, high;
} hl_key;

enum { HL_OWNER_FREE = 0, HL_OWNER_CLAIMED, HL_OWNER_LIVE };

/* A process that maps the segment. */
typedef struct hl_owner {
    _Atomic uint32_t state;
    _Atomic int32_t pid;
    _Atomic uint64_t start_ticks;      /* /proc/PID/stat field 22: a pid that is used again is another process */
    _Atomic uint32_t callbacks_posted; /* futex of its callback thread */
} hl_owner;

/* What one process has on one device. Under the device's lock but for the counts of memory. */
typedef struct hl_context {
    _Atomic uint32_t used;
    uint32_t owner, device;
    uint32_t default_stream;   /* stream index */
    uint32_t first_stream;     /* its streams */
    uint32_t blocking_busy;    /* blocking streams with unresolved work */
    uint64_t blocking_issued;  /* operations put on blocking streams, and on the default stream */
    uint64_t default_issued;
    int64_t blocking_tail_ns;  /* when the resolved work of all its blocking streams ends */
    int64_t tail_ns;           /* the same of all its streams, destroyed ones included */
    _Atomic int64_t charged_bytes;
    _Atomic uint32_t context_charged;
} hl_context;

enum { HL_STREAM_FREE = 0, HL_STREAM_LIVE, HL_STREAM_CLOSING };

typedef struct hl_stream_record {
    _Atomic uint32_t next_free;
    _Atomic uint32_t generation; /* of the handle */
    _Atomic uint32_t state;
    uint32_t owner, context, device;
    bool blocking, is_default;
    _Atomic uint64_t capture_id; /* 0: executes */
    _Atomic int64_t tail_ns;     /* when everything resolved on it ends */
    uint32_t head, last;         /* unresolved operations */
    uint32_t busy_next, busy_previous, context_next, context_previous;
    int64_t floor_ns;            /* resolved work of the other side of the legacy order that it already comes after */
    uint64_t joined;             /* operations of the other side of the legacy order that it already waits for */
} hl_stream_record;

/* 0: never recorded; instant << 1 | 1: resolved; mark << 1: not resolved yet. */
typedef struct hl_event_record {
    _Atomic uint32_t next_free;
    _Atomic uint32_t generation;
    _Atomic uint32_t owner; /* 0: free */
    _Atomic uint32_t stream; /* where it was recorded last, to say what a waiter waits for */
    _Atomic uint64_t state;
    _Atomic uint64_t capture_id;
} hl_event_record;

/* An instant that is not known yet, and which devices have work that waits for it. */
typedef struct hl_mark {
    _Atomic uint32_t next_free;
    _Atomic int32_t references;
    _Atomic uint32_t devices;
    _Atomic int64_t instant_ns; /* HL_MARK_OPEN until known */
} hl_mark;
#define HL_MARK_OPEN INT64_C(-1)

typedef enum hl_operation_kind {
    HL_OPERATION_LAUNCH = 1,
    HL_OPERATION_RECORD,
    HL_OPERATION_WAIT,
    HL_OPERATION_RENDEZVOUS,
    HL_OPERATION_CALLBACK
} hl_operation_kind;

typedef struct hl_operation {
    _Atomic uint32_t next_free;
    uint32_t next;
    uint8_t kind;
    bool resolved;       /* end_ns holds; resolving again changes nothing */
    bool arrived;        /* RENDEZVOUS: counted in its meeting */
    uint32_t unknown;    /* launches of unknown duration in it */
    uint32_t count;      /* launches in it; with a request: of the same price each */
    uint32_t request;    /* LAUNCH, RENDEZVOUS: price on its way */
    uint32_t mark;       /* RECORD: to set; WAIT: to wait for; CALLBACK: its start */
    uint32_t mark_end;   /* CALLBACK: its end */
    hl_event event;      /* RECORD: 0 for a bare mark */
    uint32_t meeting;    /* RENDEZVOUS */
    int64_t issue_ns;    /* when the host put it there, or what it is known to wait for */
    int64_t gap_ns;      /* before it, when it follows other work at once */
    int64_t extra_ns;    /* with it, outside the price: gaps inside a graph */
    int64_t end_ns;      /* WAIT without mark: the instant */
    int64_t duration_ns;
    int64_t coverage_ns[HL_COVERAGES];
} hl_operation;

enum { HL_REQUEST_FREE = 0, HL_REQUEST_QUEUED, HL_REQUEST_TAKEN, HL_REQUEST_ANSWERED };

typedef struct hl_request {
    _Atomic uint32_t next_free;
    uint32_t next_in_chain;
    _Atomic uint32_t state;
    _Atomic int32_t references;
    _Atomic uint32_t devices;
    int32_t pid;          /* holds the clock for it */
    hl_key key, name_hash, annotation_hash;
    uint32_t kind, device, tokens, annotation_length;
    int64_t arg[HL_LAUNCH_ARGS];
    hl_price price;
    char name[1024];
    char annotation[HL_ANNOTATION_TEXT_MAX];
} hl_request;

/* Bounded probing inside one set, so that a full table costs an eviction and never an endless run of probes. */
typedef struct hl_price_set {
    _Atomic uint32_t version;  /* odd: being written */
    uint32_t stamp;
    hl_key key[HL_SEGMENT_PRICE_WAYS];  /* 0,0: empty */
    uint32_t written[HL_SEGMENT_PRICE_WAYS];
    uint8_t passing[HL_SEGMENT_PRICE_WAYS]; /* depends on one batch composition: evicted first */
    hl_price price[HL_SEGMENT_PRICE_WAYS];
} hl_price_set;

typedef struct hl_name {
    hl_key hash;
    _Atomic uint32_t state; /* 0: free; HL_NAME_KNOWN | HL_DEPENDS_* */
} hl_name;
#define HL_NAME_KNOWN UINT32_C(0x100)

/* One collective on its way. */
typedef struct hl_meeting {
    _Atomic uint32_t next_free;
    uint32_t next_in_chain;
    uint64_t group, sequence;
    uint32_t ranks;
    uint32_t joined;  /* ranks that have put it on their stream; all: its name may be used again */
    uint32_t arrived; /* ranks whose stream has reached it */
    uint32_t present; /* operations that refer to it */
    uint32_t devices;
    int64_t ready_ns, duration_ns, end_ns; /* end_ns: HL_MARK_OPEN until the last has arrived */
} hl_meeting;

typedef struct hl_device_state {
    hl_lock lock __attribute__((aligned(64))); /* its streams and their operations */
    hl_lock memory_lock;
    uint32_t first_busy;                       /* streams with unresolved operations */
    uint64_t profile_hash;
    _Atomic int64_t coverage_ns[HL_COVERAGES];
    _Atomic uint64_t launches, unknown_launches;
} hl_device_state;

typedef struct hl_price_counts {
    _Atomic uint64_t requests, answers, unknown_answers, evictions, lasting_evictions;
} hl_price_counts;

typedef struct hl_segment {
    uint32_t magic, version;
    uint64_t size_bytes;
    uint32_t device_count;
    hl_device_facts facts[HL_DEVICES_MAX];
    hl_device_state devices[HL_DEVICES_MAX];

    _Atomic uint32_t generation __attribute__((aligned(64))); /* futex: some operation was resolved */
    hl_lock registry_lock __attribute__((aligned(64)));       /* contexts, reaping */
    hl_lock request_lock, table_lock, meeting_lock;

    hl_pool streams_pool, events_pool, operations_pool, marks_pool, requests_pool, meetings_pool;
    _Atomic uint32_t contexts_high;

    _Atomic uint32_t requests_posted __attribute__((aligned(64))); /* futex of the pricing service */
    _Atomic uint32_t fifo_head, fifo_tail;
    _Atomic int32_t service_pid;
    _Atomic uint32_t names_used, names_changed;
    hl_price_counts price_counts;

    hl_owner owners[HL_SEGMENT_OWNERS];
    hl_context contexts[HL_SEGMENT_CONTEXTS];
    uint32_t fifo[HL_SEGMENT_REQUESTS];
    uint32_t request_chains[HL_SEGMENT_REQUEST_CHAINS];
    uint32_t meeting_chains[HL_SEGMENT_MEETING_CHAINS];
    hl_stream_record streams[HL_SEGMENT_STREAMS];
    hl_name names[HL_SEGMENT_NAMES];
    hl_meeting meetings[HL_SEGMENT_MEETINGS];
    hl_mark marks[HL_SEGMENT_MARKS];
    hl_event_record events[HL_SEGMENT_EVENTS];
    hl_operation operations[HL_SEGMENT_OPERATIONS];
    hl_price_set prices[HL_SEGMENT_PRICE_SETS];
    hl_request requests[HL_SEGMENT_REQUESTS];
} hl_segment;

/* The mapped segment of this process; NULL where HYPERLAPSE_RUN_DIR names none. Maps it at the first call. */
hl_segment *hl_segment_get(void);

/* The same, fatal when there is none. */
hl_segment *hl_segment_need(void);

/* Launcher and pricing service: maps the segment of a run directory. 0 or -errno. */
int hl_segment_open(const char *run_dir);

/* This process's index among the owners; registers it when it has none (start, fork). */
uint32_t hl_segment_self(void);

/* This process's context on the device, made when there is none. Index into contexts. */
uint32_t hl_segment_context(hl_segment *segment, uint32_t device);

/* Gives back what dead processes held. True when there was one. Call without any lock. */
bool hl_segment_reap(hl_segment *segment);
bool hl_segment_owner_is_dead(hl_segment *segment, uint32_t owner);

/* Says that something was resolved. Call without any lock. */
void hl_segment_announce(hl_segment *segment);

void hl_lock_acquire_slowly(hl_lock *lock, uint32_t self);

static inline void hl_lock_acquire(hl_lock *lock)
{
    uint32_t self = hl_segment_self(), nobody = 0;
    if (!atomic_compare_exchange_strong_explicit(&lock->word, &nobody, self, memory_order_acquire, memory_order_relaxed))
        hl_lock_acquire_slowly(lock, self);
}

void hl_lock_wake(hl_lock *lock);

static inline void hl_lock_release(hl_lock *lock)
{
    if (atomic_exchange_explicit(&lock->word, 0, memory_order_release) & HL_LOCK_WAITED)
        hl_lock_wake(lock);
}

/* base: the table's address; every element starts with its next_free word. 0: the pool is empty. */
uint32_t hl_pool_take(hl_pool *pool, void *base, size_t stride, uint32_t capacity);
void hl_pool_give(hl_pool *pool, void *base, size_t stride, uint32_t index);

#define HL_TAKE(segment, table, capacity) \
    hl_pool_take(&(segment)->table##_pool, (segment)->table, sizeof (segment)->table[0], (capacity))
#define HL_GIVE(segment, table, index) \
    hl_pool_give(&(segment)->table##_pool, (segment)->table, sizeof (segment)->table[0], (index))

#endif
