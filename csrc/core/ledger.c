/* Device memory. See ledger.h.
 *
 * Counts are kept per process and device and summed when asked: a count of its own could not be repaired after a kill.
 * Addresses are kept per process, sorted, because every copy asks what its pointers are. */
#include "ledger.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "export.h"
#include "poison.h"
#include "report.h"
#include "segment_private.h"
#include "shared_memory.h"

#define GRANULE_BYTES (UINT64_C(2) << 20)
#define PAGE_BYTES UINT64_C(4096)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static hl_memory *blocks; /* by base */
static size_t blocks_used, blocks_room;

static size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

/* Under the memory lock. */
static int64_t used_bytes(hl_segment *segment, uint32_t device)
{
    int64_t sum = 0;
    uint32_t high = atomic_load(&segment->contexts_high);
    for (uint32_t i = 1; i <= high; i++) {
        const hl_context *context = &segment->contexts[i];
        if (atomic_load(&context->used) && context->device == device)
            sum += atomic_load(&context->charged_bytes);
    }
    return sum;
}

static bool try_charge(hl_segment *segment, hl_context *context, int64_t bytes)
{
    uint32_t device = context->device;
    hl_lock_acquire(&segment->devices[device].memory_lock);
    bool fits = bytes <= segment->facts[device].total_memory_bytes - used_bytes(segment, device);
    if (fits)
        atomic_fetch_add(&context->charged_bytes, bytes);
    hl_lock_release(&segment->devices[device].memory_lock);
    return fits;
}

/* The dead are asked to give back only when memory has run out: looking at every process costs system calls. */
static int charge(hl_segment *segment, hl_context *context, size_t bytes)
{
    if (bytes > INT64_MAX / 2)
        return -ENOMEM;
    for (;;) {
        if (try_charge(segment, context, (int64_t)bytes))
            return 0;
        if (!hl_segment_reap(segment))
            return -ENOMEM;
    }
}

static hl_context *context_of(hl_segment *segment, uint32_t device)
{
    return &segment->contexts[hl_segment_context(segment, device)];
}

HL_EXPORT int hl_ledger_context(uint32_t device)
{
    hl_segment *segment = hl_segment_need();
    hl_context *context = context_of(segment, device);
    if (atomic_exchange(&context->context_charged, 1))
        return 0;
    int error = charge(segment, context, (size_t)segment->facts[device].context_bytes);
    if (error)
        atomic_store(&context->context_charged, 0);
    return error;
}

HL_EXPORT int hl_ledger_charge(uint32_t device, size_t size_bytes)
{
    hl_segment *segment = hl_segment_need();
    return charge(segment, context_of(segment, device), rounded(size_bytes, GRANULE_BYTES));
}

static void discharge(uint32_t device, size_t bytes)
{
    hl_segment *segment = hl_segment_need();
    if (atomic_fetch_sub(&context_of(segment, device)->charged_bytes, (int64_t)bytes) < (int64_t)bytes)
        hl_report_fatal("more memory was given back to device %u than this process had: please report this", device);
}

HL_EXPORT void hl_ledger_discharge(uint32_t device, size_t size_bytes) { discharge(device, rounded(size_bytes, GRANULE_BYTES)); }

