/* Memory of the runtime API. */
#include "bridge/memory.h"

#include <string.h>

#include "bridge/cudart/runtime.h"
#include "bridge/ipc.h"
#include "bridge/modules.h"

static cudaError_t allocate(hl_memory_kind kind, void **pointer, size_t size_bytes)
{
    CUresult result = hl_bridge_runtime_context();

    if (!result && pointer && !size_bytes) {
        *pointer = NULL;
        return cudaSuccess;
    }
    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_allocate(kind, size_bytes, pointer));
}

HL_API cudaError_t cudaMalloc(void **pointer, size_t size_bytes)
{
    return allocate(HL_MEMORY_DEVICE, pointer, size_bytes);
}

HL_API cudaError_t cudaMallocManaged(void **pointer, size_t size_bytes, unsigned flags)
{
    if (flags != cudaMemAttachGlobal && flags != cudaMemAttachHost)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    return allocate(HL_MEMORY_MANAGED, pointer, size_bytes);
}

HL_API cudaError_t cudaMallocPitch(void **pointer, size_t *pitch, size_t width, size_t height)
{
    size_t row_bytes, bytes;

    if (!pitch || __builtin_add_overflow(width, 511, &row_bytes))
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    row_bytes = row_bytes / 512 * 512;
    if (__builtin_mul_overflow(row_bytes, height, &bytes))
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    *pitch = row_bytes;
    return allocate(HL_MEMORY_DEVICE, pointer, bytes);
}

HL_API cudaError_t cudaFree(void *pointer)
{
    CUresult result = hl_bridge_runtime_context(); /* cudaFree(0) is how programs make a context */

    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_free(pointer, false));
}

HL_API cudaError_t cudaHostAlloc(void **pointer, size_t size_bytes, unsigned flags)
{
    if (flags & ~(unsigned)(cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined))
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    return allocate(HL_MEMORY_PINNED, pointer, size_bytes);
}

HL_API cudaError_t cudaMallocHost(void **pointer, size_t size_bytes)
{
    return allocate(HL_MEMORY_PINNED, pointer, size_bytes);
}

HL_API cudaError_t cudaFreeHost(void *pointer)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_free(pointer, true));
}

HL_API cudaError_t cudaHostRegister(void *pointer, size_t size_bytes, unsigned flags)
{
    const unsigned known =
        cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterIoMemory | cudaHostRegisterReadOnly;
    CUresult result = hl_bridge_runtime_context();

    if (flags & ~known)
        result = CUDA_ERROR_INVALID_VALUE;
    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_register(pointer, size_bytes));
}

HL_API cudaError_t cudaHostUnregister(void *pointer)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_unregister(pointer));
}

HL_API cudaError_t cudaHostGetDevicePointer(void **device_pointer, void *pointer, unsigned flags)
{
    CUresult result = hl_bridge_runtime_context();
    hl_memory memory;

    if (!device_pointer || flags)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    hl_bridge_memory_of(pointer, &memory);
    if (!result && memory.kind != HL_MEMORY_PINNED && memory.kind != HL_MEMORY_REGISTERED)
        result = CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *device_pointer = pointer;
    return hl_bridge_runtime_done(result);
}

_Static_assert(sizeof(struct cudaPointerAttributes) >= 24, "cudaPointerAttributes");

HL_API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer)
{
    CUresult result = hl_bridge_process_init();
    hl_memory memory;

    if (!attributes)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    if (result)
        return hl_bridge_runtime_done(result);
    hl_bridge_memory_of(pointer, &memory);
    memset(attributes, 0, sizeof *attributes);
    if (memory.kind == HL_MEMORY_NONE) {
        attributes->type = cudaMemoryTypeUnregistered;
        attributes->device = cudaInvalidDeviceId;
        attributes->hostPointer = (void *)pointer;
        return cudaSuccess;
    }
    attributes->device = hl_bridge_process_ordinal(memory.device);
    attributes->devicePointer = (void *)pointer;
    if (memory.kind == HL_MEMORY_MANAGED) {
        attributes->type = cudaMemoryTypeManaged;
        attributes->hostPointer = (void *)pointer;
    } else if (hl_bridge_memory_on_device(&memory)) {
        attributes->type = cudaMemoryTypeDevice;
    } else {
        attributes->type = cudaMemoryTypeHost;
        attributes->hostPointer = (void *)pointer;
    }
    return cudaSuccess;
}

