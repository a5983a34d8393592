/* Stream-ordered allocation (cudaMallocAsync); see virtual.h.
 *
 * Memory is handed out and taken back when the call is made, not when the stream gets there. A pool keeps what is freed
 * up to its release threshold on the card; here it gives all of it back at once, which is what the default threshold of
 * 0 does at the next synchronisation. */
#include <pthread.h>
#include <string.h>

#include "bridge/graph.h"
#include "bridge/slab.h"
#include "bridge/stub.h"
#include "bridge/virtual.h"
#include "core/export.h"
#include "core/ledger.h"

struct pool {
    uint32_t live;
    uint32_t device;
    int ordinal;
    int reuse[3]; /* the three reuse switches: kept, without meaning here */
    cuuint64_t release_threshold, used_bytes, used_bytes_high;
};

static hl_bridge_slab pools = HL_SLAB(struct pool, 4096);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pool *defaults[HL_DEVICES_MAX], *current[HL_DEVICES_MAX];

static struct pool *new_pool(int ordinal, uint32_t device)
{
    struct pool *pool = hl_bridge_slab_take(&pools);

    if (pool) {
        pool->ordinal = ordinal;
        pool->device = device;
        pool->reuse[0] = pool->reuse[1] = pool->reuse[2] = 1;
    }
    return pool;
}

HL_EXPORT CUresult hl_bridge_pool_default(int ordinal, CUmemoryPool *handle)
{
    uint32_t device;
    CUresult result = hl_bridge_process_device(ordinal, &device);

    if (result)
        return result;
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    if (!defaults[device])
        defaults[device] = new_pool(ordinal, device);
    *handle = (CUmemoryPool)defaults[device];
    pthread_mutex_unlock(&lock);
    return *handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

HL_EXPORT CUresult hl_bridge_pool_current(int ordinal, CUmemoryPool *handle)
{
    uint32_t device;
    CUresult result = hl_bridge_process_device(ordinal, &device);

    if (result)
        return result;
    if (!current[device])
        return hl_bridge_pool_default(ordinal, handle);
    *handle = (CUmemoryPool)current[device];
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_pool_valid(CUmemoryPool pool)
{
    return hl_bridge_slab_owns(&pools, pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

HL_EXPORT CUresult hl_bridge_pool_set_current(int ordinal, CUmemoryPool pool)
{
    uint32_t device;
    CUresult result = hl_bridge_process_device(ordinal, &device);

    if (result || hl_bridge_pool_valid(pool))
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    current[device] = (struct pool *)pool;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_pool_create(int ordinal, CUmemoryPool *handle)
{
    uint32_t device;
    CUresult result = hl_bridge_process_device(ordinal, &device);

    if (result || !handle)
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    *handle = (CUmemoryPool)new_pool(ordinal, device);
    return *handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

HL_EXPORT CUresult hl_bridge_pool_destroy(CUmemoryPool handle)
{
    struct pool *pool = (struct pool *)handle;

    if (hl_bridge_pool_valid(handle) || defaults[pool->device] == pool)
        return CUDA_ERROR_INVALID_VALUE;
    if (current[pool->device] == pool)
        current[pool->device] = NULL;
    hl_bridge_slab_give(&pools, pool);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_pool_allocate(CUmemoryPool handle, size_t size_bytes, hl_bridge_stream *stream,
                                           void **pointer)
{
    struct pool *pool = (struct pool *)handle;
    CUresult result = CUDA_SUCCESS;

    if (!pointer)
        return CUDA_ERROR_INVALID_VALUE;
    if (!handle) {
        result = hl_bridge_pool_current(hl_bridge_process_ordinal(stream->device), &handle);
        pool = (struct pool *)handle;
    } else if (hl_bridge_pool_valid(handle)) {
        result = CUDA_ERROR_INVALID_VALUE;
    }
    if (!result)
        result = hl_bridge_graph_use(stream);
    if (result)
        return result;
    if (hl_graph_capturing(stream->line)) { /* an allocation node: a graph here holds launches and bytes only */
        hl_bridge_graph_invalidate(stream);
        return (CUresult)hl_bridge_unsupported_part("stream-ordered allocation", "libcuda",
                                                    "a capturing stream, number", (long)stream->id, NULL,
                                                    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    if (!size_bytes) {
        *pointer = NULL;
        return CUDA_SUCCESS;
    }
    if (hl_ledger_allocate(pool->device, HL_MEMORY_DEVICE, size_bytes, pointer))
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    pool->used_bytes += size_bytes;
    if (pool->used_bytes > pool->used_bytes_high)
        pool->used_bytes_high = pool->used_bytes;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_pool_free(void *pointer, hl_bridge_stream *stream)
{
    hl_memory memory;

    if (!pointer)
        return CUDA_SUCCESS;
    CUresult result = hl_bridge_graph_use(stream);
    if (result)
        return result;
    if (hl_graph_capturing(stream->line))
        return hl_bridge_graph_invalidate(stream);
    if (!hl_ledger_find(pointer, &memory) || memory.kind != HL_MEMORY_DEVICE || memory.base != (uintptr_t)pointer)
        return CUDA_ERROR_INVALID_VALUE;
    struct pool *pool = current[memory.device] ? current[memory.device] : defaults[memory.device];
    if (pool) {
        pthread_mutex_lock(&lock);
        pool->used_bytes -= memory.size_bytes < pool->used_bytes ? memory.size_bytes : pool->used_bytes;
        pthread_mutex_unlock(&lock);
    }
    return hl_ledger_free(pointer) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_pool_get(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
    struct pool *pool = (struct pool *)handle;

    if (!value || hl_bridge_pool_valid(handle))
        return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        *(int *)value = pool->reuse[attribute - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES];
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: *(cuuint64_t *)value = pool->release_threshold; return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: *(cuuint64_t *)value = pool->used_bytes; return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: *(cuuint64_t *)value = pool->used_bytes_high; return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

HL_EXPORT CUresult hl_bridge_pool_set(CUmemoryPool handle, CUmemPool_attribute attribute, const void *value)
{
    struct pool *pool = (struct pool *)handle;

    if (!value || hl_bridge_pool_valid(handle))
        return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        pool->reuse[attribute - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES] = *(const int *)value;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: pool->release_threshold = *(const cuuint64_t *)value; return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        if (*(const cuuint64_t *)value)
            return CUDA_ERROR_INVALID_VALUE;
        pool->used_bytes_high = pool->used_bytes;
        return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}
