/* Events: instants of streams that programs hold in their hands. See timeline.h.
 *
 * An event's state is one word (segment.h), so that a record on one device and a look from another need no common
 * lock. A wait takes the record that is current when it is called, as CUDA has it: a later record does not move it. */
#include "clock.h"
#include "export.h"
#include "report.h"
#include "timeline.h"
#include "timeline_private.h"

static hl_event handle_of(hl_segment *segment, uint32_t index)
{
    return atomic_load(&segment->events[index].generation) << HL_EVENT_INDEX_BITS | index;
}

static uint32_t index_of(hl_event event) { return event & (HL_SEGMENT_EVENTS - 1); }

HL_EXPORT bool hl_timeline_event_valid(hl_event event)
{
    hl_segment *segment = hl_segment_get();
    uint32_t index = index_of(event);
    return segment && index && atomic_load_explicit(&segment->events[index].owner, memory_order_relaxed) &&
           handle_of(segment, index) == event;
}

hl_event_record *hl_timeline_event_of(hl_segment *segment, hl_event event, const char *user)
{
    if (!hl_timeline_event_valid(event))
        hl_report_fatal("%s of event 0x%x, which was destroyed or never created", user, event);
    return &segment->events[index_of(event)];
}

HL_EXPORT hl_event hl_timeline_event_create(void)
{
    hl_segment *segment = hl_segment_need();
    uint32_t self = hl_segment_self(), index = HL_TAKE(segment, events, HL_SEGMENT_EVENTS);
    if (!index && hl_segment_reap(segment))
        index = HL_TAKE(segment, events, HL_SEGMENT_EVENTS);
    if (!index)
        return 0;
    atomic_store(&segment->events[index].state, 0);
    atomic_store(&segment->events[index].capture_id, 0);
    atomic_store(&segment->events[index].owner, self);
    return handle_of(segment, index);
}

static bool is_pending(uint64_t state) { return state && !(state & 1); }
static int64_t instant_of(uint64_t state) { return (int64_t)(state >> 1); }

static void set_state(hl_segment *segment, hl_event_record *event, uint64_t state)
{
    uint64_t before = atomic_exchange(&event->state, state);
    if (is_pending(before))
        hl_mark_drop(segment, (uint32_t)(before >> 1));
}

HL_EXPORT void hl_timeline_event_destroy(hl_event handle)
{
    hl_segment *segment = hl_segment_need();
    hl_event_record *event = hl_timeline_event_of(segment, handle, "destruction");
    atomic_fetch_add(&event->generation, 1);
    atomic_store(&event->owner, 0);
    set_state(segment, event, 0);
    HL_GIVE(segment, events, index_of(handle));
}

HL_EXPORT void hl_timeline_record(hl_event handle, hl_stream stream_handle)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, stream_handle, "record");
    hl_event_record *event = hl_timeline_event_of(segment, handle, "record");
    uint64_t capture = atomic_load(&stream->capture_id);
    atomic_store(&event->capture_id, capture);
    if (capture)
        return; /* it orders nodes of the graph, and these run in the order of their calls anyway */
    hl_news news = {0};
    uint32_t device = stream->device;
    atomic_store_explicit(&event->stream, hl_timeline_stream_index(segment, stream), memory_order_relaxed);
    hl_timeline_reserve(segment, 1);
    hl_lock_acquire(&segment->devices[device].lock);
    int64_t now_ns = hl_timeline_order(segment, stream);
    if (!stream->head) {
        int64_t tail_ns = atomic_load(&stream->tail_ns);
        set_state(segment, event, (uint64_t)(tail_ns > now_ns ? tail_ns : now_ns) << 1 | 1);
    } else {
        uint32_t mark = hl_mark_make(segment, 2, 0);
        set_state(segment, event, (uint64_t)mark << 1);
        hl_operation operation = {.kind = HL_OPERATION_RECORD, .event = index_of(handle), .mark = mark, .issue_ns = now_ns};
        hl_timeline_append(segment, stream, &operation, &news);
    }
    hl_timeline_finish(segment, device, &news);
}

