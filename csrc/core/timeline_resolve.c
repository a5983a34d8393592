/* Resolving: giving queued operations their instants as soon as what they wait for is known.
 *
 * A stream without unresolved work has no queue: its tail says all. Otherwise its operations wait in order, and whoever
 * brings a missing fact (the pricing service, another rank, a callback thread) resolves as far as it goes, on every
 * device that was told of that fact. Instants depend on facts alone, never on who resolves or when, so results do not
 * depend on the pricing service's speed. */
#include <string.h>

#include "clock.h"
#include "price_private.h"
#include "report.h"
#include "timeline_private.h"

uint32_t hl_mark_make(hl_segment *segment, int32_t references, uint32_t devices)
{
    uint32_t index = HL_TAKE(segment, marks, HL_SEGMENT_MARKS);
    if (!index)
        hl_report_fatal("more than %u unresolved events: the pricing service is not answering, or a rank never comes",
                        HL_SEGMENT_MARKS - 1);
    hl_mark *mark = &segment->marks[index];
    atomic_store(&mark->instant_ns, HL_MARK_OPEN);
    atomic_store(&mark->devices, devices);
    atomic_store(&mark->references, references);
    return index;
}

bool hl_mark_share(hl_segment *segment, uint32_t mark)
{
    int32_t references = atomic_load(&segment->marks[mark].references);
    while (references > 0)
        if (atomic_compare_exchange_weak(&segment->marks[mark].references, &references, references + 1))
            return true;
    return false;
}

void hl_mark_drop(hl_segment *segment, uint32_t mark)
{
    if (mark && atomic_fetch_sub(&segment->marks[mark].references, 1) == 1)
        HL_GIVE(segment, marks, mark);
}

void hl_mark_set(hl_segment *segment, uint32_t mark, int64_t instant_ns, hl_news *news)
{
    int64_t open = HL_MARK_OPEN;
    atomic_compare_exchange_strong(&segment->marks[mark].instant_ns, &open, instant_ns);
    news->kicks |= atomic_load(&segment->marks[mark].devices);
    news->resolved = true;
}

void hl_timeline_set_tail(hl_segment *segment, hl_stream_record *stream, int64_t tail_ns)
{
    hl_context *context = &segment->contexts[stream->context];
    if (tail_ns > atomic_load_explicit(&stream->tail_ns, memory_order_relaxed))
        atomic_store_explicit(&stream->tail_ns, tail_ns, memory_order_release);
    if (tail_ns > context->tail_ns)
        context->tail_ns = tail_ns;
    if (stream->blocking && !stream->is_default && tail_ns > context->blocking_tail_ns)
        context->blocking_tail_ns = tail_ns;
}

static void account(hl_segment *segment, uint32_t device, const hl_operation *operation)
{
    hl_device_state *state = &segment->devices[device];
    for (int i = 0; i < HL_COVERAGES; i++)
        if (operation->coverage_ns[i])
            atomic_fetch_add_explicit(&state->coverage_ns[i], operation->coverage_ns[i], memory_order_relaxed);
    atomic_fetch_add_explicit(&state->launches, operation->count, memory_order_relaxed);
    if (operation->unknown)
        atomic_fetch_add_explicit(&state->unknown_launches, operation->unknown, memory_order_relaxed);
}

/* The device waits for the host: it starts when it is told. Else it comes after what is before it, and the gap. */
static int64_t start_of(const hl_operation *operation, int64_t tail_ns)
{
    return operation->issue_ns >= tail_ns ? operation->issue_ns : tail_ns + operation->gap_ns;
}

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

void hl_timeline_advance(hl_segment *segment, hl_stream_record *stream, const hl_operation *operation)
{
    int64_t start_ns = start_of(operation, atomic_load_explicit(&stream->tail_ns, memory_order_relaxed));
    account(segment, stream->device, operation);
    hl_timeline_set_tail(segment, stream, start_ns + operation->extra_ns + operation->duration_ns);
}

/* The operation's price, from its request when that has been answered. */
static bool priced(hl_segment *segment, hl_operation *operation)
{
    if (!operation->request)
        return true;
    hl_price price;
    uint32_t request = operation->request;
    if (!hl_price_request_done(segment, request, &price))
        return false;
    operation->duration_ns = price.duration_ns * operation->count;
    for (int i = 0; i < HL_COVERAGES; i++)
        operation->coverage_ns[i] = price.coverage_ns[i] * operation->count;
    operation->unknown = price.coverage == HL_COVERAGE_UNKNOWN ? operation->count : 0;
    operation->request = 0;
    hl_price_request_drop(segment, request);
    return true;
}