/* Where the block is, or where it would be put. Under the mutex. */
static size_t place_of(uintptr_t base)
{
    size_t low = 0, high = blocks_used;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (blocks[middle].base < base)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Under the mutex. */
static void insert(const hl_memory *block)
{
    if (blocks_used == blocks_room) {
        blocks_room = blocks_room ? 2 * blocks_room : 1024;
        blocks = realloc(blocks, blocks_room * sizeof *blocks);
        if (!blocks)
            hl_report_fatal("the host has no memory to keep %zu device allocations", blocks_room);
    }
    size_t at = place_of(block->base);
    memmove(&blocks[at + 1], &blocks[at], (blocks_used - at) * sizeof *blocks);
    blocks[at] = *block;
    blocks_used++;
}

/* Under the mutex. */
static void take_out(size_t at)
{
    memmove(&blocks[at], &blocks[at + 1], (blocks_used - at - 1) * sizeof *blocks);
    blocks_used--;
}

static size_t mapped_bytes(const hl_memory *block)
{
    bool device = block->kind == HL_MEMORY_DEVICE || block->kind == HL_MEMORY_IMPORTED;
    return rounded(block->size_bytes, device ? GRANULE_BYTES : PAGE_BYTES);
}

/* Aligned like the driver's big allocations, backed page by page as it is touched. Huge pages would back 2 MiB for
 * every byte that an engine writes. */
static void *reserve(size_t bytes)
{
    size_t length = bytes + GRANULE_BYTES;
    char *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        hl_report_fatal("the host refuses %zu bytes of address space for device memory (error %d): allow overcommit "
                        "(vm.overcommit_memory 0 or 1), raise ulimit -v or vm.max_map_count", bytes, errno);
    size_t before = rounded((uintptr_t)address, GRANULE_BYTES) - (uintptr_t)address;
    if (before)
        munmap(address, before);
    munmap(address + before + bytes, length - before - bytes);
    madvise(address + before, bytes, MADV_NOHUGEPAGE);
    madvise(address + before, bytes, MADV_DONTDUMP);
    return address + before;
}

HL_EXPORT int hl_ledger_allocate(uint32_t device, hl_memory_kind kind, size_t size_bytes, void **pointer)
{
    hl_segment *segment = hl_segment_need();
    bool known = kind == HL_MEMORY_DEVICE || kind == HL_MEMORY_PINNED || kind == HL_MEMORY_MANAGED || kind == HL_MEMORY_RESERVED;
    if (!pointer || size_bytes == 0 || !known)
        return -EINVAL;
    if (size_bytes > (size_t)1 << 46)
        return -ENOMEM;
    /* Managed memory may exceed the device's: it is not counted, as its pages move to the device only when used there. */
    bool counted = kind == HL_MEMORY_DEVICE;
    size_t length = rounded(size_bytes, counted ? GRANULE_BYTES : PAGE_BYTES);
    if (counted && charge(segment, context_of(segment, device), length) != 0)
        return -ENOMEM;
    *pointer = reserve(length);
    if (kind == HL_MEMORY_DEVICE || kind == HL_MEMORY_RESERVED)
        hl_poison(*pointer, length);
    hl_memory block = {kind, device, (uintptr_t)*pointer, size_bytes, counted ? length : 0, 0, 0};
    pthread_mutex_lock(&mutex);
    insert(&block);
    pthread_mutex_unlock(&mutex);
    return 0;
}

HL_EXPORT int hl_ledger_register(void *pointer, size_t size_bytes)
{
    if (!pointer || !size_bytes)
        return -EINVAL;
    hl_memory block = {HL_MEMORY_REGISTERED, 0, (uintptr_t)pointer, size_bytes, 0, 0, 0};
    pthread_mutex_lock(&mutex);
    size_t at = place_of(block.base);
    bool overlaps = (at < blocks_used && blocks[at].base < block.base + size_bytes) ||
                    (at > 0 && blocks[at - 1].base + blocks[at - 1].size_bytes > block.base);
    if (!overlaps)
        insert(&block);
    pthread_mutex_unlock(&mutex);
    return overlaps ? -EEXIST : 0;
}

HL_EXPORT int hl_ledger_free(void *pointer)
{
    hl_memory block = {0};
    pthread_mutex_lock(&mutex);
    size_t at = place_of((uintptr_t)pointer);
    if (at < blocks_used && blocks[at].base == (uintptr_t)pointer && blocks[at].kind != HL_MEMORY_IMPORTED) {
        block = blocks[at];
        take_out(at);
    }
    pthread_mutex_unlock(&mutex);
    if (block.kind == HL_MEMORY_NONE)
        return -EINVAL;
    if (block.kind != HL_MEMORY_REGISTERED)
        munmap(pointer, mapped_bytes(&block));
    if (block.identity)
        hl_shared_memory_unlink(block.identity);
    if (block.charged_bytes)
        discharge(block.device, block.charged_bytes);
    return 0;
}

/* The block that the address lies in, or NULL. Under the mutex. */
static hl_memory *block_at(uintptr_t address)
{
    size_t at = place_of(address);
    if (at == blocks_used || blocks[at].base != address)
        at--; /* the block that begins before it, if there is one */
    return at < blocks_used && address - blocks[at].base < blocks[at].size_bytes ? &blocks[at] : NULL;
}

HL_EXPORT bool hl_ledger_find(const void *pointer, hl_memory *memory)
{
    pthread_mutex_lock(&mutex);
    const hl_memory *found = block_at((uintptr_t)pointer);
    if (found && memory)
        *memory = *found;
    pthread_mutex_unlock(&mutex);
    return found;
}

HL_EXPORT int hl_ledger_share(const void *pointer, hl_memory *memory)
{
    int error = -EINVAL;
    pthread_mutex_lock(&mutex);
    hl_memory *block = block_at((uintptr_t)pointer);
    if (block && block->kind == HL_MEMORY_DEVICE) {
        error = block->identity ? 0
                                : hl_shared_memory_move(block->device, (void *)block->base, mapped_bytes(block), &block->identity);
        if (error)
            block->identity = 0;
        *memory = *block;
    }
    pthread_mutex_unlock(&mutex);
    return error;
}

HL_EXPORT int hl_ledger_open(uint64_t identity, size_t size_bytes, void **pointer)
{
    int error = 0;
    if (!identity || !pointer || !size_bytes || size_bytes > (size_t)1 << 46)
        return -EINVAL;
    pthread_mutex_lock(&mutex);
    size_t at = 0;
    while (at < blocks_used && (blocks[at].identity != identity || blocks[at].kind != HL_MEMORY_IMPORTED))
        at++;
    if (at < blocks_used) {
        blocks[at].opened++;
        *pointer = (void *)blocks[at].base;
    } else {
        hl_memory block = {HL_MEMORY_IMPORTED, HL_SHARED_MEMORY_DEVICE(identity), 0, size_bytes, 0, identity, 1};
        *pointer = reserve(mapped_bytes(&block));
        block.base = (uintptr_t)*pointer;
        error = hl_shared_memory_map(identity, *pointer, mapped_bytes(&block));
        if (error)
            munmap(*pointer, mapped_bytes(&block));
        else
            insert(&block);
    }
    pthread_mutex_unlock(&mutex);
    return error;
}

HL_EXPORT int hl_ledger_close(void *pointer)
{
    int error = -EINVAL;
    pthread_mutex_lock(&mutex);
    size_t at = place_of((uintptr_t)pointer);
    if (at < blocks_used && blocks[at].base == (uintptr_t)pointer && blocks[at].kind == HL_MEMORY_IMPORTED) {
        error = 0;
        if (!--blocks[at].opened) {
            munmap(pointer, mapped_bytes(&blocks[at]));
            take_out(at);
        }
    }
    pthread_mutex_unlock(&mutex);
    return error;
}

HL_EXPORT void hl_ledger_info(uint32_t device, size_t *free_bytes, size_t *total_bytes)
{
    hl_segment *segment = hl_segment_need();
    context_of(segment, device);
    hl_segment_reap(segment);
    hl_lock_acquire(&segment->devices[device].memory_lock);
    int64_t used = used_bytes(segment, device);
    hl_lock_release(&segment->devices[device].memory_lock);
    if (free_bytes)
        *free_bytes = (size_t)(segment->facts[device].total_memory_bytes - used);
    if (total_bytes)
        *total_bytes = (size_t)segment->facts[device].total_memory_bytes;
}

HL_EXPORT size_t hl_ledger_process_bytes(uint32_t device)
{
    hl_segment *segment = hl_segment_need();
    return (size_t)atomic_load(&context_of(segment, device)->charged_bytes);
}

void hl_ledger_before_fork(void) { pthread_mutex_lock(&mutex); }

/* The child keeps the parent's addresses (they are mapped there too) but owes nothing for them, and gives nothing away. */
void hl_ledger_after_fork(bool child)
{
    if (child) {
        for (size_t i = 0; i < blocks_used; i++) {
            blocks[i].charged_bytes = 0;
            if (blocks[i].kind != HL_MEMORY_IMPORTED)
                blocks[i].identity = 0;
        }
        mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
        return;
    }
    pthread_mutex_unlock(&mutex);
}
