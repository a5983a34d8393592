/* Streams and events; see stream.h. Order and time are the core's: nothing here knows an instant. */
#include "bridge/stream.h"

#include <stdatomic.h>

#include "bridge/graph.h"
#include "bridge/slab.h"
#include "bridge/stub.h"
#include "core/export.h"
#include "core/ledger.h"

enum { PRIORITY_LEAST = 0, PRIORITY_GREATEST = -5 }; /* every data-centre card since compute capability 7.0 */

static hl_bridge_slab streams = HL_SLAB(hl_bridge_stream, 1u << 16);
static hl_bridge_slab events = HL_SLAB(hl_bridge_event, 1u << 22);
static hl_bridge_stream legacy[HL_DEVICES_MAX];
static __thread hl_bridge_stream *per_thread[HL_DEVICES_MAX];
static _Atomic uint64_t next_id = 16; /* small ids belong to default streams */

/* Several threads may come first at once: they write the same values. */
static hl_bridge_stream *legacy_stream(hl_bridge_context *context)
{
    hl_bridge_stream *stream = &legacy[context->device];

    if (!stream->live) {
        stream->device = context->device;
        stream->context = context;
        stream->id = 1 + context->device;
        stream->line = hl_timeline_default_stream(context->device);
        stream->live = 1;
    }
    return stream;
}

HL_EXPORT bool hl_bridge_stream_legacy(const hl_bridge_stream *stream)
{
    return stream >= legacy && stream < legacy + HL_DEVICES_MAX;
}

