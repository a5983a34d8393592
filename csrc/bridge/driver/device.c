/* Start-up, errors, devices, contexts and entry points of the driver API. */
#include <stdio.h>
#include <string.h>

#include "bridge/attributes.h"
#include "bridge/driver/driver.h"
#include "bridge/driver/entry_points.h"
#include "bridge/errors.h"

HL_API CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_INVALID_VALUE : hl_bridge_process_init(); }

/* Works before cuInit, as the driver's does. */
HL_API CUresult cuDriverGetVersion(int *version)
{
    const hl_device_facts *facts;
    CUresult result;

    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    result = hl_bridge_process_init();
    if (result && result != CUDA_ERROR_NO_DEVICE)
        return result;
    facts = hl_device_facts_of(0);
    *version = facts->driver_version;
    return CUDA_SUCCESS;
}

HL_API CUresult cuGetErrorString(CUresult error, const char **text)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_CUDA, (int)error);

    if (!text)
        return CUDA_ERROR_INVALID_VALUE;
    *text = row && *row->driver_name ? row->text : NULL;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

HL_API CUresult cuGetErrorName(CUresult error, const char **name)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_CUDA, (int)error);

    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    *name = row && *row->driver_name ? row->driver_name : NULL;
    return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* --- entry points --- */

static CUdriverProcAddressQueryResult find(const char *name, int version, bool per_thread, void **function)
{
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    unsigned low = 0, high = hl_bridge_entry_points_count;
    int best = -1;

    while (low < high) { /* first row of this name */
        unsigned middle = (low + high) / 2;
        if (strcmp(hl_bridge_entry_points[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < hl_bridge_entry_points_count && !strcmp(hl_bridge_entry_points[low].name, name); low++) {
        const hl_bridge_entry_point *row = &hl_bridge_entry_points[low];
        if (row->version > version) {
            if (best < 0)
                status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
            continue;
        }
        if (row->per_thread && !per_thread)
            continue;
        /* The newest form; of two forms of one version the per-thread one when it is asked for. */
        if (best < 0 || (row->version == hl_bridge_entry_points[best].version && row->per_thread && per_thread))
            best = (int)low;
    }
    if (best < 0)
        return status;
    *function = (void *)hl_bridge_entry_points[best].function;
    return CU_GET_PROC_ADDRESS_SUCCESS;
}

HL_API CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *status)
{
    const cuuint64_t known = CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    CUdriverProcAddressQueryResult found;

    if (!symbol || !function || flags & ~known)
        return CUDA_ERROR_INVALID_VALUE;
    *function = NULL;
    found = find(symbol, version, (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0, function);
    if (status)
        *status = found;
    return found == CU_GET_PROC_ADDRESS_SUCCESS || status ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* The form of CUDA 11.3, without a status; cuda.h renames it. */
#undef cuGetProcAddress
HL_API CUresult cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags);
CUresult cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags)
{
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}

/* Tables of functions without names, by which a CUDA runtime that is linked into a library (cuDNN, cuSOLVER, cuFFT)
 * works past the driver's interface. They are undocumented and differ by release; such libraries do not work here. */
HL_API CUresult cuGetExportTable(const void **table, const CUuuid *id)
{
    uint32_t first = 0;

    if (!table || !id)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&first, id->bytes, sizeof first);
    return (CUresult)hl_bridge_unsupported_part(
        "cuGetExportTable", HL_LIBRARY,
        "a private table, for a library with a CUDA runtime of its own such as cuDNN; its id is", first,
        __builtin_return_address(0), CUDA_ERROR_NOT_SUPPORTED);
}

/* --- devices --- */

HL_API CUresult cuDeviceGetCount(int *count)
{
    CUresult result = hl_bridge_process_ready();

    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    if (result && result != CUDA_ERROR_NO_DEVICE)
        return result;
    *count = hl_bridge_process_device_count();
    return CUDA_SUCCESS;
}

HL_API CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    uint32_t run_device;
    CUresult result = device ? hl_bridge_driver_device(ordinal, &run_device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *device = ordinal;
    return result;
}

HL_API CUresult cuDeviceGetName(char *name, int length, CUdevice ordinal)
{
    uint32_t device;
    CUresult result = name && length > 0 ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        snprintf(name, (size_t)length, "%s", hl_device_facts_of(device)->name);
    return result;
}

HL_API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal)
{
    uint32_t device;
    CUresult result = bytes ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *bytes = (size_t)hl_device_facts_of(device)->total_memory_bytes;
    return result;
}

