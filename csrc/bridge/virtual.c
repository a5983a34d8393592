/* Virtual memory management; see virtual.h. */
#include "bridge/virtual.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bridge/graph.h"
#include "bridge/slab.h"
#include "core/export.h"
#include "core/ledger.h"
#include "core/report.h"
#include "core/shared_memory.h"

enum { GRANULE = 2 << 20 }; /* minimum and recommended granularity of device memory on every supported product */

struct physical {
    uint32_t live;
    uint32_t device;
    bool host;
    uint32_t users;   /* the handle's own references and one for each mapping */
    uint32_t handles; /* references that release() may still give back */
    size_t size_bytes;
    CUmemAllocationProp prop;
    int file; /* the bytes of exportable memory; -1: they are the reserved range's own pages */
    uint64_t identity;
    bool imported; /* counted by the process that made it */
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
    if (prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED; /* fabric handles, which the device's attributes deny */
    bool host = prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE;
    if (host && prop->requestedHandleTypes)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!host) {
        result = hl_bridge_process_device(prop->location.id, &device);
        if (result)
            return result;
        if (hl_ledger_charge(device, size_bytes))
            return CUDA_ERROR_OUT_OF_MEMORY;
    }
    int file = -1;
    uint64_t identity = 0;
    if (prop->requestedHandleTypes)
        file = hl_shared_memory_file(device, size_bytes, &identity);
    physical = file >= 0 || !prop->requestedHandleTypes ? hl_bridge_slab_take(&physicals) : NULL;
    if (!physical) {
        if (file >= 0)
            close(file);
        if (!host)
            hl_ledger_discharge(device, size_bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->device = device;
    physical->host = host;
    physical->users = physical->handles = 1;
    physical->size_bytes = size_bytes;
    physical->prop = *prop;
    physical->file = file;
    physical->identity = identity;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    return CUDA_SUCCESS;
}

static void drop(struct physical *physical)
{
    if (--physical->users)
        return;
    if (!physical->host && !physical->imported)
        hl_ledger_discharge(physical->device, physical->size_bytes);
    if (physical->file >= 0)
        close(physical->file);
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
    if (!result && physical->file >= 0 && hl_shared_memory_map_file(physical->file, (void *)pointer, size_bytes))
        result = CUDA_ERROR_OUT_OF_MEMORY;
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

/* The pages go back to the host: contents of unmapped memory that nobody else can map are lost, as when a sleeping
 * engine wakes. The range stays reserved. */
static void empty(const struct mapping *gone)
{
    void *at = (void *)gone->at;

    if (gone->physical->file < 0)
        madvise(at, gone->size_bytes, MADV_DONTNEED);
    else if (mmap(at, gone->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                  -1, 0) == MAP_FAILED)
        hl_report_fatal("the host refuses %zu bytes of address space (error %d): raise vm.max_map_count",
                        gone->size_bytes, errno);
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
        empty(gone);
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

HL_EXPORT void hl_bridge_virtual_describe(CUdeviceptr pointer, hl_memory *memory)
{
    pthread_mutex_lock(&lock);
    for (struct mapping *at = mappings; at && at->at <= pointer; at = at->next)
        if (pointer < at->at + at->size_bytes) {
            memory->device = at->physical->device;
            memory->identity = at->physical->identity;
        }
    pthread_mutex_unlock(&lock);
}

HL_EXPORT CUresult hl_bridge_virtual_export(CUmemGenericAllocationHandle handle, int *file)
{
    struct physical *physical = (struct physical *)(uintptr_t)handle;
    CUresult result = CUDA_ERROR_INVALID_VALUE;

    pthread_mutex_lock(&lock);
    if (file && hl_bridge_slab_owns(&physicals, physical) && physical->file >= 0) {
        *file = fcntl(physical->file, F_DUPFD_CLOEXEC, 0);
        result = *file >= 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_virtual_import(int file, CUmemGenericAllocationHandle *handle)
{
    struct physical *physical;
    uint64_t identity;
    size_t size_bytes;

    if (!handle || hl_shared_memory_describe(file, &size_bytes, &identity))
        return CUDA_ERROR_INVALID_VALUE;
    int own = fcntl(file, F_DUPFD_CLOEXEC, 0);
    physical = own < 0 ? NULL : hl_bridge_slab_take(&physicals);
    if (!physical) {
        if (own >= 0)
            close(own);
        return own < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->device = HL_SHARED_MEMORY_DEVICE(identity);
    physical->users = physical->handles = 1;
    physical->size_bytes = size_bytes;
    physical->prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    physical->prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    physical->prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    physical->prop.location.id = hl_bridge_process_ordinal(physical->device);
    physical->file = own;
    physical->identity = identity;
    physical->imported = true;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    return CUDA_SUCCESS;
}
