/* What every call of the driver library does: the driver neither initialises nor makes contexts by itself. */
#ifndef HL_BRIDGE_DRIVER_DRIVER_H
#define HL_BRIDGE_DRIVER_DRIVER_H

#include <cuda.h>

#include "bridge/process.h"
#include "bridge/stream.h"
#include "bridge/stub.h"

#define HL_LIBRARY "libcuda.so.1"

static inline CUresult hl_bridge_driver_context(void)
{
    hl_bridge_context *context;

    return hl_bridge_context_need(&context);
}

static inline CUresult hl_bridge_driver_stream(CUstream handle, hl_bridge_stream **stream)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_stream_of(handle, stream);
}

static inline CUresult hl_bridge_driver_device(CUdevice ordinal, uint32_t *device)
{
    CUresult result = hl_bridge_process_ready();

    return result ? result : hl_bridge_process_device(ordinal, device);
}

#endif
