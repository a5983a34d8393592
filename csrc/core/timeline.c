/* Streams: creating them, putting launches on them, waiting for them. See timeline.h; resolving is timeline_resolve.c. */
#include "timeline.h"

#include <string.h>

#include "clock.h"
#include "export.h"
#include "price_private.h"
#include "report.h"
#include "timeline_private.h"

/* Room that is kept for operations which a call needs beyond the one it reserved for (order with the default stream). */
#define OPERATIONS_KEPT (1u << 16)

uint32_t hl_timeline_stream_index(const hl_segment *segment, const hl_stream_record *stream)
{
    return (uint32_t)(stream - segment->streams);
}

static hl_stream handle_of(hl_segment *segment, uint32_t index)
{
    return atomic_load(&segment->streams[index].generation) << HL_STREAM_INDEX_BITS | index;
}

hl_stream_record *hl_timeline_stream_of(hl_segment *segment, hl_stream stream, const char *user)
{
    uint32_t index = stream & (HL_SEGMENT_STREAMS - 1);
    hl_stream_record *record = &segment->streams[index];
    if (!index || atomic_load_explicit(&record->state, memory_order_relaxed) != HL_STREAM_LIVE ||
        handle_of(segment, index) != stream)
        hl_report_fatal("%s on stream 0x%x, which was destroyed or never created", user, stream);
    if (record->owner != hl_segment_self())
        hl_report_fatal("%s on stream 0x%x of another process: after fork() a child cannot use its parent's device; start it with "
                        "the spawn method", user, stream);
    return record;
}

HL_EXPORT bool hl_timeline_stream_valid(hl_stream stream)
{
    hl_segment *segment = hl_segment_get();
    uint32_t index = stream & (HL_SEGMENT_STREAMS - 1);
    return segment && index && atomic_load(&segment->streams[index].state) == HL_STREAM_LIVE &&
           handle_of(segment, index) == stream && segment->streams[index].owner == hl_segment_self();
}

/* Under the device's lock. 0: no room. */
static uint32_t make_stream(hl_segment *segment, uint32_t context_index, bool blocking, bool is_default)
{
    hl_context *context = &segment->contexts[context_index];
    uint32_t index = HL_TAKE(segment, streams, HL_SEGMENT_STREAMS);
    if (!index)
        return 0;
    hl_stream_record *stream = &segment->streams[index];
    stream->owner = context->owner;
    stream->context = context_index;
    stream->device = context->device;
    stream->blocking = blocking;
    stream->is_default = is_default;
    atomic_store(&stream->capture_id, 0);
    atomic_store(&stream->tail_ns, 0);
    stream->head = stream->last = 0;
    stream->busy_next = stream->busy_previous = 0;
    stream->floor_ns = 0;
    stream->joined = 0;
    stream->context_previous = 0;
    stream->context_next = context->first_stream;
    if (context->first_stream)
        segment->streams[context->first_stream].context_previous = index;
    context->first_stream = index;
    atomic_store(&stream->state, HL_STREAM_LIVE);
    return index;
}

/* Under the lock: a context's default stream exists from the start. */
static uint32_t default_of(hl_segment *segment, uint32_t context)
{
    if (!segment->contexts[context].default_stream)
        segment->contexts[context].default_stream = make_stream(segment, context, true, true);
    return segment->contexts[context].default_stream;
}

static hl_stream create(uint32_t device, bool blocking, bool is_default)
{
    hl_segment *segment = hl_segment_need();
    uint32_t context = hl_segment_context(segment, device), index = 0;
    for (bool again = true; !index && again;) {
        hl_lock_acquire(&segment->devices[device].lock);
        index = default_of(segment, context);
        if (index && !is_default)
            index = make_stream(segment, context, blocking, false);
        hl_lock_release(&segment->devices[device].lock);
        again = !index && hl_segment_reap(segment);
    }
    return index ? handle_of(segment, index) : 0;
}

HL_EXPORT hl_stream hl_timeline_default_stream(uint32_t device)
{
    hl_segment *segment = hl_segment_need();
    uint32_t context = hl_segment_context(segment, device);
    uint32_t index = __atomic_load_n(&segment->contexts[context].default_stream, __ATOMIC_ACQUIRE);
    return index ? handle_of(segment, index) : create(device, true, true);
}

HL_EXPORT hl_stream hl_timeline_stream_create(uint32_t device, bool blocking) { return create(device, blocking, false); }

HL_EXPORT void hl_timeline_stream_destroy(hl_stream handle)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "destroy");
    if (stream->is_default)
        return; /* CUDA: the default stream lasts as long as its context */
    hl_news news = {0};
    hl_lock_acquire(&segment->devices[stream->device].lock);
    uint32_t device = stream->device;
    atomic_store(&stream->state, HL_STREAM_CLOSING);
    /* Its queued work still runs, as with CUDA; an empty operation at its end frees the record. */
    hl_timeline_append(segment, stream, &(hl_operation){.kind = HL_OPERATION_WAIT}, &news);
    hl_timeline_finish(segment, device, &news);
}

