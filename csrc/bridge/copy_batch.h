/* Many copies in one call. */
#ifndef HL_BRIDGE_COPY_BATCH_H
#define HL_BRIDGE_COPY_BATCH_H

#include <cuda.h>
#include <stddef.h>

#include "bridge/stream.h"

/* failed: which copy an error is about, count when it is about none of them. */
CUresult hl_bridge_copy_batch(const CUdeviceptr *targets, const CUdeviceptr *sources, const size_t *sizes, size_t count,
                              hl_bridge_stream *stream, size_t *failed);

#endif
