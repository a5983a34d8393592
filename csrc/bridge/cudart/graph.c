/* Stream capture and graphs of the runtime API. */
#include "bridge/graph.h"

#include <string.h>

#include "bridge/cudart/runtime.h"

_Static_assert((int)cudaStreamCaptureModeRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED &&
                   (int)cudaStreamCaptureStatusInvalidated == CU_STREAM_CAPTURE_STATUS_INVALIDATED,
               "capture modes and states of runtime and driver");

HL_API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_graph_capture_begin(stream, (CUstreamCaptureMode)mode));
}

HL_API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_graph_capture_end(stream, graph));
}

HL_API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status)
{
    hl_bridge_stream *stream;
    CUresult result = status ? hl_bridge_runtime_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        result = hl_bridge_graph_capture_status(stream, (CUstreamCaptureStatus *)status);
    return hl_bridge_runtime_done(result);
}

/* No dependency is named: a recipe's launches run in the order of their calls. */
static CUresult capture_info(cudaStream_t handle, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                             cudaGraph_t *graph, const cudaGraphNode_t **dependencies, size_t *count)
{
    hl_bridge_stream *stream;
    CUresult result = status ? hl_bridge_runtime_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;
    cuuint64_t capture_id;

    if (!result)
        result = hl_bridge_graph_capture_status(stream, (CUstreamCaptureStatus *)status);
    if (result)
        return result;
    hl_bridge_graph_capture_info(stream, &capture_id, graph);
    if (id)
        *id = capture_id;
    if (dependencies)
        *dependencies = NULL;
    if (count)
        *count = 0;
    return CUDA_SUCCESS;
}

#if CUDART_VERSION >= 13000
HL_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *id, cudaGraph_t *graph,
                                            const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
                                            size_t *count)
{
    if (edges)
        *edges = NULL;
    return hl_bridge_runtime_done(capture_info(handle, status, id, graph, dependencies, count));
}
#else
/* CUDA 12 has three forms: the first of CUDA 10, without the graph; 12's own, which its header calls by the first one's
 * name; and one with edges. */
#undef cudaStreamGetCaptureInfo
HL_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *id);
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *status, unsigned long long *id)
{
    return hl_bridge_runtime_done(capture_info(handle, status, id, NULL, NULL, NULL));
}

HL_API cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                               unsigned long long *id, cudaGraph_t *graph,
                                               const cudaGraphNode_t **dependencies, size_t *count);
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                        unsigned long long *id, cudaGraph_t *graph,
                                        const cudaGraphNode_t **dependencies, size_t *count)
{
    return hl_bridge_runtime_done(capture_info(handle, status, id, graph, dependencies, count));
}

HL_API cudaError_t cudaStreamGetCaptureInfo_v3(cudaStream_t handle, enum cudaStreamCaptureStatus *status,
                                               unsigned long long *id, cudaGraph_t *graph,
                                               const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
                                               size_t *count)
{
    if (edges)
        *edges = NULL;
    return hl_bridge_runtime_done(capture_info(handle, status, id, graph, dependencies, count));
}
#endif

HL_API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    return hl_bridge_runtime_done(hl_bridge_graph_exchange_mode((CUstreamCaptureMode *)mode));
}

HL_API cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned flags)
{
    return hl_bridge_runtime_done(flags ? CUDA_ERROR_INVALID_VALUE : hl_bridge_graph_create(graph));
}

HL_API cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return hl_bridge_runtime_done(hl_bridge_graph_destroy(graph));
}

HL_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    const unsigned long long known = cudaGraphInstantiateFlagAutoFreeOnLaunch | cudaGraphInstantiateFlagUpload |
                                     cudaGraphInstantiateFlagUseNodePriority;

    if (flags & ~known)
        return hl_bridge_runtime_done((CUresult)hl_bridge_unsupported_part("cudaGraphInstantiate", HL_LIBRARY, "flags",
                                                                           (long)flags, __builtin_return_address(0),
                                                                           CUDA_ERROR_NOT_SUPPORTED));
    return hl_bridge_runtime_done(hl_bridge_graph_instantiate(graph, exec));
}

HL_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    return cudaGraphInstantiateWithFlags(exec, graph, flags);
}

HL_API cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t *exec, cudaGraph_t graph,
                                                  cudaGraphInstantiateParams *params)
{
    cudaError_t error;

    if (!params)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    error = cudaGraphInstantiateWithFlags(exec, graph, params->flags);
    params->result_out = error ? cudaGraphInstantiateError : cudaGraphInstantiateSuccess;
    params->errNode_out = NULL;
    return error;
}

HL_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return hl_bridge_runtime_done(hl_bridge_graph_exec_destroy(exec));
}

HL_API cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info)
{
    CUresult result = hl_bridge_graph_exec_update(exec, graph);

    if (info) {
        memset(info, 0, sizeof *info);
        info->result = result ? cudaGraphExecUpdateError : cudaGraphExecUpdateSuccess;
    }
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_graph_exec_launch(exec, stream));
}

/* Moves a graph's description to the card ahead of its launch; there is no card. */
HL_API cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_graph_exec_valid(exec));
}

HL_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    return hl_bridge_runtime_done(hl_bridge_graph_list(graph, nodes, count));
}
