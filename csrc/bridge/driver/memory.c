/* Memory of the driver API. */
#include "bridge/memory.h"

#include <string.h>

#include "bridge/driver/driver.h"
#include "bridge/ipc.h"
#include "bridge/virtual.h"

HL_API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_memory_info(free_bytes, total_bytes);
}

static CUresult allocate(hl_memory_kind kind, size_t size_bytes, void **pointer)
{
    CUresult result = size_bytes ? hl_bridge_driver_context() : CUDA_ERROR_INVALID_VALUE;

    return result ? result : hl_bridge_memory_allocate(kind, size_bytes, pointer);
}

HL_API CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t size_bytes)
{
    return allocate(HL_MEMORY_DEVICE, size_bytes, (void **)pointer);
}

HL_API CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t size_bytes, unsigned flags)
{
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(HL_MEMORY_MANAGED, size_bytes, (void **)pointer);
}

HL_API CUresult cuMemFree_v2(CUdeviceptr pointer)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_memory_free((void *)pointer, false);
}

HL_API CUresult cuMemHostAlloc(void **pointer, size_t size_bytes, unsigned flags)
{
    if (flags & ~(unsigned)(CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED))
        return CUDA_ERROR_INVALID_VALUE;
    return allocate(HL_MEMORY_PINNED, size_bytes, pointer);
}

HL_API CUresult cuMemAllocHost_v2(void **pointer, size_t size_bytes)
{
    return allocate(HL_MEMORY_PINNED, size_bytes, pointer);
}

HL_API CUresult cuMemFreeHost(void *pointer)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_memory_free(pointer, true);
}

HL_API CUresult cuMemHostRegister_v2(void *pointer, size_t size_bytes, unsigned flags)
{
    const unsigned known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_IOMEMORY |
                           CU_MEMHOSTREGISTER_READ_ONLY;
    CUresult result = flags & ~known ? CUDA_ERROR_INVALID_VALUE : hl_bridge_driver_context();

    return result ? result : hl_bridge_memory_register(pointer, size_bytes);
}

HL_API CUresult cuMemHostUnregister(void *pointer)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_memory_unregister(pointer);
}

HL_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device_pointer, void *pointer, unsigned flags)
{
    CUresult result = device_pointer && !flags ? hl_bridge_driver_context() : CUDA_ERROR_INVALID_VALUE;
    hl_memory memory;

    if (result)
        return result;
    hl_bridge_memory_of(pointer, &memory);
    if (memory.kind != HL_MEMORY_PINNED && memory.kind != HL_MEMORY_REGISTERED)
        return CUDA_ERROR_INVALID_VALUE;
    *device_pointer = (CUdeviceptr)(uintptr_t)pointer;
    return CUDA_SUCCESS;
}

HL_API CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size_bytes, CUdeviceptr pointer)
{
    CUresult result = hl_bridge_driver_context();
    hl_memory memory;

    if (result)
        return result;
    hl_bridge_memory_of((void *)pointer, &memory);
    if (!hl_bridge_memory_on_device(&memory))
        return CUDA_ERROR_NOT_FOUND;
    if (base)
        *base = memory.base;
    if (size_bytes)
        *size_bytes = memory.size_bytes;
    return CUDA_SUCCESS;
}

static CUresult pointer_attribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer,
                                  const hl_memory *memory, const void *caller)
{
    bool device = hl_bridge_memory_on_device(memory);
    int ordinal = hl_bridge_process_ordinal(memory->device);

    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)value = (CUcontext)hl_bridge_context_primary(ordinal); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)value = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = pointer; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (device && memory->kind != HL_MEMORY_MANAGED)
            return CUDA_ERROR_INVALID_VALUE;
        *(void **)value = (void *)pointer;
        break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned *)value = memory->kind == HL_MEMORY_MANAGED; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = ordinal; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)value = memory->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)value = memory->size_bytes; break;
    case CU_POINTER_ATTRIBUTE_MAPPED: *(unsigned *)value = 1; break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)value = memory->base; break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: *(unsigned *)value = memory->kind == HL_MEMORY_DEVICE; break;
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: *(unsigned *)value = 0; break;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: *(unsigned *)value = CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE; break;
    default:
        return (CUresult)hl_bridge_unsupported_part("cuPointerGetAttribute", HL_LIBRARY, "attribute", attribute, caller,
                                                    CUDA_ERROR_INVALID_VALUE);
    }
    return CUDA_SUCCESS;
}