void hl_timeline_reserve(hl_segment *segment, uint32_t count)
{
    while (__builtin_expect(atomic_load_explicit(&segment->operations_pool.used, memory_order_relaxed) + count >
                                HL_SEGMENT_OPERATIONS - OPERATIONS_KEPT, 0)) {
        uint32_t seen = atomic_load(&segment->generation);
        if (hl_segment_reap(segment))
            continue;
        hl_clock_wait_word(&segment->generation, seen, HL_NEVER_NS, HL_WAIT_PRICE);
    }
}

/* Under the lock: `after` waits for everything that is on `before` now. */
static void wait_for_tail(hl_segment *segment, hl_stream_record *before, hl_stream_record *after)
{
    hl_news news = {0}; /* both are on one device and before is unresolved: nothing can come of it */
    uint32_t mark = hl_mark_make(segment, 2, 1u << after->device);
    hl_timeline_append(segment, before, &(hl_operation){.kind = HL_OPERATION_RECORD, .mark = mark}, &news);
    hl_timeline_append(segment, after, &(hl_operation){.kind = HL_OPERATION_WAIT, .mark = mark}, &news);
}

static int64_t after_blocking_streams(hl_segment *segment, hl_context *context, hl_stream_record *stream)
{
    if (context->blocking_busy && stream->joined != context->blocking_issued)
        for (uint32_t index = context->first_stream; index; index = segment->streams[index].context_next) {
            hl_stream_record *other = &segment->streams[index];
            if (other->blocking && !other->is_default && other->head)
                wait_for_tail(segment, other, stream);
        }
    stream->joined = context->blocking_issued;
    context->default_issued++;
    return context->blocking_tail_ns;
}

static int64_t after_default_stream(hl_segment *segment, hl_context *context, hl_stream_record *stream)
{
    hl_stream_record *other = &segment->streams[context->default_stream];
    if (other->head && stream->joined != context->default_issued)
        wait_for_tail(segment, other, stream);
    stream->joined = context->default_issued;
    context->blocking_issued++;
    return atomic_load_explicit(&other->tail_ns, memory_order_relaxed);
}

/* Resolved and unresolved work before it have the same effect, or instants would depend on how soon prices come. */
int64_t hl_timeline_order(hl_segment *segment, hl_stream_record *stream)
{
    int64_t now_ns = hl_clock_now_ns(), floor_ns = 0;
    hl_context *context = &segment->contexts[stream->context];
    if (stream->is_default)
        floor_ns = after_blocking_streams(segment, context, stream);
    else if (stream->blocking)
        floor_ns = after_default_stream(segment, context, stream);
    if (floor_ns <= now_ns || floor_ns <= stream->floor_ns)
        return now_ns;
    hl_news news = {0};
    stream->floor_ns = floor_ns;
    if (stream->head)
        hl_timeline_append(segment, stream, &(hl_operation){.kind = HL_OPERATION_WAIT, .end_ns = floor_ns}, &news);
    else
        hl_timeline_set_tail(segment, stream, floor_ns);
    return now_ns;
}

void hl_timeline_put(hl_segment *segment, hl_stream_record *stream, hl_operation *operation)
{
    hl_news news = {0};
    uint32_t device = stream->device;
    hl_timeline_reserve(segment, 1);
    hl_lock_acquire(&segment->devices[device].lock);
    int64_t now_ns = hl_timeline_order(segment, stream);
    if (!operation->issue_ns)
        operation->issue_ns = now_ns;
    if (!stream->head && !operation->request && operation->kind == HL_OPERATION_LAUNCH)
        hl_timeline_advance(segment, stream, operation);
    else
        hl_timeline_append(segment, stream, operation, &news);
    hl_timeline_finish(segment, device, &news);
}

HL_EXPORT void hl_timeline_launch(hl_stream handle, const hl_launch *launch)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "launch");
    uint64_t capture = atomic_load_explicit(&stream->capture_id, memory_order_relaxed);
    if (capture) {
        hl_graph_keep_launch(capture, launch);
        return;
    }
    hl_price price = {0};
    hl_operation operation = {.kind = HL_OPERATION_LAUNCH, .count = 1};
    /* A whole step's price holds the gaps between its kernels already. */
    operation.gap_ns = launch->kind == HL_LAUNCH_STEP ? 0 : segment->facts[stream->device].launch_gap_ns;
    operation.request = hl_price_want(segment, launch, 1u << stream->device, &price);
    operation.duration_ns = price.duration_ns;
    operation.unknown = price.coverage == HL_COVERAGE_UNKNOWN;
    memcpy(operation.coverage_ns, price.coverage_ns, sizeof price.coverage_ns);
    hl_timeline_put(segment, stream, &operation);
}

