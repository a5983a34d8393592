/* Virtual memory management; see virtual.h. */
#include "bridge/virtual.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "bridge/graph.h"
#include "bridge/slab.h"
#include "core/export.h"
#include "core/ledger.h"

enum { GRANULE = 2 << 20 }; /* minimum and recommended granularity of device memory on every supported product */

struct physical {
    uint32_t live;
    uint32_t device;
    bool host;
    uint32_t users;   /* the handle's own references and one for each mapping */
    uint32_t handles; /* references that release() may still give back */
    size_t size_bytes;
    CUmemAllocationProp prop;
};

struct mapping { /* a list in order of addresses */
    struct mapping *next;
    CUdeviceptr at;
    size_t size_bytes;
    struct physical *physical;
};

static hl_bridge_slab physicals = HL_SLAB(struct physical, 1u << 20);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping *mappings;

HL_EXPORT CUresult hl_bridge_virtual_granularity(const CUmemAllocationProp *prop, size_t *granularity_bytes)
{
    if (!prop || !granularity_bytes || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    *granularity_bytes = GRANULE;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_virtual_create(size_t size_bytes, const CUmemAllocationProp *prop,
                                            CUmemGenericAllocationHandle *handle)
{
    struct physical *physical;
    uint32_t device = 0;
    CUresult result;

    if (!prop || !handle || !size_bytes || size_bytes % GRANULE || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    bool host = prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE;
    if (!host) {
        result = hl_bridge_process_device(prop->location.id, &device);
        if (result)
            return result;
        if (hl_ledger_charge(device, size_bytes))
            return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical = hl_bridge_slab_take(&physicals);
    if (!physical) {
        if (!host)
            hl_ledger_discharge(device, size_bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->device = device;
    physical->host = host;
    physical->users = physical->handles = 1;
    physical->size_bytes = size_bytes;
    physical->prop = *prop;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    return CUDA_SUCCESS;
}

static void drop(struct physical *physical)
{
    if (--physical->users)
        return;
    if (!physical->host)
        hl_ledger_discharge(physical->device, physical->size_bytes);
    hl_bridge_slab_give(&physicals, physical);
}

HL_EXPORT CUresult hl_bridge_virtual_release(CUmemGenericAllocationHandle handle)
{
    struct physical *physical = (struct physical *)(uintptr_t)handle;
    CUresult result = CUDA_ERROR_INVALID_VALUE;

    pthread_mutex_lock(&lock);
    if (hl_bridge_slab_owns(&physicals, physical) && physical->handles) {
        physical->handles--;
        drop(physical);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_virtual_reserve(size_t size_bytes, CUdeviceptr *pointer)
{
    hl_bridge_context *context = hl_bridge_context_current();
    void *address;

    if (!pointer || !size_bytes || size_bytes % GRANULE)
        return CUDA_ERROR_INVALID_VALUE;
    if (hl_ledger_allocate(context ? context->device : 0, HL_MEMORY_RESERVED, size_bytes, &address))
        return CUDA_ERROR_OUT_OF_MEMORY;
    *pointer = (CUdeviceptr)(uintptr_t)address;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_virtual_unreserve(CUdeviceptr pointer, size_t size_bytes)
{
    hl_memory memory;

    if (!hl_ledger_find((void *)pointer, &memory) || memory.kind != HL_MEMORY_RESERVED || memory.base != pointer ||
        memory.size_bytes != size_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    return hl_ledger_free((void *)pointer) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_virtual_map(CUdeviceptr pointer, size_t size_bytes, size_t offset_bytes,
                                         CUmemGenericAllocationHandle handle)
{
    struct physical *physical = (struct physical *)(uintptr_t)handle;
    struct mapping *mapping = malloc(sizeof *mapping), **at;
    CUresult result = CUDA_SUCCESS;
    hl_memory memory;

    if (!mapping)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (at = &mappings; *at && (*at)->at + (*at)->size_bytes <= pointer; at = &(*at)->next)
        ;
    if (!hl_bridge_slab_owns(&physicals, physical) || offset_bytes || !size_bytes || size_bytes % GRANULE ||
        size_bytes > physical->size_bytes || pointer % GRANULE || !hl_ledger_find((void *)pointer, &memory) ||
        memory.kind != HL_MEMORY_RESERVED || size_bytes > memory.base + memory.size_bytes - pointer)
        result = CUDA_ERROR_INVALID_VALUE;
    else if (*at && (*at)->at < pointer + size_bytes)
        result = CUDA_ERROR_ALREADY_MAPPED;
    if (!result) {
        *mapping = (struct mapping){.next = *at, .at = pointer, .size_bytes = size_bytes, .physical = physical};
        *at = mapping;
        physical->users++;
    }
    pthread_mutex_unlock(&lock);
    if (result)
        free(mapping);
    return result;
}

HL_EXPORT CUresult hl_bridge_virtual_unmap(CUdeviceptr pointer, size_t size_bytes)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;

    pthread_mutex_lock(&lock);
    struct mapping **at = &mappings;
    while (*at && (*at)->at < pointer)
        at = &(*at)->next;
    while (*at && (*at)->at >= pointer && (*at)->at + (*at)->size_bytes <= pointer + size_bytes) {
        struct mapping *gone = *at;
        *at = gone->next;
        /* The pages go back to the host: contents of unmapped memory are lost, as when a sleeping engine wakes. */
        madvise((void *)gone->at, gone->size_bytes, MADV_DONTNEED);
        drop(gone->physical);
        free(gone);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_virtual_retain(CUdeviceptr pointer, CUmemGenericAllocationHandle *handle)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;

    if (!handle)
        return result;
    pthread_mutex_lock(&lock);
    for (struct mapping *at = mappings; at; at = at->next)
        if (pointer >= at->at && pointer < at->at + at->size_bytes) {
            at->physical->users++;
            at->physical->handles++;
            *handle = (CUmemGenericAllocationHandle)(uintptr_t)at->physical;
            result = CUDA_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_virtual_properties(CUmemGenericAllocationHandle handle, CUmemAllocationProp *prop)
{
    struct physical *physical = (struct physical *)(uintptr_t)handle;

    if (!prop || !hl_bridge_slab_owns(&physicals, physical))
        return CUDA_ERROR_INVALID_VALUE;
    *prop = physical->prop;
    return CUDA_SUCCESS;
}
