/* Streams, events, capture and graphs of the driver API. */
#include <string.h>

#include "bridge/driver/driver.h"
#include "bridge/graph.h"

HL_API CUresult cuStreamCreate(CUstream *stream, unsigned flags)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_stream_create(flags, 0, stream);
}

HL_API CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_stream_create(flags, priority, stream);
}

HL_API CUresult cuStreamDestroy_v2(CUstream stream) { return hl_bridge_stream_destroy(stream); }

HL_API CUresult cuStreamQuery(CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_stream_query(stream);
}

HL_API CUresult cuStreamSynchronize(CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_stream_wait(stream);
}

HL_API CUresult cuStreamGetPriority(CUstream handle, int *priority)
{
    hl_bridge_stream *stream;
    CUresult result = priority ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *priority = stream->priority;
    return result;
}

HL_API CUresult cuStreamGetFlags(CUstream handle, unsigned *flags)
{
    hl_bridge_stream *stream;
    CUresult result = flags ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *flags = stream->flags;
    return result;
}

HL_API CUresult cuStreamGetId(CUstream handle, unsigned long long *id)
{
    hl_bridge_stream *stream;
    CUresult result = id ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *id = stream->id;
    return result;
}

HL_API CUresult cuStreamGetCtx(CUstream handle, CUcontext *context)
{
    hl_bridge_stream *stream;
    CUresult result = context ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *context = (CUcontext)stream->context;
    return result;
}

HL_API CUresult cuStreamGetDevice(CUstream handle, CUdevice *ordinal)
{
    hl_bridge_stream *stream;
    CUresult result = ordinal ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *ordinal = hl_bridge_process_ordinal(stream->device);
    return result;
}

HL_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags)
{
    hl_bridge_stream *stream;
    hl_bridge_event *event;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    if (!result)
        result = hl_bridge_event_of(event_handle, &event);
    return result ? result : hl_bridge_stream_wait_event(stream, event, flags);
}

HL_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *user_data)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_stream_callback(stream, function, user_data);
}

HL_API CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_event_create(flags, event);
}

HL_API CUresult cuEventDestroy_v2(CUevent event) { return hl_bridge_event_destroy(event); }

HL_API CUresult cuEventRecord(CUevent event_handle, CUstream handle)
{
    hl_bridge_stream *stream;
    hl_bridge_event *event;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    if (!result)
        result = hl_bridge_event_of(event_handle, &event);
    return result ? result : hl_bridge_event_record(event, stream);
}

HL_API CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags)
{
    return flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL ? CUDA_ERROR_INVALID_VALUE : cuEventRecord(event, stream);
}

HL_API CUresult cuEventQuery(CUevent handle)
{
    hl_bridge_event *event;
    CUresult result = hl_bridge_event_of(handle, &event);

    return result ? result : hl_bridge_event_query(event);
}

HL_API CUresult cuEventSynchronize(CUevent handle)
{
    hl_bridge_event *event;
    CUresult result = hl_bridge_event_of(handle, &event);

    return result ? result : hl_bridge_event_wait(event);
}

static CUresult elapsed(float *elapsed_ms, CUevent from_handle, CUevent to_handle)
{
    hl_bridge_event *from, *to;
    CUresult result = hl_bridge_event_of(from_handle, &from);

    if (!result)
        result = hl_bridge_event_of(to_handle, &to);
    return result ? result : hl_bridge_event_elapsed(from, to, elapsed_ms);
}

HL_API CUresult cuEventElapsedTime_v2(float *elapsed_ms, CUevent from, CUevent to)
{
    return elapsed(elapsed_ms, from, to);
}

#undef cuEventElapsedTime
HL_API CUresult cuEventElapsedTime(float *elapsed_ms, CUevent from, CUevent to);
CUresult cuEventElapsedTime(float *elapsed_ms, CUevent from, CUevent to) { return elapsed(elapsed_ms, from, to); }

HL_API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_graph_capture_begin(stream, mode);
}

HL_API CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_graph_capture_end(stream, graph);
}

HL_API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status)
{
    hl_bridge_stream *stream;
    CUresult result = status ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    return result ? result : hl_bridge_graph_capture_status(stream, status);
}

static CUresult capture_info(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                             const CUgraphNode **dependencies, size_t *count)
{
    hl_bridge_stream *stream;
    CUresult result = status ? hl_bridge_driver_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        result = hl_bridge_graph_capture_status(stream, status);
    if (result)
        return result;
    hl_bridge_graph_capture_info(stream, id, graph);
    if (dependencies)
        *dependencies = NULL;
    if (count)
        *count = 0;
    return CUDA_SUCCESS;
}

HL_API CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                                          CUgraph *graph, const CUgraphNode **dependencies,
                                          const CUgraphEdgeData **edges, size_t *count)
{
    if (edges)
        *edges = NULL;
    return capture_info(handle, status, id, graph, dependencies, count);
}

HL_API CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                                          CUgraph *graph, const CUgraphNode **dependencies, size_t *count);
CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                   const CUgraphNode **dependencies, size_t *count)
{
    return capture_info(handle, status, id, graph, dependencies, count);
}

HL_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    return hl_bridge_graph_exchange_mode(mode);
}

HL_API CUresult cuGraphCreate(CUgraph *graph, unsigned flags)
{
    return flags ? CUDA_ERROR_INVALID_VALUE : hl_bridge_graph_create(graph);
}

HL_API CUresult cuGraphDestroy(CUgraph graph) { return hl_bridge_graph_destroy(graph); }

HL_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    const unsigned long long known = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH |
                                     CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD | CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;

    if (flags & ~known)
        return (CUresult)hl_bridge_unsupported_part("cuGraphInstantiateWithFlags", HL_LIBRARY, "flags", (long)flags,
                                                    __builtin_return_address(0), CUDA_ERROR_NOT_SUPPORTED);
    return hl_bridge_graph_instantiate(graph, exec);
}

HL_API CUresult cuGraphExecDestroy(CUgraphExec exec) { return hl_bridge_graph_exec_destroy(exec); }

HL_API CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
    CUresult result = hl_bridge_graph_exec_update(exec, graph);

    if (info) {
        memset(info, 0, sizeof *info);
        info->result = result ? CU_GRAPH_EXEC_UPDATE_ERROR : CU_GRAPH_EXEC_UPDATE_SUCCESS;
    }
    return result;
}

HL_API CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_graph_exec_launch(exec, stream);
}

/* Moves a graph's description to the card ahead of its launch; there is no card. */
HL_API CUresult cuGraphUpload(CUgraphExec exec, CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_graph_exec_valid(exec);
}

HL_API CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    return hl_bridge_graph_list(graph, nodes, count);
}