HL_API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice ordinal)
{
    uint32_t device;
    CUresult result = value ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result && !hl_bridge_attributes_get(device, (int)attribute, value))
        result = (CUresult)hl_bridge_unsupported_part("cuDeviceGetAttribute", HL_LIBRARY, "attribute", attribute,
                                                      __builtin_return_address(0), CUDA_ERROR_INVALID_VALUE);
    return result;
}

static CUresult uuid(CUuuid *id, CUdevice ordinal)
{
    uint32_t device;
    CUresult result = id ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        hl_bridge_attributes_uuid(device, (uint8_t *)id->bytes);
    return result;
}

HL_API CUresult cuDeviceGetUuid_v2(CUuuid *id, CUdevice ordinal) { return uuid(id, ordinal); }

#undef cuDeviceGetUuid
HL_API CUresult cuDeviceGetUuid(CUuuid *id, CUdevice ordinal);
CUresult cuDeviceGetUuid(CUuuid *id, CUdevice ordinal) { return uuid(id, ordinal); }

HL_API CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice ordinal)
{
    uint32_t device;
    CUresult result = text && length >= 13 ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;
    char full[16];

    if (!result) {
        hl_bridge_attributes_pci_text(device, full);
        snprintf(text, (size_t)length, "%s", full);
    }
    return result;
}

HL_API CUresult cuDeviceCanAccessPeer(int *can, CUdevice ordinal, CUdevice peer)
{
    uint32_t device, other;
    CUresult result = can ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        result = hl_bridge_driver_device(peer, &other);
    if (!result)
        *can = hl_bridge_attributes_peers(device, other);
    return result;
}

HL_API CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice ordinal, CUdevice peer)
{
    uint32_t device, other;
    CUresult result = value ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        result = hl_bridge_driver_device(peer, &other);
    if (!result && device == other)
        result = CUDA_ERROR_INVALID_DEVICE;
    if (!result && !hl_bridge_attributes_p2p(device, other, (int)attribute, value))
        result = CUDA_ERROR_INVALID_VALUE;
    return result;
}

static bool enabled[HL_DEVICES_MAX][HL_DEVICES_MAX];

static CUresult set_peer(CUcontext handle, bool on)
{
    hl_bridge_context *context, *peer = (hl_bridge_context *)handle;
    CUresult result = hl_bridge_context_need(&context);

    if (!result && !hl_bridge_context_valid(peer))
        result = CUDA_ERROR_INVALID_CONTEXT;
    if (result)
        return result;
    if (on && !hl_bridge_attributes_peers(context->device, peer->device))
        return peer == context ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    if (__atomic_exchange_n(&enabled[context->device][peer->device], on, __ATOMIC_ACQ_REL) == on)
        return on ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    return CUDA_SUCCESS;
}

HL_API CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags)
{
    return flags ? CUDA_ERROR_INVALID_VALUE : set_peer(peer, true);
}

HL_API CUresult cuCtxDisablePeerAccess(CUcontext peer) { return set_peer(peer, false); }

/* --- contexts --- */

HL_API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice ordinal)
{
    CUresult result = context ? hl_bridge_process_ready() : CUDA_ERROR_INVALID_VALUE;

    return result ? result : hl_bridge_context_retain(ordinal, (hl_bridge_context **)context);
}

HL_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal)
{
    CUresult result = hl_bridge_process_ready();

    return result ? result : hl_bridge_context_release(ordinal);
}

HL_API CUresult cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned *flags, int *active)
{
    uint32_t device;
    CUresult result = hl_bridge_driver_device(ordinal, &device);

    if (result)
        return result;
    hl_bridge_context *context = hl_bridge_context_primary(ordinal);
    if (flags)
        *flags = context->flags;
    if (active)
        *active = context->retained > 0;
    return CUDA_SUCCESS;
}