static void settle_event(hl_segment *segment, hl_operation *operation, int64_t instant_ns, hl_news *news)
{
    uint32_t mark = operation->mark;
    if (!mark)
        return;
    hl_mark_set(segment, mark, instant_ns, news);
    if (operation->event) {
        uint64_t pending = (uint64_t)mark << 1;
        hl_event_record *event = &segment->events[operation->event];
        if (atomic_compare_exchange_strong(&event->state, &pending, (uint64_t)instant_ns << 1 | 1))
            hl_mark_drop(segment, mark);
    }
    operation->mark = 0;
    hl_mark_drop(segment, mark);
}

/* True: end_ns is known. Reads the stream's tail, changes only the operation and what it sets. */
static bool resolve_operation(hl_segment *segment, hl_stream_record *stream, hl_operation *operation, hl_news *news)
{
    int64_t tail_ns = atomic_load(&stream->tail_ns), instant_ns;
    switch (operation->kind) {
    case HL_OPERATION_LAUNCH:
        if (!priced(segment, operation))
            return false;
        operation->end_ns = start_of(operation, tail_ns) + operation->extra_ns + operation->duration_ns;
        account(segment, stream->device, operation);
        return true;
    case HL_OPERATION_RECORD:
        operation->end_ns = tail_ns;
        settle_event(segment, operation, later(tail_ns, operation->issue_ns), news);
        return true;
    case HL_OPERATION_WAIT:
        if (operation->mark) {
            instant_ns = atomic_load(&segment->marks[operation->mark].instant_ns);
            if (instant_ns == HL_MARK_OPEN)
                return false;
            uint32_t mark = operation->mark;
            operation->end_ns = instant_ns;
            operation->mark = 0;
            hl_mark_drop(segment, mark);
        }
        operation->end_ns = later(operation->end_ns, tail_ns);
        return true;
    case HL_OPERATION_RENDEZVOUS:
        if (!priced(segment, operation))
            return false;
        if (!operation->arrived)
            hl_rendezvous_arrive(segment, operation, stream->device, start_of(operation, tail_ns) + operation->extra_ns, news);
        if (!hl_rendezvous_done(segment, operation, &instant_ns))
            return false;
        operation->end_ns = instant_ns;
        account(segment, stream->device, operation);
        hl_rendezvous_leave(segment, operation);
        return true;
    case HL_OPERATION_CALLBACK:
        if (!operation->arrived) {
            operation->arrived = true;
            hl_mark_set(segment, operation->mark, later(tail_ns, operation->issue_ns), news);
        }
        instant_ns = atomic_load(&segment->marks[operation->mark_end].instant_ns);
        if (instant_ns == HL_MARK_OPEN)
            return false;
        operation->end_ns = later(instant_ns, tail_ns);
        hl_mark_drop(segment, operation->mark);
        hl_mark_drop(segment, operation->mark_end);
        return true;
    default:
        hl_report_fatal("operation of kind %u on a stream: the device segment is damaged", operation->kind);
    }
}

static void unlink_busy(hl_segment *segment, hl_stream_record *stream)
{
    uint32_t *first = &segment->devices[stream->device].first_busy;
    if (stream->busy_previous)
        segment->streams[stream->busy_previous].busy_next = stream->busy_next;
    else
        *first = stream->busy_next;
    if (stream->busy_next)
        segment->streams[stream->busy_next].busy_previous = stream->busy_previous;
    stream->busy_next = stream->busy_previous = 0;
    if (stream->blocking && !stream->is_default)
        segment->contexts[stream->context].blocking_busy--;
}

static void link_busy(hl_segment *segment, hl_stream_record *stream)
{
    uint32_t index = hl_timeline_stream_index(segment, stream), *first = &segment->devices[stream->device].first_busy;
    stream->busy_previous = 0;
    stream->busy_next = *first;
    if (*first)
        segment->streams[*first].busy_previous = index;
    *first = index;
    if (stream->blocking && !stream->is_default)
        segment->contexts[stream->context].blocking_busy++;
}

static void unlink_context(hl_segment *segment, hl_stream_record *stream)
{
    if (stream->context_previous)
        segment->streams[stream->context_previous].context_next = stream->context_next;
    else
        segment->contexts[stream->context].first_stream = stream->context_next;
    if (stream->context_next)
        segment->streams[stream->context_next].context_previous = stream->context_previous;
}

static void free_stream(hl_segment *segment, hl_stream_record *stream)
{
    unlink_context(segment, stream);
    atomic_fetch_add(&stream->generation, 1);
    atomic_store(&stream->state, HL_STREAM_FREE);
    HL_GIVE(segment, streams, hl_timeline_stream_index(segment, stream));
}

