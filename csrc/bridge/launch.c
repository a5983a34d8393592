/* Kernel launches; see launch.h.
 *
 * Arguments are not read, but those of kernels that meet their peers: kernels do not run. An integration that gives a
 * kernel a functional effect does so above CUDA. */
#include "bridge/launch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bridge/attributes.h"
#include "bridge/collective.h"
#include "bridge/graph.h"
#include "core/export.h"
#include "core/ledger.h"

/* A registered name lies in the library that brought it, which may be unloaded; the timeline keeps names for ever. */
static const char *keep_name(hl_bridge_kernel *kernel)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    if (!kernel->name_kept) {
        pthread_mutex_lock(&lock);
        char *copy = kernel->name_kept ? NULL : strdup(kernel->name);
        if (copy) {
            kernel->name = copy;
            kernel->name_kept = true;
        }
        pthread_mutex_unlock(&lock);
    }
    return kernel->name;
}

/* The driver loads a kernel's code when it is first launched (lazy loading, the default since CUDA 11.8). */
static bool load(hl_bridge_kernel *kernel, uint32_t device)
{
    uint32_t bit = UINT32_C(1) << device;

    if (atomic_load_explicit(&kernel->loaded, memory_order_relaxed) & bit || atomic_fetch_or(&kernel->loaded, bit) & bit)
        return true;
    if (!hl_ledger_driver_take(device, HL_DRIVER_KERNEL, 1))
        return true;
    atomic_fetch_and(&kernel->loaded, ~bit);
    return false;
}

HL_EXPORT bool hl_bridge_launch_shape_valid(const hl_bridge_launch_shape *shape)
{
    static const unsigned grid_max[3] = {2147483647u, 65535u, 65535u}, block_max[3] = {1024, 1024, 64};

    for (int i = 0; i < 3; i++)
        if (!shape->grid[i] || shape->grid[i] > grid_max[i] || !shape->block[i] || shape->block[i] > block_max[i])
            return false;
    return shape->block[0] * shape->block[1] * shape->block[2] <= 1024;
}

HL_EXPORT CUresult hl_bridge_launch_kernel(hl_bridge_kernel *kernel, const hl_bridge_launch_shape *shape,
                                           void *const *arguments, hl_bridge_stream *stream)
{
    hl_launch launch = {.kind = HL_LAUNCH_KERNEL, .device = stream->device};
    unsigned threads = shape->block[0] * shape->block[1] * shape->block[2];
    int limit;

    if (!hl_bridge_launch_shape_valid(shape))
        return CUDA_ERROR_INVALID_VALUE;
    if (kernel->threads_max && threads > (unsigned)kernel->threads_max)
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (shape->dynamic_shared_bytes) {
        hl_bridge_kernel_attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, stream->device, &limit);
        if (shape->dynamic_shared_bytes > (unsigned)limit)
            return CUDA_ERROR_INVALID_VALUE;
    }
    if (shape->cooperative) {
        uint64_t blocks = (uint64_t)shape->grid[0] * shape->grid[1] * shape->grid[2];
        int each = hl_bridge_occupancy_blocks(kernel, stream->device, threads, shape->dynamic_shared_bytes);
        if (blocks > (uint64_t)each * (uint64_t)hl_device_facts_of(stream->device)->multiprocessors)
            return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    }
    CUresult result = hl_bridge_graph_work(stream);
    if (result)
        return result;
    if (!load(kernel, stream->device))
        return CUDA_ERROR_OUT_OF_MEMORY;
    launch.name = keep_name(kernel);
    if (hl_bridge_collective_launch(kernel, arguments, stream))
        return CUDA_SUCCESS;
    for (int i = 0; i < 3; i++) {
        launch.arg[i] = shape->grid[i];
        launch.arg[3 + i] = shape->block[i];
    }
    launch.arg[6] = shape->dynamic_shared_bytes;
    hl_timeline_launch(stream->line, &launch);
    return CUDA_SUCCESS;
}
