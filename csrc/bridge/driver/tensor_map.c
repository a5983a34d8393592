/* Tensor maps: descriptors that Hopper's copy engine reads.
 *
 * The real 128 bytes are the hardware's own format, which only kernels read, and kernels do not run. What is kept is
 * what the caller asked for, so that two equal requests give equal bytes. The arguments are checked as the driver
 * documents them (cuda.h, cuTensorMapEncodeTiled): a wrong descriptor must fail here as it does on the card. */
#include <string.h>

#include "bridge/driver/driver.h"

static unsigned element_bytes(CUtensorMapDataType type)
{
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ: return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 0; /* packed sub-byte types of later cards */
    }
}

struct request { /* what stands in the map; fits its 128 bytes */
    uint64_t address;
    uint64_t dim_hash, stride_hash;
    uint32_t box[5], step[5];
    uint32_t type, rank, interleave, swizzle, promotion, fill;
};

_Static_assert(sizeof(CUtensorMap) == 128 && sizeof(struct request) <= sizeof(CUtensorMap), "tensor map");

static uint64_t mix(uint64_t hash, uint64_t value) { return (hash ^ value) * UINT64_C(1099511628211); }

HL_API CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                       const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                       const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                       CUtensorMapFloatOOBfill fill)
{
    struct request request = {.address = (uint64_t)address,
                              .type = type,
                              .rank = rank,
                              .interleave = interleave,
                              .swizzle = swizzle,
                              .promotion = promotion,
                              .fill = fill};
    unsigned bytes = element_bytes(type);
    uint64_t align = interleave == CU_TENSOR_MAP_INTERLEAVE_32B ? 32 : 16;

    if (!map || (uintptr_t)map % 64 || !rank || rank > 5 || !dims || !box || !steps || (rank > 1 && !strides) ||
        (uint64_t)address % align || (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE && rank < 3))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < rank; i++) {
        if (!dims[i] || dims[i] > UINT64_C(1) << 32 || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8)
            return CUDA_ERROR_INVALID_VALUE;
        if (i + 1 < rank && (strides[i] % align || strides[i] >= UINT64_C(1) << 40))
            return CUDA_ERROR_INVALID_VALUE;
        request.dim_hash = mix(request.dim_hash, dims[i]);
        request.stride_hash = mix(request.stride_hash, i + 1 < rank ? strides[i] : 0);
        request.box[i] = box[i];
        request.step[i] = steps[i];
    }
    if (bytes && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE) {
        unsigned inner = box[0] * bytes;
        if (inner % 16 || (swizzle == CU_TENSOR_MAP_SWIZZLE_32B && inner > 32) ||
            (swizzle == CU_TENSOR_MAP_SWIZZLE_64B && inner > 64) ||
            (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && inner > 128))
            return CUDA_ERROR_INVALID_VALUE;
    }
    memset(map, 0, sizeof *map);
    memcpy(map, &request, sizeof request);
    return CUDA_SUCCESS;
}

HL_API CUresult cuTensorMapReplaceAddress(CUtensorMap *map, void *address)
{
    if (!map || (uintptr_t)map % 64 || (uint64_t)address % 16)
        return CUDA_ERROR_INVALID_VALUE;
    ((struct request *)map)->address = (uint64_t)address;
    return CUDA_SUCCESS;
}
