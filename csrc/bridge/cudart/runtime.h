/* What every call of the runtime library does: take the thread's context, translate, remember the error.
 *
 * The runtime's error numbers are the driver's wherever both have one, so results of the bridge pass through. */
#ifndef HL_BRIDGE_CUDART_RUNTIME_H
#define HL_BRIDGE_CUDART_RUNTIME_H

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "bridge/process.h"
#include "bridge/stream.h"
#include "bridge/stub.h"

#define HL_LIBRARY "libcudart"

/* Remembers an error for cudaGetLastError and passes it on. */
cudaError_t hl_bridge_runtime_done(CUresult result);

/* The context that calls of this thread use, made when there is none. */
static inline CUresult hl_bridge_runtime_context(void)
{
    hl_bridge_context *context;

    return hl_bridge_context_use(&context);
}

/* The stream behind a handle; makes the context first, since 0 means the current device's. */
static inline CUresult hl_bridge_runtime_stream(cudaStream_t handle, hl_bridge_stream **stream)
{
    CUresult result = hl_bridge_runtime_context();

    return result ? result : hl_bridge_stream_of(handle, stream);
}

#endif