static CUresult direction_of(enum cudaMemcpyKind kind, hl_bridge_direction *direction)
{
    static const hl_bridge_direction directions[] = {[cudaMemcpyHostToHost] = HL_H2H,
                                                     [cudaMemcpyHostToDevice] = HL_H2D,
                                                     [cudaMemcpyDeviceToHost] = HL_D2H,
                                                     [cudaMemcpyDeviceToDevice] = HL_D2D,
                                                     [cudaMemcpyDefault] = HL_ANY};

    if ((unsigned)kind > cudaMemcpyDefault)
        return (CUresult)cudaErrorInvalidMemcpyDirection;
    *direction = directions[kind];
    return CUDA_SUCCESS;
}

static cudaError_t copy(const hl_bridge_effect *effect, enum cudaMemcpyKind kind, cudaStream_t handle, bool wait)
{
    hl_bridge_stream *stream;
    hl_bridge_direction direction;
    CUresult result = direction_of(kind, &direction);

    if (!result)
        result = hl_bridge_runtime_stream(handle, &stream);
    /* The runtime takes the direction as a promise that it does not check against unregistered host memory; a wrong
     * promise faults on the card, so it is an error here (cudaErrorInvalidValue, as for known pointers). */
    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_copy(effect, direction, stream, wait));
}

HL_API cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind)
{
    hl_bridge_effect effect = {.target = target, .source = source, .width = bytes, .height = 1};

    return copy(&effect, kind, NULL, true);
}

HL_API cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream)
{
    hl_bridge_effect effect = {.target = target, .source = source, .width = bytes, .height = 1};

    return copy(&effect, kind, stream, false);
}

HL_API cudaError_t cudaMemcpy2D(void *target, size_t target_pitch, const void *source, size_t source_pitch,
                                size_t width, size_t height, enum cudaMemcpyKind kind)
{
    hl_bridge_effect effect = {target, source, target_pitch, source_pitch, width, height, 0, 0, false, false};

    return copy(&effect, kind, NULL, true);
}

HL_API cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch,
                                     size_t width, size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    hl_bridge_effect effect = {target, source, target_pitch, source_pitch, width, height, 0, 0, false, false};

    return copy(&effect, kind, stream, false);
}

HL_API cudaError_t cudaMemcpyPeer(void *target, int target_ordinal, const void *source, int source_ordinal,
                                  size_t bytes)
{
    hl_bridge_effect effect = {.target = target, .source = source, .width = bytes, .height = 1};

    (void)target_ordinal, (void)source_ordinal; /* addresses are unique over devices */
    return copy(&effect, cudaMemcpyDefault, NULL, true);
}

HL_API cudaError_t cudaMemcpyPeerAsync(void *target, int target_ordinal, const void *source, int source_ordinal,
                                       size_t bytes, cudaStream_t stream)
{
    hl_bridge_effect effect = {.target = target, .source = source, .width = bytes, .height = 1};

    (void)target_ordinal, (void)source_ordinal;
    return copy(&effect, cudaMemcpyDefault, stream, false);
}

static cudaError_t fill(void *target, size_t pitch, int value, size_t width, size_t height, cudaStream_t handle,
                        bool wait)
{
    hl_bridge_effect effect = {.target = target,
                               .target_pitch = pitch,
                               .width = width,
                               .height = height,
                               .pattern = (uint8_t)value,
                               .pattern_bytes = 1};
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_fill(&effect, stream, wait));
}

HL_API cudaError_t cudaMemset(void *target, int value, size_t bytes)
{
    return fill(target, bytes, value, bytes, 1, NULL, true);
}

