/* Occupancy; see launch.h.
 *
 * The rules are those of cuda_occupancy.h for compute capability 7.0 and later: registers are given to warps in units
 * of 256, warps live in 4 partitions, shared memory comes in units of 128 bytes and each block costs a fixed reserve.
 * The whole shared memory of a multiprocessor counts as available, as the driver counts it when no carve-out is asked
 * for. */
#include "bridge/launch.h"

#include "core/device.h"
#include "core/export.h"

enum { WARP = 32, PARTITIONS = 4, REGISTER_UNIT = 256, SHARED_UNIT = 128 };

static unsigned up(unsigned value, unsigned unit) { return (value + unit - 1) / unit * unit; }

static unsigned registers_of(hl_bridge_kernel *kernel, uint32_t device)
{
    int registers = 0;

    hl_bridge_kernel_attribute(kernel, CU_FUNC_ATTRIBUTE_NUM_REGS, device, &registers);
    return (unsigned)registers;
}

HL_EXPORT int hl_bridge_occupancy_blocks(hl_bridge_kernel *kernel, uint32_t device, unsigned threads,
                                         size_t dynamic_shared_bytes)
{
    const hl_device_facts *facts = hl_device_facts_of(device);
    unsigned warps = up(threads, WARP) / WARP, best = (unsigned)facts->max_blocks_per_multiprocessor;
    unsigned per_warp = up(registers_of(kernel, device) * WARP, REGISTER_UNIT);

    if (!threads || threads > 1024)
        return 0;
    if ((unsigned)facts->max_threads_per_multiprocessor / WARP / warps < best)
        best = (unsigned)facts->max_threads_per_multiprocessor / WARP / warps;
    if (per_warp) {
        unsigned warps_fit = (unsigned)facts->registers_per_multiprocessor / PARTITIONS / per_warp * PARTITIONS;
        if (warps_fit / warps < best)
            best = warps_fit / warps;
    }
    unsigned shared = up(kernel->shared_bytes + (unsigned)dynamic_shared_bytes +
                             (unsigned)facts->reserved_shared_memory_per_block_bytes,
                         SHARED_UNIT);
    if (shared && (unsigned)facts->shared_memory_per_multiprocessor_bytes / shared < best)
        best = (unsigned)facts->shared_memory_per_multiprocessor_bytes / shared;
    return (int)best;
}

HL_EXPORT size_t hl_bridge_occupancy_shared_bytes(hl_bridge_kernel *kernel, uint32_t device, int blocks,
                                                  unsigned threads)
{
    const hl_device_facts *facts = hl_device_facts_of(device);
    unsigned fixed = kernel->shared_bytes + (unsigned)facts->reserved_shared_memory_per_block_bytes, each;

    if (blocks <= 0 || hl_bridge_occupancy_blocks(kernel, device, threads, 0) < blocks)
        return 0;
    each = (unsigned)facts->shared_memory_per_multiprocessor_bytes / (unsigned)blocks / SHARED_UNIT * SHARED_UNIT;
    if (each > fixed + (unsigned)facts->shared_memory_per_block_optin_bytes)
        return (size_t)facts->shared_memory_per_block_optin_bytes - kernel->shared_bytes;
    return each > fixed ? each - fixed : 0;
}

HL_EXPORT int hl_bridge_occupancy_clusters(hl_bridge_kernel *kernel, uint32_t device, unsigned cluster_blocks,
                                           unsigned threads, size_t dynamic_shared_bytes)
{
    const hl_device_facts *facts = hl_device_facts_of(device);
    int each = hl_bridge_occupancy_blocks(kernel, device, threads, dynamic_shared_bytes);

    /* Clusters do not cross GPU processing clusters, whose sizes are no fact we have: an upper bound. */
    return cluster_blocks ? each * facts->multiprocessors / (int)cluster_blocks : 0;
}

HL_EXPORT void hl_bridge_occupancy_block_size(hl_bridge_kernel *kernel, uint32_t device, size_t dynamic_shared_bytes,
                                              int limit, int *grid, int *block)
{
    int largest = 0, best_threads = 0;

    hl_bridge_kernel_attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, device, &largest);
    if (limit > 0 && limit < largest)
        largest = limit;
    *grid = *block = 0;
    for (int threads = (largest + WARP - 1) / WARP * WARP; threads > 0; threads -= WARP) {
        int size = threads < largest ? threads : largest;
        int blocks = hl_bridge_occupancy_blocks(kernel, device, (unsigned)size, dynamic_shared_bytes);
        if (size * blocks > best_threads) { /* the largest block among equals: the walk goes down */
            best_threads = size * blocks;
            *block = size;
            *grid = blocks * hl_device_facts_of(device)->multiprocessors;
        }
    }
}