/* The event's present state; for an unresolved one with a reference to its mark. */
static uint64_t look(hl_segment *segment, hl_event_record *event)
{
    for (;;) {
        uint64_t state = atomic_load(&event->state);
        if (!is_pending(state))
            return state;
        /* The mark may be freed and taken for something else between the two looks: then the state has changed. */
        if (!hl_mark_share(segment, (uint32_t)(state >> 1)))
            continue;
        if (atomic_load(&event->state) == state)
            return state;
        hl_mark_drop(segment, (uint32_t)(state >> 1));
    }
}

HL_EXPORT void hl_timeline_wait_event(hl_stream stream_handle, hl_event handle)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, stream_handle, "event wait");
    hl_event_record *event = hl_timeline_event_of(segment, handle, "wait");
    if (hl_graph_wait_event(stream, stream_handle, event))
        return;
    uint32_t device = stream->device;
    hl_timeline_reserve(segment, 1);
    uint64_t state = look(segment, event);
    if (!state)
        return; /* CUDA: an event that was never recorded holds nobody up */
    hl_news news = {0};
    hl_operation operation = {.kind = HL_OPERATION_WAIT};
    if (is_pending(state)) {
        operation.mark = (uint32_t)(state >> 1);
        atomic_fetch_or(&segment->marks[operation.mark].devices, 1u << device);
    } else {
        operation.end_ns = instant_of(state);
    }
    hl_lock_acquire(&segment->devices[device].lock);
    hl_timeline_order(segment, stream);
    if (!stream->head && !operation.mark)
        hl_timeline_set_tail(segment, stream, operation.end_ns);
    else
        hl_timeline_append(segment, stream, &operation, &news);
    hl_timeline_finish(segment, device, &news);
}

HL_EXPORT void hl_timeline_event_wait(hl_event handle)
{
    hl_segment *segment = hl_segment_need();
    hl_event_record *event = hl_timeline_event_of(segment, handle, "synchronisation");
    uint64_t state = look(segment, event);
    int64_t instant_ns = instant_of(state);
    if (!state)
        return;
    if (is_pending(state)) {
        uint32_t mark = (uint32_t)(state >> 1);
        instant_ns = hl_mark_wait(segment, mark, &segment->streams[atomic_load(&event->stream)]);
        hl_mark_drop(segment, mark);
    }
    hl_clock_wait_until(instant_ns, HL_WAIT_DEVICE);
}

HL_EXPORT hl_progress hl_timeline_event_query(hl_event handle)
{
    hl_segment *segment = hl_segment_need();
    hl_event_record *event = hl_timeline_event_of(segment, handle, "query");
    for (int tries = 0;; tries++) {
        uint64_t state = atomic_load(&event->state);
        if (!state)
            return HL_PROGRESS_UNRECORDED;
        bool pending = is_pending(state);
        if (!pending && instant_of(state) <= hl_clock_now_ns())
            return HL_PROGRESS_DONE;
        if (tries)
            return pending ? HL_PROGRESS_UNRESOLVED : HL_PROGRESS_RUNNING;
        hl_clock_spin(pending ? HL_NEVER_NS : instant_of(state));
    }
}

HL_EXPORT bool hl_timeline_event_instant_ns(hl_event event, int64_t *instant_ns)
{
    uint64_t state = atomic_load(&hl_timeline_event_of(hl_segment_need(), event, "instant")->state);
    if (!state || is_pending(state))
        return false;
    *instant_ns = instant_of(state);
    return true;
}

HL_EXPORT bool hl_timeline_elapsed_ns(hl_event from, hl_event to, int64_t *elapsed_ns)
{
    hl_segment *segment = hl_segment_need();
    uint64_t first = atomic_load(&hl_timeline_event_of(segment, from, "elapsed time")->state);
    uint64_t second = atomic_load(&hl_timeline_event_of(segment, to, "elapsed time")->state);
    int64_t now_ns = hl_clock_now_ns();
    if (!first || !second || is_pending(first) || is_pending(second) || instant_of(first) > now_ns || instant_of(second) > now_ns)
        return false;
    *elapsed_ns = instant_of(second) - instant_of(first);
    return true;
}
