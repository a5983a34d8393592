/* Streams and events of the runtime API. */
#include <stdlib.h>

#include "bridge/cudart/runtime.h"
#include "bridge/graph.h"

static cudaError_t create(cudaStream_t *stream, unsigned flags, int priority)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_stream_create(flags, priority, stream));
}

HL_API cudaError_t cudaStreamCreate(cudaStream_t *stream) { return create(stream, cudaStreamDefault, 0); }

HL_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return create(stream, flags, 0); }

HL_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    return create(stream, flags, priority);
}

HL_API cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    return hl_bridge_runtime_done(hl_bridge_stream_destroy(stream));
}

HL_API cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_stream_query(stream));
}

HL_API cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_stream_wait(stream));
}

HL_API cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority)
{
    hl_bridge_stream *stream;
    CUresult result = priority ? hl_bridge_runtime_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *priority = stream->priority;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned *flags)
{
    hl_bridge_stream *stream;
    CUresult result = flags ? hl_bridge_runtime_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *flags = stream->flags;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long *id)
{
    hl_bridge_stream *stream;
    CUresult result = id ? hl_bridge_runtime_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *id = stream->id;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaStreamGetDevice(cudaStream_t handle, int *ordinal)
{
    hl_bridge_stream *stream;
    CUresult result = ordinal ? hl_bridge_runtime_stream(handle, &stream) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *ordinal = hl_bridge_process_ordinal(stream->device);
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned flags)
{
    hl_bridge_stream *stream;
    hl_bridge_event *event;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    if (!result)
        result = hl_bridge_event_of(event_handle, &event);
    return hl_bridge_runtime_done(result ? result : hl_bridge_stream_wait_event(stream, event, flags));
}

HL_API cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *user_data)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_stream_callback(stream, function, user_data));
}

struct callback { /* the older callback type has the stream and its status as arguments */
    cudaStreamCallback_t function;
    cudaStream_t stream;
    void *user_data;
};

static void run_callback(void *argument)
{
    struct callback callback = *(struct callback *)argument;

    free(argument);
    callback.function(callback.stream, cudaSuccess, callback.user_data);
}

HL_API cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void *user_data,
                                         unsigned flags)
{
    struct callback *callback;
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    if (!function || flags)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result)
        return hl_bridge_runtime_done(result);
    callback = malloc(sizeof *callback);
    if (!callback)
        return hl_bridge_runtime_done(CUDA_ERROR_OUT_OF_MEMORY);
    *callback = (struct callback){function, handle, user_data};
    result = hl_bridge_stream_callback(stream, run_callback, callback);
    if (result)
        free(callback);
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_event_create(flags, event));
}

HL_API cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

HL_API cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    return hl_bridge_runtime_done(hl_bridge_event_destroy(event));
}

HL_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event_handle, cudaStream_t handle, unsigned flags)
{
    hl_bridge_stream *stream;
    hl_bridge_event *event;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    if (!result)
        result = hl_bridge_event_of(event_handle, &event);
    if (flags & ~(unsigned)cudaEventRecordExternal)
        result = CUDA_ERROR_INVALID_VALUE;
    return hl_bridge_runtime_done(result ? result : hl_bridge_event_record(event, stream));
}

HL_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

HL_API cudaError_t cudaEventQuery(cudaEvent_t handle)
{
    hl_bridge_event *event;
    CUresult result = hl_bridge_event_of(handle, &event);

    return hl_bridge_runtime_done(result ? result : hl_bridge_event_query(event));
}

HL_API cudaError_t cudaEventSynchronize(cudaEvent_t handle)
{
    hl_bridge_event *event;
    CUresult result = hl_bridge_event_of(handle, &event);

    return hl_bridge_runtime_done(result ? result : hl_bridge_event_wait(event));
}

HL_API cudaError_t cudaEventElapsedTime(float *elapsed_ms, cudaEvent_t from_handle, cudaEvent_t to_handle)
{
    hl_bridge_event *from, *to;
    CUresult result = hl_bridge_event_of(from_handle, &from);

    if (!result)
        result = hl_bridge_event_of(to_handle, &to);
    return hl_bridge_runtime_done(result ? result : hl_bridge_event_elapsed(from, to, elapsed_ms));
}

#if CUDART_VERSION < 13000
/* Differs from the first form in errors that this one did not tell apart before. */
HL_API cudaError_t cudaEventElapsedTime_v2(float *elapsed_ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaEventElapsedTime_v2(float *elapsed_ms, cudaEvent_t from, cudaEvent_t to)
{
    return cudaEventElapsedTime(elapsed_ms, from, to);
}
#endif