static hl_wait_reason reason_of(hl_segment *segment, hl_stream_record *stream)
{
    hl_wait_reason reason = HL_WAIT_DEVICE;
    hl_lock_acquire(&segment->devices[stream->device].lock);
    if (stream->head) {
        hl_operation *operation = &segment->operations[stream->head];
        if (operation->request)
            reason = HL_WAIT_PRICE;
        else if (operation->kind == HL_OPERATION_RENDEZVOUS)
            reason = HL_WAIT_RENDEZVOUS;
    }
    hl_lock_release(&segment->devices[stream->device].lock);
    return reason;
}

int64_t hl_mark_wait(hl_segment *segment, uint32_t mark, hl_stream_record *stream)
{
    for (;;) {
        uint32_t seen = atomic_load(&segment->generation);
        int64_t instant_ns = atomic_load(&segment->marks[mark].instant_ns);
        if (instant_ns != HL_MARK_OPEN)
            return instant_ns;
        hl_clock_wait_word(&segment->generation, seen, HL_NEVER_NS, reason_of(segment, stream));
    }
}

/* When everything that is on the stream now ends. mark_out: 0, or a mark that will say it (one reference). */
static int64_t end_of(hl_segment *segment, hl_stream_record *stream, bool with_mark, uint32_t *mark_out)
{
    hl_news news = {0};
    uint32_t device = stream->device;
    int64_t end_ns = HL_MARK_OPEN;
    *mark_out = 0;
    hl_lock_acquire(&segment->devices[device].lock);
    hl_context *context = &segment->contexts[stream->context];
    if (!stream->head && !(stream->is_default && context->blocking_busy)) {
        end_ns = atomic_load(&stream->tail_ns);
        if (stream->is_default && context->blocking_tail_ns > end_ns)
            end_ns = context->blocking_tail_ns;
    } else if (with_mark) {
        *mark_out = hl_mark_make(segment, 2, 0);
        if (stream->is_default)
            after_blocking_streams(segment, context, stream);
        hl_timeline_append(segment, stream, &(hl_operation){.kind = HL_OPERATION_RECORD, .mark = *mark_out}, &news);
    }
    hl_timeline_finish(segment, device, &news);
    return end_ns;
}

HL_EXPORT void hl_timeline_stream_wait(hl_stream handle)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "synchronise");
    uint32_t mark;
    hl_timeline_reserve(segment, 1);
    int64_t end_ns = end_of(segment, stream, true, &mark);
    if (mark) {
        end_ns = hl_mark_wait(segment, mark, stream);
        hl_mark_drop(segment, mark);
    }
    hl_clock_wait_until(end_ns, HL_WAIT_DEVICE);
}

HL_EXPORT hl_progress hl_timeline_stream_query(hl_stream handle)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "query");
    for (int look = 0;; look++) {
        uint32_t mark;
        int64_t end_ns = end_of(segment, stream, false, &mark);
        if (end_ns != HL_MARK_OPEN && end_ns <= hl_clock_now_ns())
            return HL_PROGRESS_DONE;
        if (look)
            return end_ns == HL_MARK_OPEN ? HL_PROGRESS_UNRESOLVED : HL_PROGRESS_RUNNING;
        hl_clock_spin(end_ns == HL_MARK_OPEN ? HL_NEVER_NS : end_ns);
    }
}

HL_EXPORT void hl_timeline_device_wait(uint32_t device)
{
    hl_segment *segment = hl_segment_need();
    hl_context *context = &segment->contexts[hl_segment_context(segment, device)];
    int64_t end_ns;
    for (;;) {
        uint32_t seen = atomic_load(&segment->generation);
        hl_stream_record *busy = NULL;
        hl_lock_acquire(&segment->devices[device].lock);
        for (uint32_t index = context->first_stream; index; index = segment->streams[index].context_next)
            if (segment->streams[index].head)
                busy = &segment->streams[index];
        end_ns = context->tail_ns;
        hl_lock_release(&segment->devices[device].lock);
        if (!busy)
            break;
        hl_clock_wait_word(&segment->generation, seen, HL_NEVER_NS, reason_of(segment, busy));
    }
    hl_clock_wait_until(end_ns, HL_WAIT_DEVICE);
}

HL_EXPORT void hl_timeline_device_time_ns(uint32_t device, int64_t coverage_ns[HL_COVERAGES])
{
    hl_segment *segment = hl_segment_need();
    for (int i = 0; i < HL_COVERAGES; i++)
        coverage_ns[i] = device < segment->device_count ? atomic_load(&segment->devices[device].coverage_ns[i]) : 0;
}

HL_EXPORT void hl_timeline_device_launches(uint32_t device, uint64_t *launches, uint64_t *unknown)
{
    hl_segment *segment = hl_segment_need();
    bool exists = device < segment->device_count;
    *launches = exists ? atomic_load(&segment->devices[device].launches) : 0;
    *unknown = exists ? atomic_load(&segment->devices[device].unknown_launches) : 0;
}