HL_API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned flags)
{
    uint32_t device;
    CUresult result =
        flags & ~(unsigned)CU_CTX_FLAGS_MASK ? CUDA_ERROR_INVALID_VALUE : hl_bridge_driver_device(ordinal, &device);

    if (!result)
        hl_bridge_context_primary(ordinal)->flags = flags;
    return result;
}

HL_API CUresult cuCtxGetCurrent(CUcontext *context)
{
    CUresult result = context ? hl_bridge_process_ready() : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *context = (CUcontext)hl_bridge_context_current();
    return result;
}

HL_API CUresult cuCtxSetCurrent(CUcontext handle)
{
    CUresult result = hl_bridge_process_ready();

    if (!result && handle && !hl_bridge_context_valid((hl_bridge_context *)handle))
        result = CUDA_ERROR_INVALID_CONTEXT;
    if (!result)
        hl_bridge_context_set((hl_bridge_context *)handle);
    return result;
}

HL_API CUresult cuCtxPushCurrent_v2(CUcontext handle)
{
    CUresult result = hl_bridge_process_ready();

    if (!result && !hl_bridge_context_valid((hl_bridge_context *)handle))
        result = CUDA_ERROR_INVALID_CONTEXT;
    return result ? result : hl_bridge_context_push((hl_bridge_context *)handle);
}

HL_API CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    CUresult result = hl_bridge_process_ready();

    return result ? result : hl_bridge_context_pop((hl_bridge_context **)context);
}

HL_API CUresult cuCtxGetDevice(CUdevice *ordinal)
{
    hl_bridge_context *context;
    CUresult result = ordinal ? hl_bridge_context_need(&context) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *ordinal = context->ordinal;
    return result;
}

/* The forms of CUDA 13 name the context; NULL is the current one. */
static CUresult named_context(CUcontext handle, hl_bridge_context **context)
{
    CUresult result = hl_bridge_process_ready();

    if (result || !handle)
        return result ? result : hl_bridge_context_need(context);
    *context = (hl_bridge_context *)handle;
    return hl_bridge_context_valid(*context) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

HL_API CUresult cuCtxGetDevice_v2(CUdevice *ordinal, CUcontext handle)
{
    hl_bridge_context *context;
    CUresult result = ordinal ? named_context(handle, &context) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *ordinal = context->ordinal;
    return result;
}

HL_API CUresult cuCtxGetId(CUcontext handle, unsigned long long *id)
{
    hl_bridge_context *context = (hl_bridge_context *)handle;
    CUresult result = id ? hl_bridge_process_ready() : CUDA_ERROR_INVALID_VALUE;

    if (!result && !context)
        result = hl_bridge_context_need(&context);
    if (!result && !hl_bridge_context_valid(context))
        result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (!result)
        *id = context->id;
    return result;
}

HL_API CUresult cuCtxGetFlags(unsigned *flags)
{
    hl_bridge_context *context;
    CUresult result = flags ? hl_bridge_context_need(&context) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *flags = context->flags;
    return result;
}

HL_API CUresult cuCtxGetApiVersion(CUcontext handle, unsigned *version)
{
    CUresult result = version ? hl_bridge_process_ready() : CUDA_ERROR_INVALID_VALUE;

    if (!result && handle && !hl_bridge_context_valid((hl_bridge_context *)handle))
        result = CUDA_ERROR_INVALID_CONTEXT;
    if (!result)
        *version = 3020; /* the context interface of CUDA 3.2, as every driver since answers */
    return result;
}

HL_API CUresult cuCtxSynchronize(void)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_stream_device_wait();
}

HL_API CUresult cuCtxSynchronize_v2(CUcontext handle)
{
    hl_bridge_context *context;
    CUresult result = named_context(handle, &context);

    if (result)
        return result;
    hl_bridge_context_push(context);
    result = hl_bridge_stream_device_wait();
    hl_bridge_context_pop(NULL);
    return result;
}

HL_API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    CUresult result = hl_bridge_driver_context();

    if (!result)
        hl_bridge_stream_priorities(least, greatest);
    return result;
}