HL_API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer)
{
    CUresult result = value ? hl_bridge_process_ready() : CUDA_ERROR_INVALID_VALUE;
    hl_memory memory;

    if (result)
        return result;
    hl_bridge_memory_of((void *)pointer, &memory);
    if (memory.kind == HL_MEMORY_NONE)
        return CUDA_ERROR_INVALID_VALUE;
    return pointer_attribute(value, attribute, pointer, &memory, __builtin_return_address(0));
}

/* Unlike the single query, unknown memory is no error: its attributes are NULL or 0. */
HL_API CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **values,
                                       CUdeviceptr pointer)
{
    CUresult result = attributes && values ? hl_bridge_process_ready() : CUDA_ERROR_INVALID_VALUE;
    hl_memory memory;

    if (result)
        return result;
    hl_bridge_memory_of((void *)pointer, &memory);
    for (unsigned i = 0; i < count; i++) {
        bool wide = attributes[i] == CU_POINTER_ATTRIBUTE_CONTEXT ||
                    attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER ||
                    attributes[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER ||
                    attributes[i] == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR ||
                    attributes[i] == CU_POINTER_ATTRIBUTE_RANGE_SIZE || attributes[i] == CU_POINTER_ATTRIBUTE_BUFFER_ID;
        memset(values[i], 0, wide ? 8 : 4);
        if (memory.kind == HL_MEMORY_NONE) {
            if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
                *(int *)values[i] = -2; /* as the driver: no device */
            continue;
        }
        pointer_attribute(values[i], attributes[i], pointer, &memory, __builtin_return_address(0));
    }
    return CUDA_SUCCESS;
}

static CUresult copy(CUdeviceptr target, CUdeviceptr source, size_t bytes, hl_bridge_direction direction,
                     CUstream handle, bool wait)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result
                  : hl_bridge_memory_copy_bytes((void *)target, (const void *)source, bytes, direction, stream, wait);
}

HL_API CUresult cuMemcpy(CUdeviceptr target, CUdeviceptr source, size_t bytes)
{
    return copy(target, source, bytes, HL_ANY, NULL, true);
}

HL_API CUresult cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    return copy(target, source, bytes, HL_ANY, stream, false);
}

HL_API CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t bytes)
{
    return copy(target, (CUdeviceptr)(uintptr_t)source, bytes, HL_H2D, NULL, true);
}

HL_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream stream)
{
    return copy(target, (CUdeviceptr)(uintptr_t)source, bytes, HL_H2D, stream, false);
}

HL_API CUresult cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t bytes)
{
    return copy((CUdeviceptr)(uintptr_t)target, source, bytes, HL_D2H, NULL, true);
}

HL_API CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    return copy((CUdeviceptr)(uintptr_t)target, source, bytes, HL_D2H, stream, false);
}

HL_API CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes)
{
    return copy(target, source, bytes, HL_D2D, NULL, true);
}

HL_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    return copy(target, source, bytes, HL_D2D, stream, false);
}

static CUresult fill(CUdeviceptr target, size_t pitch, unsigned pattern, unsigned pattern_bytes, size_t width,
                     size_t height, CUstream handle, bool wait)
{
    hl_bridge_effect effect = {.target = (void *)target,
                               .target_pitch = pitch,
                               .height = height,
                               .pattern = pattern,
                               .pattern_bytes = pattern_bytes};
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    if (!result && __builtin_mul_overflow(width, pattern_bytes, &effect.width))
        result = CUDA_ERROR_INVALID_VALUE;
    return result ? result : hl_bridge_memory_fill(&effect, stream, wait);
}

HL_API CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t count)
{
    return fill(target, 0, value, 1, count, 1, NULL, true);
}

HL_API CUresult cuMemsetD16_v2(CUdeviceptr target, unsigned short value, size_t count)
{
    return fill(target, 0, value, 2, count, 1, NULL, true);
}

HL_API CUresult cuMemsetD32_v2(CUdeviceptr target, unsigned value, size_t count)
{
    return fill(target, 0, value, 4, count, 1, NULL, true);
}

HL_API CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, CUstream stream)
{
    return fill(target, 0, value, 1, count, 1, stream, false);
}

HL_API CUresult cuMemsetD16Async(CUdeviceptr target, unsigned short value, size_t count, CUstream stream)
{
    return fill(target, 0, value, 2, count, 1, stream, false);
}

