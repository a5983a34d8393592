/* Streams, events and what is queued on them, on the virtual clock.
 *
 * A stream is a queue of operations whose start and end may still be unresolved: an unpriced launch, a wait on an
 * event whose stream is unresolved, a collective whose last rank has not come, a host callback that has not run.
 * `tail = max(tail, now) + duration` cannot hold that, and was rejected. All of it lies in the shared GPU segment,
 * so that whoever brings the missing fact (the pricing service, another rank) can resolve the operations of a process
 * that sleeps. Who waits for an unresolved operation has no deadline and says what it waits for.
 */
#ifndef HL_CORE_TIMELINE_H
#define HL_CORE_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>

#include "price.h"

typedef uint32_t hl_stream; /* index in the shared segment; 0 is no stream */
typedef uint32_t hl_event;  /* index in the shared segment; 0 is no event */

typedef enum hl_progress {
    HL_PROGRESS_DONE = 0,   /* its virtual instant has come */
    HL_PROGRESS_RUNNING,    /* resolved, its instant lies ahead */
    HL_PROGRESS_UNRESOLVED, /* its instant is not known yet */
    HL_PROGRESS_UNRECORDED  /* an event that was never recorded */
} hl_progress;

/* The process's own per-device legacy default stream exists from the start. blocking: takes part in the implicit
 * ordering with it (CUDA: created without cudaStreamNonBlocking). Both return 0 when the segment is full. */
hl_stream hl_timeline_default_stream(uint32_t device);
hl_stream hl_timeline_stream_create(uint32_t device, bool blocking);
void hl_timeline_stream_destroy(hl_stream stream);
hl_event hl_timeline_event_create(void);
void hl_timeline_event_destroy(hl_event event);

/* Put work on a stream. All return at once. The launch is priced from the table or queued for pricing. */
void hl_timeline_launch(hl_stream stream, const hl_launch *launch);
void hl_timeline_record(hl_event event, hl_stream stream);
void hl_timeline_wait_event(hl_stream stream, hl_event event);

/* A collective: starts when every one of `ranks` callers with the same group and sequence has reached it on its own
 * stream, ends for all together. group: hash of the communicator; sequence: its operation counter. */
void hl_timeline_rendezvous(hl_stream stream, uint64_t group, uint64_t sequence, uint32_t ranks, const hl_launch *launch);

/* fn(arg) runs on a helper thread of this process at the virtual instant at which the stream reaches it. */
void hl_timeline_host_callback(hl_stream stream, void (*fn)(void *), void *arg);

hl_progress hl_timeline_stream_query(hl_stream stream); /* a poll: an unfinished answer counts as a spin */
hl_progress hl_timeline_event_query(hl_event event);
void hl_timeline_stream_wait(hl_stream stream);
void hl_timeline_event_wait(hl_event event);
void hl_timeline_device_wait(uint32_t device);          /* this process's streams on it */

/* Elapsed virtual time between two done events. False: one is not done or was never recorded. */
bool hl_timeline_elapsed_ns(hl_event from, hl_event to, int64_t *elapsed_ns);

/* The virtual instant of an event, which may lie ahead. False: not resolved or never recorded. For reports and tests: a
 * program under emulation must not know the future. */
bool hl_timeline_event_instant_ns(hl_event event, int64_t *instant_ns);

/* Graphs: a recipe of launches. Operations put on a capturing stream are kept, not executed; streams joined by event waits
 * while capturing are captured with it, in the order of their calls (nodes run one after the other: see limitations). */
typedef struct hl_graph hl_graph;
bool hl_graph_capturing(hl_stream stream);
uint64_t hl_graph_capture_id(hl_stream stream);          /* 0: not capturing */
int hl_graph_begin(hl_stream stream);                    /* 0 or -EALREADY */
int hl_graph_end(hl_stream stream, hl_graph **graph);    /* 0 or -EINVAL: not capturing */
uint32_t hl_graph_nodes(const hl_graph *graph);
void hl_graph_retain(hl_graph *graph);
void hl_graph_release(hl_graph *graph);
/* Launches every node under the thread's present annotation: parts whose price does not depend on it are summed once. */
void hl_graph_launch(hl_graph *graph, hl_stream stream);

/* Report: device time launched by this run so far, split by coverage (over all processes). */
void hl_timeline_device_time_ns(uint32_t device, int64_t coverage_ns[HL_COVERAGES]);
/* Launches that started so far, and those of them whose duration is unknown (and counted as 0). */
void hl_timeline_device_launches(uint32_t device, uint64_t *launches, uint64_t *unknown);

/* For the no-progress report: one line for each stream with unresolved work and what that waits for, in any process of
 * the run. Takes no lock, so a line may be stale. Returns the length of the text, which is cut at size. */
uint32_t hl_timeline_describe(char *text, uint32_t size);

/* False: destroyed, never created, or of another process (streams). Every other call is fatal with such a handle. */
bool hl_timeline_stream_valid(hl_stream stream);
bool hl_timeline_event_valid(hl_event event);

#endif
