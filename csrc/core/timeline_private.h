/* Between the files of the timeline: streams (timeline.c), resolving (timeline_resolve.c), events (timeline_event.c),
 * host callbacks (timeline_callback.c), collectives (rendezvous.c) and graphs (graph.c). */
#ifndef HL_CORE_TIMELINE_PRIVATE_H
#define HL_CORE_TIMELINE_PRIVATE_H

#include "segment_private.h"

/* What a call under a device's lock found out; hl_timeline_finish passes it on after the lock. */
typedef struct hl_news {
    uint32_t kicks;  /* devices whose work may now be resolvable */
    bool resolved;   /* something was: wake who waits */
} hl_news;

/* The record of a handle; fatal when it was destroyed, never created, or belongs to another process (after a fork). */
hl_stream_record *hl_timeline_stream_of(hl_segment *segment, hl_stream stream, const char *user);
hl_event_record *hl_timeline_event_of(hl_segment *segment, hl_event event, const char *user);
uint32_t hl_timeline_stream_index(const hl_segment *segment, const hl_stream_record *stream);

/* Waits (back-pressure) until `count` operations can be queued. Before the lock. */
void hl_timeline_reserve(hl_segment *segment, uint32_t count);

/* Under the device's lock, before each operation: what comes before it by the order with the legacy default stream moves
 * the stream's tail, or is queued for. Returns now. */
int64_t hl_timeline_order(hl_segment *segment, hl_stream_record *stream);

/* Under the lock. Appends a copy of the operation to the stream's queue and tries to resolve it. */
void hl_timeline_append(hl_segment *segment, hl_stream_record *stream, const hl_operation *operation, hl_news *news);
void hl_timeline_set_tail(hl_segment *segment, hl_stream_record *stream, int64_t tail_ns);

/* Under the lock, stream without unresolved work: puts priced work of this duration on it. */
void hl_timeline_advance(hl_segment *segment, hl_stream_record *stream, const hl_operation *operation);

/* Releases the device's lock, wakes and kicks. */
void hl_timeline_finish(hl_segment *segment, uint32_t device, const hl_news *news);

/* A launch or a run of launches (graphs): lock, order, put, unlock. issue_ns of the operation: 0 for now. */
void hl_timeline_put(hl_segment *segment, hl_stream_record *stream, hl_operation *operation);

/* Marks. make: with that many references, told to these devices. share: one more, false when it is being freed. */
uint32_t hl_mark_make(hl_segment *segment, int32_t references, uint32_t devices);
bool hl_mark_share(hl_segment *segment, uint32_t mark);
void hl_mark_drop(hl_segment *segment, uint32_t mark);
void hl_mark_set(hl_segment *segment, uint32_t mark, int64_t instant_ns, hl_news *news);
/* Returns the instant; waits until it is known (not until it has come). stream: whose work sets it. */
int64_t hl_mark_wait(hl_segment *segment, uint32_t mark, hl_stream_record *stream);

/* rendezvous.c. Under the device's lock. arrive: counts this operation in, ready at that instant. done: true when all
 * have come, and *end_ns. leave: done with it. withdraw: its process is dead. */
void hl_rendezvous_arrive(hl_segment *segment, hl_operation *operation, uint32_t device, int64_t ready_ns, hl_news *news);
bool hl_rendezvous_done(hl_segment *segment, hl_operation *operation, int64_t *end_ns);
void hl_rendezvous_leave(hl_segment *segment, hl_operation *operation);
void hl_rendezvous_withdraw(hl_segment *segment, hl_operation *operation);
/* Puts a collective on a stream that executes. in_graph: its launch gap is the graph's. */
void hl_rendezvous_put(hl_segment *segment, hl_stream_record *stream, uint64_t group, uint64_t sequence, uint32_t ranks,
                       const hl_launch *launch, int64_t gap_ns, int64_t extra_ns, int64_t issue_ns);

/* graph.c: what the calls do on a capturing stream. */
void hl_graph_keep_launch(uint64_t capture, const hl_launch *launch);
void hl_graph_keep_rendezvous(uint64_t capture, uint64_t group, uint64_t sequence, uint32_t ranks, const hl_launch *launch);
void hl_graph_keep_callback(uint64_t capture, void (*fn)(void *), void *arg);
/* A capturing stream, or one that waits for an event recorded in a capture. True: the capture took care of it. */
bool hl_graph_wait_event(hl_stream_record *stream, hl_stream handle, hl_event_record *event);

#endif