HL_API cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t stream)
{
    return fill(target, bytes, value, bytes, 1, stream, false);
}

HL_API cudaError_t cudaMemset2D(void *target, size_t pitch, int value, size_t width, size_t height)
{
    return fill(target, pitch, value, width, height, NULL, true);
}

HL_API cudaError_t cudaMemset2DAsync(void *target, size_t pitch, int value, size_t width, size_t height,
                                     cudaStream_t stream)
{
    return fill(target, pitch, value, width, height, stream, false);
}

static CUresult symbol(const void *host, void **address, size_t *size_bytes)
{
    CUresult result = hl_bridge_runtime_context();

    if (!result)
        result = hl_bridge_variable_address(host, address, size_bytes);
    return result == CUDA_ERROR_NOT_FOUND ? (CUresult)cudaErrorInvalidSymbol : result;
}

HL_API cudaError_t cudaGetSymbolAddress(void **address, const void *host)
{
    return hl_bridge_runtime_done(address ? symbol(host, address, NULL) : CUDA_ERROR_INVALID_VALUE);
}

HL_API cudaError_t cudaGetSymbolSize(size_t *size_bytes, const void *host)
{
    return hl_bridge_runtime_done(size_bytes ? symbol(host, NULL, size_bytes) : CUDA_ERROR_INVALID_VALUE);
}

static cudaError_t copy_symbol(const void *host, const void *source, void *target, size_t bytes, size_t offset,
                               enum cudaMemcpyKind kind, cudaStream_t stream, bool wait)
{
    void *address;
    size_t size;
    CUresult result = symbol(host, &address, &size);

    if (!result && (offset > size || bytes > size - offset))
        result = CUDA_ERROR_INVALID_VALUE;
    if (result)
        return hl_bridge_runtime_done(result);
    hl_bridge_effect effect = {.target = target ? target : (char *)address + offset,
                               .source = source ? source : (char *)address + offset,
                               .width = bytes,
                               .height = 1};
    return copy(&effect, kind, stream, wait);
}

HL_API cudaError_t cudaMemcpyToSymbol(const void *host, const void *source, size_t bytes, size_t offset,
                                      enum cudaMemcpyKind kind)
{
    return copy_symbol(host, source, NULL, bytes, offset, kind, NULL, true);
}

HL_API cudaError_t cudaMemcpyToSymbolAsync(const void *host, const void *source, size_t bytes, size_t offset,
                                           enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return copy_symbol(host, source, NULL, bytes, offset, kind, stream, false);
}

HL_API cudaError_t cudaMemcpyFromSymbol(void *target, const void *host, size_t bytes, size_t offset,
                                        enum cudaMemcpyKind kind)
{
    return copy_symbol(host, NULL, target, bytes, offset, kind, NULL, true);
}

HL_API cudaError_t cudaMemcpyFromSymbolAsync(void *target, const void *host, size_t bytes, size_t offset,
                                             enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return copy_symbol(host, NULL, target, bytes, offset, kind, stream, false);
}

/* --- interprocess handles --- */

_Static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(CUipcMemHandle) &&
                   sizeof(cudaIpcEventHandle_t) == sizeof(CUipcEventHandle) &&
                   (int)cudaIpcMemLazyEnablePeerAccess == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS,
               "handles of runtime and driver are the same");

HL_API cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *pointer)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_ipc_memory_handle(pointer, (CUipcMemHandle *)handle));
}

HL_API cudaError_t cudaIpcOpenMemHandle(void **pointer, cudaIpcMemHandle_t handle, unsigned flags)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(
        result ? result : hl_bridge_ipc_memory_open((const CUipcMemHandle *)&handle, flags, pointer));
}

HL_API cudaError_t cudaIpcCloseMemHandle(void *pointer)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_ipc_memory_close(pointer));
}

HL_API cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *handle, cudaEvent_t event)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_ipc_event_handle(event, (CUipcEventHandle *)handle));
}

HL_API cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *event, cudaIpcEventHandle_t handle)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_ipc_event_open((const CUipcEventHandle *)&handle, event));
}