HL_EXPORT CUresult hl_bridge_stream_of(CUstream handle, hl_bridge_stream **stream)
{
    hl_bridge_context *context = hl_bridge_context_current();

    if (handle && handle != CU_STREAM_LEGACY && handle != CU_STREAM_PER_THREAD) {
        if (!hl_bridge_slab_owns(&streams, handle))
            return CUDA_ERROR_INVALID_HANDLE;
        *stream = (hl_bridge_stream *)handle;
        return CUDA_SUCCESS;
    }
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (handle == CU_STREAM_PER_THREAD) {
        CUresult result = CUDA_SUCCESS;
        if (!per_thread[context->device]) {
            CUstream created;
            result = hl_bridge_stream_create(CU_STREAM_DEFAULT, 0, &created);
            if (!result)
                per_thread[context->device] = (hl_bridge_stream *)created;
        }
        *stream = per_thread[context->device];
        return result;
    }
    *stream = legacy_stream(context);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_stream_create(unsigned flags, int priority, CUstream *handle)
{
    hl_bridge_context *context = hl_bridge_context_current();
    hl_bridge_stream *stream;

    if (!handle || flags & ~(unsigned)CU_STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (hl_ledger_driver_take(context->device, HL_DRIVER_STREAM, 1))
        return CUDA_ERROR_OUT_OF_MEMORY;
    stream = hl_bridge_slab_take(&streams);
    if (!stream) {
        hl_ledger_driver_give(context->device, HL_DRIVER_STREAM, 1);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    stream->device = context->device;
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority < PRIORITY_GREATEST ? PRIORITY_GREATEST
                       : priority > PRIORITY_LEAST  ? PRIORITY_LEAST
                                                    : priority;
    stream->id = atomic_fetch_add(&next_id, 1);
    stream->line = hl_timeline_stream_create(context->device, !(flags & CU_STREAM_NON_BLOCKING));
    if (!stream->line) {
        hl_bridge_slab_give(&streams, stream);
        hl_ledger_driver_give(context->device, HL_DRIVER_STREAM, 1);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = (CUstream)stream;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_stream_destroy(CUstream handle)
{
    hl_bridge_stream *stream = (hl_bridge_stream *)handle;

    if (!hl_bridge_slab_owns(&streams, handle))
        return CUDA_ERROR_INVALID_HANDLE;
    hl_timeline_stream_destroy(stream->line);
    hl_ledger_driver_give(stream->device, HL_DRIVER_STREAM, 1);
    hl_bridge_slab_give(&streams, stream);
    return CUDA_SUCCESS;
}

HL_EXPORT void hl_bridge_stream_priorities(int *least, int *greatest)
{
    if (least)
        *least = PRIORITY_LEAST;
    if (greatest)
        *greatest = PRIORITY_GREATEST;
}

HL_EXPORT CUresult hl_bridge_stream_query(hl_bridge_stream *stream)
{
    CUresult result = hl_bridge_graph_use(stream);

    if (result)
        return result;
    if (hl_graph_capturing(stream->line))
        return hl_bridge_graph_invalidate(stream);
    return hl_timeline_stream_query(stream->line) == HL_PROGRESS_DONE ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

HL_EXPORT CUresult hl_bridge_stream_wait(hl_bridge_stream *stream)
{
    CUresult result = hl_bridge_graph_use(stream);

    if (result)
        return result;
    if (hl_graph_capturing(stream->line))
        return hl_bridge_graph_invalidate(stream);
    hl_timeline_stream_wait(stream->line);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_stream_device_wait(void)
{
    hl_bridge_context *context = hl_bridge_context_current();
    CUresult result = hl_bridge_graph_forbid_device();

    if (result)
        return result;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    hl_timeline_device_wait(context->device);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_stream_callback(hl_bridge_stream *stream, CUhostFn function, void *user_data)
{
    CUresult result = function ? hl_bridge_graph_work(stream) : CUDA_ERROR_INVALID_VALUE;

    if (result)
        return result;
    if (hl_graph_capturing(stream->line)) { /* a host node: the core's recipes hold launches only */
        hl_bridge_graph_invalidate(stream);
        return (CUresult)hl_bridge_unsupported_part("a host function", "libcuda", "a capturing stream, number",
                                                    (long)stream->id, NULL, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    hl_timeline_host_callback(stream->line, function, user_data);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_of(CUevent handle, hl_bridge_event **event)
{
    if (!hl_bridge_slab_owns(&events, handle))
        return CUDA_ERROR_INVALID_HANDLE;
    *event = (hl_bridge_event *)handle;
    if ((*event)->imported && !hl_timeline_event_valid((*event)->mark)) /* its owner has destroyed it, or ended */
        return CUDA_ERROR_INVALID_HANDLE;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_create(unsigned flags, CUevent *handle)
{
    const unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    hl_bridge_context *context = hl_bridge_context_current();
    hl_bridge_event *event;

    if (!handle || flags & ~known)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & CU_EVENT_INTERPROCESS && !(flags & CU_EVENT_DISABLE_TIMING))
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    event = hl_bridge_slab_take(&events);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->device = context->device;
    event->flags = flags;
    event->mark = hl_timeline_event_create();
    if (!event->mark) {
        hl_bridge_slab_give(&events, event);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = (CUevent)event;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_destroy(CUevent handle)
{
    hl_bridge_event *event = (hl_bridge_event *)handle;

    if (!hl_bridge_slab_owns(&events, handle))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!event->imported)
        hl_timeline_event_destroy(event->mark);
    hl_bridge_slab_give(&events, event);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_import(hl_event mark, uint32_t device, CUevent *handle)
{
    hl_bridge_event *event;

    if (!handle || !hl_timeline_event_valid(mark))
        return CUDA_ERROR_INVALID_VALUE;
    event = hl_bridge_slab_take(&events);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->device = device;
    event->flags = CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    event->mark = mark;
    event->imported = event->recorded = true;
    *handle = (CUevent)event;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_record(hl_bridge_event *event, hl_bridge_stream *stream)
{
    if (event->device != stream->device)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = hl_bridge_graph_use(stream);
    if (result)
        return result;
    hl_bridge_graph_record(stream, event);
    event->recorded = true;
    hl_timeline_record(event->mark, stream->line);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_query(hl_bridge_event *event)
{
    CUresult result = hl_bridge_graph_forbid();

    if (result)
        return result;
    if (event->capture_id)
        return CUDA_ERROR_CAPTURED_EVENT;
    switch (hl_timeline_event_query(event->mark)) {
    case HL_PROGRESS_DONE:
    case HL_PROGRESS_UNRECORDED: return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_READY;
    }
}

HL_EXPORT CUresult hl_bridge_event_wait(hl_bridge_event *event)
{
    CUresult result = hl_bridge_graph_forbid();

    if (result)
        return result;
    if (event->capture_id)
        return CUDA_ERROR_CAPTURED_EVENT;
    if (event->recorded)
        hl_timeline_event_wait(event->mark);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_event_elapsed(hl_bridge_event *from, hl_bridge_event *to, float *elapsed_ms)
{
    int64_t elapsed_ns;

    if (!elapsed_ms)
        return CUDA_ERROR_INVALID_VALUE;
    if ((from->flags | to->flags) & CU_EVENT_DISABLE_TIMING || !from->recorded || !to->recorded)
        return CUDA_ERROR_INVALID_HANDLE;
    if (from->capture_id || to->capture_id)
        return CUDA_ERROR_CAPTURED_EVENT;
    if (!hl_timeline_elapsed_ns(from->mark, to->mark, &elapsed_ns))
        return CUDA_ERROR_NOT_READY;
    *elapsed_ms = (float)((double)elapsed_ns / 1e6); /* CUDA's interface is in float milliseconds */
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_stream_wait_event(hl_bridge_stream *stream, hl_bridge_event *event, unsigned flags)
{
    if (flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    if (!event->recorded)
        return CUDA_SUCCESS;
    CUresult result = hl_bridge_graph_use(stream);
    if (!result && !(flags & CU_EVENT_WAIT_EXTERNAL))
        result = hl_bridge_graph_wait(stream, event);
    if (result)
        return result;
    hl_timeline_wait_event(stream->line, event->mark);
    return CUDA_SUCCESS;
}
