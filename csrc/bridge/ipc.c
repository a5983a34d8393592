/* See ipc.h. Memory is the core's: here is what CUDA makes of it. */
#include "bridge/ipc.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bridge/graph.h"
#include "bridge/memory.h"
#include "core/export.h"
#include "core/report.h"

enum { MEMORY = 0x6d697068, EVENT = 0x65697068 };

struct wire { /* what lies in a handle */
    uint32_t what, device;
    int32_t pid; /* whose it is */
    hl_event mark;
    uint64_t identity, size_bytes;
};

_Static_assert(sizeof(struct wire) <= sizeof(CUipcMemHandle) && sizeof(CUipcMemHandle) == sizeof(CUipcEventHandle),
               "CUDA's handles are 64 bytes");

HL_EXPORT CUresult hl_bridge_ipc_memory_handle(const void *pointer, CUipcMemHandle *handle)
{
    hl_memory memory;
    int error;

    if (!handle || !pointer)
        return CUDA_ERROR_INVALID_VALUE;
    error = hl_ledger_share(pointer, &memory);
    if (error == -EINVAL)
        return CUDA_ERROR_INVALID_VALUE;
    if (error) {
        hl_report_event("ipc", "device memory could not be given to another process: see whether the run directory has room");
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct wire wire = {MEMORY, memory.device, getpid(), 0, memory.identity, memory.size_bytes};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &wire, sizeof wire);
    return CUDA_SUCCESS;
}

/* Does the current device reach the memory? */
static CUresult reach(uint32_t device)
{
    hl_bridge_context *context = hl_bridge_context_current();

    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (context->device != device && !hl_device_facts_of(device)->copy_p2p_bytes_per_s)
        return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_ipc_memory_open(const CUipcMemHandle *handle, unsigned flags, void **pointer)
{
    struct wire wire;
    CUresult result;

    if (!handle || !pointer || flags & ~(unsigned)CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&wire, handle, sizeof wire);
    if (wire.what != MEMORY || wire.device >= hl_device_count())
        return CUDA_ERROR_INVALID_VALUE;
    if (wire.pid == getpid()) /* "invalid device context", as the card has it for one's own handle */
        return CUDA_ERROR_INVALID_CONTEXT;
    result = reach(wire.device);
    if (result)
        return result;
    switch (hl_ledger_open(wire.identity, wire.size_bytes, pointer)) {
    case 0: return CUDA_SUCCESS;
    case -ENOENT: return CUDA_ERROR_INVALID_HANDLE; /* its owner has freed it */
    default: return CUDA_ERROR_MAP_FAILED;
    }
}

HL_EXPORT CUresult hl_bridge_ipc_memory_close(void *pointer)
{
    hl_memory memory;

    hl_bridge_memory_of(pointer, &memory);
    if (memory.kind != HL_MEMORY_IMPORTED || memory.base != (uintptr_t)pointer)
        return CUDA_ERROR_INVALID_VALUE;
    hl_timeline_device_wait(memory.device); /* as cudaFree: work that uses it may still be on its way */
    return hl_ledger_close(pointer) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_ipc_event_handle(CUevent handle, CUipcEventHandle *out)
{
    hl_bridge_event *event;
    CUresult result = out ? hl_bridge_event_of(handle, &event) : CUDA_ERROR_INVALID_VALUE;

    if (result)
        return result;
    if (!(event->flags & CU_EVENT_INTERPROCESS))
        return CUDA_ERROR_INVALID_HANDLE;
    event->recorded = true; /* by the other process, for all that is known here */
    struct wire wire = {EVENT, event->device, getpid(), event->mark, 0, 0};
    memset(out, 0, sizeof *out);
    memcpy(out, &wire, sizeof wire);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_ipc_event_open(const CUipcEventHandle *handle, CUevent *event)
{
    struct wire wire;

    if (!handle || !event)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&wire, handle, sizeof wire);
    if (wire.what != EVENT || wire.device >= hl_device_count())
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = reach(wire.device);
    return result ? result : hl_bridge_event_import(wire.mark, wire.device, event);
}
