/* From a launch call to the timeline: checks that the driver makes, then hl_timeline_launch. */
#ifndef HL_BRIDGE_LAUNCH_H
#define HL_BRIDGE_LAUNCH_H

#include <cuda.h>
#include <stdbool.h>

#include "bridge/modules.h"
#include "bridge/stream.h"

typedef struct hl_bridge_launch_shape {
    unsigned grid[3], block[3];
    unsigned dynamic_shared_bytes;
    bool cooperative;
} hl_bridge_launch_shape;

/* Grid and block are within what any device takes; the runtime calls it cudaErrorInvalidConfiguration when not. */
bool hl_bridge_launch_shape_valid(const hl_bridge_launch_shape *shape);
/* arguments: a pointer to each; NULL where the caller has none (packed in one buffer).
 * CUDA_ERROR_INVALID_VALUE: a size is out of range. CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: beyond the launch bounds. */
CUresult hl_bridge_launch_kernel(hl_bridge_kernel *kernel, const hl_bridge_launch_shape *shape, void *const *arguments,
                                 hl_bridge_stream *stream);

/* Blocks of this size that fit on one multiprocessor together, by threads, blocks, registers and shared memory. */
int hl_bridge_occupancy_blocks(hl_bridge_kernel *kernel, uint32_t device, unsigned threads,
                               size_t dynamic_shared_bytes);
/* Largest dynamic shared memory with which `blocks` of them still fit. */
size_t hl_bridge_occupancy_shared_bytes(hl_bridge_kernel *kernel, uint32_t device, int blocks, unsigned threads);
/* Clusters of this many blocks that can run at once, at most. */
int hl_bridge_occupancy_clusters(hl_bridge_kernel *kernel, uint32_t device, unsigned cluster_blocks, unsigned threads,
                                 size_t dynamic_shared_bytes);
/* The smallest grid and block that fill the device. */
void hl_bridge_occupancy_block_size(hl_bridge_kernel *kernel, uint32_t device, size_t dynamic_shared_bytes, int limit,
                                    int *grid, int *block);

#endif