/* False: that was the last operation of a destroyed stream, whose record may be in use again already. */
static bool pop(hl_segment *segment, hl_stream_record *stream)
{
    uint32_t index = stream->head;
    stream->head = segment->operations[index].next;
    HL_GIVE(segment, operations, index);
    if (stream->head)
        return true;
    stream->last = 0;
    unlink_busy(segment, stream);
    if (atomic_load(&stream->state) != HL_STREAM_CLOSING)
        return true;
    free_stream(segment, stream);
    return false;
}

static bool resolve_stream(hl_segment *segment, hl_stream_record *stream, hl_news *news)
{
    bool progress = false;
    while (stream->head) {
        hl_operation *operation = &segment->operations[stream->head];
        bool arrived = operation->arrived;
        if (!operation->resolved) {
            if (!resolve_operation(segment, stream, operation, news)) {
                progress = progress || operation->arrived != arrived;
                break;
            }
            /* A killed resolver's successor finds end_ns and does not compute it from a tail that already holds it. */
            atomic_signal_fence(memory_order_seq_cst);
            operation->resolved = true;
            atomic_signal_fence(memory_order_seq_cst);
        }
        hl_timeline_set_tail(segment, stream, operation->end_ns);
        progress = news->resolved = true;
        if (!pop(segment, stream))
            break;
    }
    return progress;
}

static void resolve_device(hl_segment *segment, uint32_t device, hl_news *news)
{
    for (bool progress = true; progress;) {
        progress = false;
        for (uint32_t index = segment->devices[device].first_busy, next; index; index = next) {
            next = segment->streams[index].busy_next;
            progress = resolve_stream(segment, &segment->streams[index], news) || progress;
        }
    }
    news->kicks &= ~(1u << device);
}

void hl_timeline_kick(hl_segment *segment, uint32_t devices)
{
    while (devices) {
        uint32_t device = (uint32_t)__builtin_ctz(devices);
        hl_news news = {0};
        devices &= devices - 1;
        hl_lock_acquire(&segment->devices[device].lock);
        resolve_device(segment, device, &news);
        hl_lock_release(&segment->devices[device].lock);
        devices |= news.kicks;
        if (news.resolved)
            hl_segment_announce(segment);
    }
}

void hl_timeline_finish(hl_segment *segment, uint32_t device, const hl_news *news)
{
    hl_lock_release(&segment->devices[device].lock);
    if (news->resolved)
        hl_segment_announce(segment);
    if (news->kicks)
        hl_timeline_kick(segment, news->kicks);
}

void hl_timeline_append(hl_segment *segment, hl_stream_record *stream, const hl_operation *from, hl_news *news)
{
    uint32_t index = HL_TAKE(segment, operations, HL_SEGMENT_OPERATIONS);
    if (!index)
        hl_report_fatal("more than %u operations wait on streams: synchronise more often, or see why the pricing service does "
                        "not answer", HL_SEGMENT_OPERATIONS - 1);
    hl_operation *operation = &segment->operations[index];
    uint32_t *start = &operation->next;
    memcpy(start, &from->next, sizeof *operation - offsetof(hl_operation, next));
    operation->next = 0;
    if (stream->last)
        segment->operations[stream->last].next = index;
    else
        stream->head = index;
    bool first = !stream->last;
    stream->last = index;
    if (first) {
        link_busy(segment, stream);
        resolve_stream(segment, stream, news);
    }
}

/* What a dead process queued: events that others may wait for happen now; the rest is dropped. */
static void drop_operation(hl_segment *segment, hl_operation *operation, int64_t now_ns, hl_news *news)
{
    if (operation->request)
        hl_price_request_drop(segment, operation->request);
    switch (operation->kind) {
    case HL_OPERATION_RECORD: settle_event(segment, operation, now_ns, news); break;
    case HL_OPERATION_WAIT: hl_mark_drop(segment, operation->mark); break;
    case HL_OPERATION_RENDEZVOUS:
        if (!operation->resolved)
            hl_rendezvous_withdraw(segment, operation);
        break;
    case HL_OPERATION_CALLBACK:
        if (operation->resolved)
            break;
        hl_mark_drop(segment, operation->mark);
        hl_mark_drop(segment, operation->mark_end);
        break;
    default: break;
    }
}

void hl_timeline_bury(hl_segment *segment, uint32_t context, uint32_t *kicks)
{
    hl_news news = {0};
    int64_t now_ns = hl_clock_now_ns();
    while (segment->contexts[context].first_stream) {
        hl_stream_record *stream = &segment->streams[segment->contexts[context].first_stream];
        atomic_store(&stream->state, HL_STREAM_CLOSING);
        if (!stream->head)
            free_stream(segment, stream);
        else
            for (bool last = false; !last;) {
                last = !segment->operations[stream->head].next;
                drop_operation(segment, &segment->operations[stream->head], now_ns, &news);
                pop(segment, stream);
            }
    }
    *kicks |= news.kicks;
}
