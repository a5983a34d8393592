/* CUDA's interprocess handles: device memory and events that another process of the run opens.
 *
 * Both handles are 64 bytes that programs send each other by whatever road they like; they are checked when they are
 * opened. */
#ifndef HL_BRIDGE_IPC_H
#define HL_BRIDGE_IPC_H

#include <cuda.h>

#include "bridge/stream.h"

/* The allocation that the pointer lies in; opening it gives its beginning. */
CUresult hl_bridge_ipc_memory_handle(const void *pointer, CUipcMemHandle *handle);
CUresult hl_bridge_ipc_memory_open(const CUipcMemHandle *handle, unsigned flags, void **pointer);
CUresult hl_bridge_ipc_memory_close(void *pointer);
CUresult hl_bridge_ipc_event_handle(CUevent event, CUipcEventHandle *handle);
CUresult hl_bridge_ipc_event_open(const CUipcEventHandle *handle, CUevent *event);

#endif
