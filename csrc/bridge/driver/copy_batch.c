/* cuMemcpyBatchAsync in both its forms: CUDA 12.8's, which says which copy failed, and CUDA 13's. */
#include "bridge/copy_batch.h"

#include <stdint.h>

#include "bridge/driver/driver.h"

static CUresult batch(const CUdeviceptr *targets, const CUdeviceptr *sources, const size_t *sizes, size_t count,
                      const CUmemcpyAttributes *attributes, const size_t *first, size_t attributes_count,
                      size_t *failed, CUstream handle)
{
    hl_bridge_stream *stream;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    *failed = SIZE_MAX; /* of no copy in particular */
    if (result)
        return result;
    if (!targets || !sources || !sizes || !count || !attributes || !first || !attributes_count ||
        attributes_count > count || first[0] || !handle || handle == CU_STREAM_LEGACY)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < attributes_count; i++) {
        if (first[i] >= count || (i && first[i] <= first[i - 1]) ||
            attributes[i].srcAccessOrder < CU_MEMCPY_SRC_ACCESS_ORDER_STREAM ||
            attributes[i].srcAccessOrder > CU_MEMCPY_SRC_ACCESS_ORDER_ANY)
            return CUDA_ERROR_INVALID_VALUE;
    }
    result = hl_bridge_copy_batch(targets, sources, sizes, count, stream, failed);
    if (*failed == count)
        *failed = SIZE_MAX;
    return result;
}

HL_API CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *targets, CUdeviceptr *sources, size_t *sizes, size_t count,
                                      CUmemcpyAttributes *attributes, size_t *first, size_t attributes_count,
                                      CUstream stream)
{
    size_t failed;

    return batch(targets, sources, sizes, count, attributes, first, attributes_count, &failed, stream);
}

/* The form of CUDA 12.8; cuda.h renames it. */
#undef cuMemcpyBatchAsync
HL_API CUresult cuMemcpyBatchAsync(CUdeviceptr *targets, CUdeviceptr *sources, size_t *sizes, size_t count,
                                   CUmemcpyAttributes *attributes, size_t *first, size_t attributes_count,
                                   size_t *fail_index, CUstream stream);
CUresult cuMemcpyBatchAsync(CUdeviceptr *targets, CUdeviceptr *sources, size_t *sizes, size_t count,
                            CUmemcpyAttributes *attributes, size_t *first, size_t attributes_count,
                            size_t *fail_index, CUstream stream)
{
    size_t failed;
    CUresult result = batch(targets, sources, sizes, count, attributes, first, attributes_count, &failed, stream);

    if (result && fail_index)
        *fail_index = failed;
    return result;
}