HL_API CUresult cuMemsetD32Async(CUdeviceptr target, unsigned value, size_t count, CUstream stream)
{
    return fill(target, 0, value, 4, count, 1, stream, false);
}

/* --- pools --- */

HL_API CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t size_bytes, CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_pool_allocate(NULL, size_bytes, stream, (void **)pointer);
}

HL_API CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    return result ? result : hl_bridge_pool_free((void *)pointer, stream);
}

HL_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice ordinal)
{
    CUresult result = hl_bridge_process_ready();

    return result ? result : hl_bridge_pool_default(ordinal, pool);
}

HL_API CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value)
{
    return hl_bridge_pool_get(pool, attribute, value);
}

HL_API CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value)
{
    return hl_bridge_pool_set(pool, attribute, value);
}

/* --- virtual memory management --- */

HL_API CUresult cuMemGetAllocationGranularity(size_t *granularity_bytes, const CUmemAllocationProp *prop,
                                              CUmemAllocationGranularity_flags option)
{
    (void)option; /* minimum and recommended are the same */
    return hl_bridge_virtual_granularity(prop, granularity_bytes);
}

HL_API CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size_bytes, const CUmemAllocationProp *prop,
                            unsigned long long flags)
{
    CUresult result = flags ? CUDA_ERROR_INVALID_VALUE : hl_bridge_process_ready();

    return result ? result : hl_bridge_virtual_create(size_bytes, prop, handle);
}

HL_API CUresult cuMemRelease(CUmemGenericAllocationHandle handle) { return hl_bridge_virtual_release(handle); }

HL_API CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t size_bytes, size_t alignment, CUdeviceptr wanted,
                                    unsigned long long flags)
{
    CUresult result = flags ? CUDA_ERROR_INVALID_VALUE : hl_bridge_process_ready();

    (void)wanted; /* a hint */
    if (alignment & (alignment - 1) || alignment > (2u << 20))
        result = CUDA_ERROR_INVALID_VALUE;
    return result ? result : hl_bridge_virtual_reserve(size_bytes, pointer);
}

HL_API CUresult cuMemAddressFree(CUdeviceptr pointer, size_t size_bytes)
{
    return hl_bridge_virtual_unreserve(pointer, size_bytes);
}

HL_API CUresult cuMemMap(CUdeviceptr pointer, size_t size_bytes, size_t offset_bytes,
                         CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    return flags ? CUDA_ERROR_INVALID_VALUE : hl_bridge_virtual_map(pointer, size_bytes, offset_bytes, handle);
}

HL_API CUresult cuMemUnmap(CUdeviceptr pointer, size_t size_bytes)
{
    return hl_bridge_virtual_unmap(pointer, size_bytes);
}

/* Rights of devices on mapped memory: kernels do not run, so nobody would be refused. The range must be reserved. */
HL_API CUresult cuMemSetAccess(CUdeviceptr pointer, size_t size_bytes, const CUmemAccessDesc *list, size_t count)
{
    hl_memory memory;

    hl_bridge_memory_of((void *)pointer, &memory);
    if (!list || !count || memory.kind != HL_MEMORY_RESERVED ||
        !hl_bridge_memory_inside(&memory, (void *)pointer, size_bytes))
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

HL_API CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *pointer)
{
    return hl_bridge_virtual_retain((CUdeviceptr)(uintptr_t)pointer, handle);
}

HL_API CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    return hl_bridge_virtual_properties(handle, prop);
}

HL_API CUresult cuMemExportToShareableHandle(void *out, CUmemGenericAllocationHandle handle,
                                             CUmemAllocationHandleType type, unsigned long long flags)
{
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    return hl_bridge_virtual_export(handle, out);
}

HL_API CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shared,
                                               CUmemAllocationHandleType type)
{
    CUresult result = hl_bridge_process_ready();

    if (result)
        return result;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    return hl_bridge_virtual_import((int)(intptr_t)shared, handle); /* the descriptor itself stands in the pointer */
}

/* --- interprocess handles --- */

HL_API CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_ipc_memory_handle((void *)pointer, handle);
}

HL_API CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned flags)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_ipc_memory_open(&handle, flags, (void **)pointer);
}

HL_API CUresult cuIpcCloseMemHandle(CUdeviceptr pointer)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_ipc_memory_close((void *)pointer);
}

HL_API CUresult cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_ipc_event_handle(event, handle);
}

HL_API CUresult cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_ipc_event_open(&handle, event);
}
