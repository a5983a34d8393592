/* Stream-ordered allocation of the runtime API. */
#include "bridge/cudart/runtime.h"
#include "bridge/virtual.h"

_Static_assert((int)cudaMemPoolAttrReleaseThreshold == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD &&
                   (int)cudaMemPoolAttrUsedMemHigh == CU_MEMPOOL_ATTR_USED_MEM_HIGH,
               "pool attributes of runtime and driver");

static cudaError_t allocate(void **pointer, size_t size_bytes, cudaMemPool_t pool, cudaStream_t handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result
                                         : hl_bridge_pool_allocate((CUmemoryPool)pool, size_bytes, stream, pointer));
}

HL_API cudaError_t cudaMallocAsync(void **pointer, size_t size_bytes, cudaStream_t stream)
{
    return allocate(pointer, size_bytes, NULL, stream);
}

HL_API cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size_bytes, cudaMemPool_t pool, cudaStream_t stream)
{
    return pool ? allocate(pointer, size_bytes, pool, stream) : hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
}

HL_API cudaError_t cudaFreeAsync(void *pointer, cudaStream_t handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    return hl_bridge_runtime_done(result ? result : hl_bridge_pool_free(pointer, stream));
}

HL_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int ordinal)
{
    CUresult result = hl_bridge_process_init();

    return hl_bridge_runtime_done(result ? result : hl_bridge_pool_default(ordinal, (CUmemoryPool *)pool));
}

HL_API cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool, int ordinal)
{
    CUresult result = pool ? hl_bridge_process_init() : CUDA_ERROR_INVALID_VALUE;

    return hl_bridge_runtime_done(result ? result : hl_bridge_pool_current(ordinal, (CUmemoryPool *)pool));
}

HL_API cudaError_t cudaDeviceSetMemPool(int ordinal, cudaMemPool_t pool)
{
    CUresult result = hl_bridge_process_init();

    return hl_bridge_runtime_done(result ? result : hl_bridge_pool_set_current(ordinal, (CUmemoryPool)pool));
}

HL_API cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *props)
{
    CUresult result = hl_bridge_process_init();

    if (!props || props->location.type != cudaMemLocationTypeDevice)
        result = CUDA_ERROR_INVALID_VALUE;
    return hl_bridge_runtime_done(result ? result : hl_bridge_pool_create(props->location.id, (CUmemoryPool *)pool));
}

HL_API cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool)
{
    return hl_bridge_runtime_done(hl_bridge_pool_destroy((CUmemoryPool)pool));
}

HL_API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    return hl_bridge_runtime_done(hl_bridge_pool_get((CUmemoryPool)pool, (CUmemPool_attribute)attribute, value));
}

HL_API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    return hl_bridge_runtime_done(hl_bridge_pool_set((CUmemoryPool)pool, (CUmemPool_attribute)attribute, value));
}

/* Any device may use any pool's memory here: a right that is not checked cannot be refused. */
HL_API cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const struct cudaMemAccessDesc *list, size_t count)
{
    return hl_bridge_runtime_done(!list && count ? CUDA_ERROR_INVALID_VALUE : hl_bridge_pool_valid((CUmemoryPool)pool));
}

/* A pool keeps nothing that was freed, so there is nothing to give back. */
HL_API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep_bytes)
{
    (void)keep_bytes;
    return hl_bridge_runtime_done(hl_bridge_pool_valid((CUmemoryPool)pool));
}
