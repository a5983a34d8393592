/* Descriptors and matrix multiplications of cuBLASLt.
 *
 * Descriptors may lie in the caller's memory (the ...Init functions), in structures whose size is part of the
 * interface; ours fit into them. Every attribute that is set is kept, so that it can be read back; those that shape the
 * product (types, transposition, order, batch) are used. Epilogues and scales do not change the recorded shape. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "bridge/cublas/cublas_abi.h"
#include "bridge/gemm.h"
#include "bridge/stub.h"

#define HL_LIBRARY "libcublasLt"

enum { ORDER_COLUMN = 0, ORDER_ROW = 1 }; /* cublasLtOrder_t; the others are tiled formats of old cards */
enum { LAYOUT_BYTES = 64, DESC_BYTES = 256, PREFERENCE_BYTES = 64, ALGO_BYTES = 64 };

struct layout { /* cublasLtMatrixLayoutOpaque_t; the attributes 0 to 8 in their order */
    uint32_t type;
    int32_t order;
    uint64_t rows, columns;
    int64_t leading;
    int32_t batch, batch_mode;
    int64_t batch_stride, plane_offset;
};

enum { DESC_COMPUTE = 0, DESC_SCALE = 1, DESC_TRANS_A = 3, DESC_TRANS_B = 4, DESC_ATTRIBUTES = 39, DESC_WIDE = 24 };

/* cublasLtMatmulDescOpaque_t. Attributes of 4 bytes or fewer and of 8 bytes are kept apart, to fit. */
struct desc {
    int64_t wide[DESC_WIDE];
    uint8_t narrow[DESC_ATTRIBUTES];
    uint8_t reserved[25];
};

struct preference { /* cublasLtMatmulPreferenceOpaque_t */
    uint64_t workspace_bytes;
    uint32_t search_mode, reduction_mask, alignment[4];
    float waves_max;
    uint32_t padding;
    uint64_t implementation_mask;
    uint64_t reserved[2];
};

_Static_assert(sizeof(struct layout) <= LAYOUT_BYTES && sizeof(struct desc) == DESC_BYTES &&
                   sizeof(struct preference) == PREFERENCE_BYTES,
               "descriptors fit into the caller's memory");

struct heuristic { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algo[ALGO_BYTES / 8];
    size_t workspace_bytes;
    cublasStatus_t state;
    float waves;
    int reserved[4];
};

_Static_assert(sizeof(struct heuristic) == 96, "cublasLtMatmulHeuristicResult_t");

typedef hl_bridge_blas *cublasLtHandle_t;

HL_API cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    CUresult result;

    if (!out)
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = hl_bridge_blas_create(&result);
    return result ? CUBLAS_STATUS_NOT_INITIALIZED : *out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

HL_API cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    if (!hl_bridge_blas_valid(h))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    hl_bridge_blas_destroy(h);
    return CUBLAS_STATUS_SUCCESS;
}

HL_API size_t cublasLtGetVersion(void) { return HL_CUBLAS_VERSION; }

HL_API size_t cublasLtGetCudartVersion(void) { return CUDA_VERSION; }

/* --- attributes --- */

static cublasStatus_t set(void *field, size_t field_bytes, const void *value, size_t bytes)
{
    if (!value || bytes != field_bytes)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t get(const void *field, size_t field_bytes, void *value, size_t bytes, size_t *written)
{
    if (written)
        *written = field_bytes;
    if (!bytes && written)
        return CUBLAS_STATUS_SUCCESS; /* a question for the size */
    if (!value || bytes != field_bytes)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, field, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static void *layout_field(struct layout *layout, int attribute, size_t *bytes)
{
    *bytes = 4;
    switch (attribute) {
    case 0: return &layout->type;
    case 1: return &layout->order;
    case 5: return &layout->batch;
    case 8: return &layout->batch_mode;
    }
    *bytes = 8;
    switch (attribute) {
    case 2: return &layout->rows;
    case 3: return &layout->columns;
    case 4: return &layout->leading;
    case 6: return &layout->batch_stride;
    case 7: return &layout->plane_offset;
    default: return NULL;
    }
}

/* Attributes of 8 bytes (pointers, strides, leading dimensions) by their number; the place in `wide`, or -1. */
static int wide_slot(int attribute)
{
    static const int8_t wide[] = {8, 10, 11, 12, 13, 14, 17, 18, 19, 20, 21, 23, 24, 36, 38};

    for (unsigned i = 0; i < sizeof wide; i++)
        if (wide[i] == attribute)
            return (int)i;
    return -1;
}

/* Narrow attributes are enums and flags below 256 in 4 bytes, but for the fast-accumulation flag of one byte, and the
 * number of multiprocessors, which is kept wide. */
enum { DESC_SM_COUNT = 15, DESC_FAST_ACCUMULATION = 25, DESC_SM_SLOT = DESC_WIDE - 1 };

static size_t desc_bytes(int attribute)
{
    return wide_slot(attribute) >= 0 ? 8 : attribute == DESC_FAST_ACCUMULATION ? 1 : 4;
}

static cublasStatus_t desc_set(struct desc *desc, int attribute, const void *value, size_t bytes)
{
    int slot = wide_slot(attribute);
    uint32_t narrow = 0;

    if (attribute < 0 || attribute >= DESC_ATTRIBUTES || !value || bytes != desc_bytes(attribute))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (slot >= 0 || attribute == DESC_SM_COUNT) {
        memcpy(&desc->wide[slot >= 0 ? slot : DESC_SM_SLOT], value, bytes);
        return CUBLAS_STATUS_SUCCESS;
    }
    memcpy(&narrow, value, bytes);
    if (narrow > UINT8_MAX)
        return CUBLAS_STATUS_INVALID_VALUE;
    desc->narrow[attribute] = (uint8_t)narrow;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatrixLayoutInit_internal(struct layout *layout, size_t size, uint32_t type,
                                                        uint64_t rows, uint64_t columns, int64_t leading)
{
    if (!layout || size < LAYOUT_BYTES)
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(layout, 0, LAYOUT_BYTES);
    *layout = (struct layout){.type = type, .rows = rows, .columns = columns, .leading = leading, .batch = 1};
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatrixLayoutCreate(struct layout **out, uint32_t type, uint64_t rows, uint64_t columns,
                                                 int64_t leading)
{
    if (!out)
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = malloc(LAYOUT_BYTES);
    if (!*out)
        return CUBLAS_STATUS_ALLOC_FAILED;
    return cublasLtMatrixLayoutInit_internal(*out, LAYOUT_BYTES, type, rows, columns, leading);
}

HL_API cublasStatus_t cublasLtMatrixLayoutDestroy(struct layout *layout)
{
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatrixLayoutSetAttribute(struct layout *layout, int attribute, const void *value,
                                                       size_t bytes)
{
    size_t field_bytes;
    void *field = layout ? layout_field(layout, attribute, &field_bytes) : NULL;

    return field ? set(field, field_bytes, value, bytes) : CUBLAS_STATUS_INVALID_VALUE;
}

HL_API cublasStatus_t cublasLtMatrixLayoutGetAttribute(struct layout *layout, int attribute, void *value, size_t bytes,
                                                       size_t *written)
{
    size_t field_bytes;
    void *field = layout ? layout_field(layout, attribute, &field_bytes) : NULL;

    return field ? get(field, field_bytes, value, bytes, written) : CUBLAS_STATUS_INVALID_VALUE;
}

HL_API cublasStatus_t cublasLtMatmulDescInit_internal(struct desc *desc, size_t size, int compute, int scale_type)
{
    if (!desc || size < DESC_BYTES)
        return CUBLAS_STATUS_INVALID_VALUE;
    memset(desc, 0, DESC_BYTES);
    desc->narrow[DESC_COMPUTE] = (uint8_t)compute;
    desc->narrow[DESC_SCALE] = (uint8_t)scale_type;
    desc->narrow[7] = 1; /* CUBLASLT_EPILOGUE_DEFAULT */
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatmulDescCreate(struct desc **out, int compute, int scale_type)
{
    if (!out)
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = malloc(DESC_BYTES);
    return *out ? cublasLtMatmulDescInit_internal(*out, DESC_BYTES, compute, scale_type) : CUBLAS_STATUS_ALLOC_FAILED;
}

HL_API cublasStatus_t cublasLtMatmulDescDestroy(struct desc *desc)
{
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatmulDescSetAttribute(struct desc *desc, int attribute, const void *value, size_t bytes)
{
    return desc ? desc_set(desc, attribute, value, bytes) : CUBLAS_STATUS_INVALID_VALUE;
}

HL_API cublasStatus_t cublasLtMatmulDescGetAttribute(struct desc *desc, int attribute, void *value, size_t bytes,
                                                     size_t *written)
{
    uint32_t narrow;
    int slot;

    if (!desc || attribute < 0 || attribute >= DESC_ATTRIBUTES)
        return CUBLAS_STATUS_INVALID_VALUE;
    slot = attribute == DESC_SM_COUNT ? DESC_SM_SLOT : wide_slot(attribute);
    narrow = desc->narrow[attribute];
    return get(slot >= 0 ? (void *)&desc->wide[slot] : (void *)&narrow, desc_bytes(attribute), value, bytes, written);
}

static void *preference_field(struct preference *preference, int attribute, size_t *bytes)
{
    *bytes = 4;
    switch (attribute) {
    case 0: return &preference->search_mode;
    case 3: return &preference->reduction_mask;
    case 5:
    case 6:
    case 7:
    case 8: return &preference->alignment[attribute - 5];
    case 9: return &preference->waves_max;
    }
    *bytes = 8;
    switch (attribute) {
    case 1: return &preference->workspace_bytes;
    case 12: return &preference->implementation_mask;
    default: return NULL;
    }
}

HL_API cublasStatus_t cublasLtMatmulPreferenceInit_internal(struct preference *preference, size_t size)
{
    if (!preference || size < PREFERENCE_BYTES)
        return CUBLAS_STATUS_INVALID_VALUE;
    *preference = (struct preference){
        .reduction_mask = UINT32_MAX, .alignment = {256, 256, 256, 256}, .implementation_mask = UINT64_MAX};
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatmulPreferenceCreate(struct preference **out)
{
    if (!out)
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = malloc(PREFERENCE_BYTES);
    return *out ? cublasLtMatmulPreferenceInit_internal(*out, PREFERENCE_BYTES) : CUBLAS_STATUS_ALLOC_FAILED;
}

HL_API cublasStatus_t cublasLtMatmulPreferenceDestroy(struct preference *preference)
{
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatmulPreferenceSetAttribute(struct preference *preference, int attribute,
                                                           const void *value, size_t bytes)
{
    size_t field_bytes;
    void *field = preference ? preference_field(preference, attribute, &field_bytes) : NULL;

    return field ? set(field, field_bytes, value, bytes) : CUBLAS_STATUS_INVALID_VALUE;
}

HL_API cublasStatus_t cublasLtMatmulPreferenceGetAttribute(struct preference *preference, int attribute, void *value,
                                                           size_t bytes, size_t *written)
{
    size_t field_bytes;
    void *field = preference ? preference_field(preference, attribute, &field_bytes) : NULL;

    return field ? get(field, field_bytes, value, bytes, written) : CUBLAS_STATUS_INVALID_VALUE;
}

/* --- products --- */

/* op(A)'s columns against op(B)'s rows, op(A)'s rows and op(B)'s columns against D. */
static bool shape_of(const struct desc *desc, const struct layout *a, const struct layout *b, const struct layout *d,
                     hl_bridge_gemm *gemm)
{
    bool ta = desc->narrow[DESC_TRANS_A] != CUBLAS_OP_N, tb = desc->narrow[DESC_TRANS_B] != CUBLAS_OP_N;
    uint64_t m = ta ? a->columns : a->rows, k = ta ? a->rows : a->columns;
    uint64_t k_of_b = tb ? b->columns : b->rows, n = tb ? b->rows : b->columns;

    if (k != k_of_b || m != d->rows || n != d->columns || a->batch != b->batch || a->batch != d->batch ||
        a->order > ORDER_ROW || b->order > ORDER_ROW || d->order > ORDER_ROW)
        return false;
    *gemm = (hl_bridge_gemm){
        .compute = desc->narrow[DESC_COMPUTE], .k = (int64_t)k, .batch = a->batch, .d_type = (int)d->type};
    if (d->order == ORDER_ROW) {
        gemm->m = (int64_t)m;
        gemm->n = (int64_t)n;
        gemm->a_type = (int)a->type;
        gemm->b_type = (int)b->type;
        gemm->a_transposed = ta != (a->order == ORDER_COLUMN);
        gemm->b_transposed = tb != (b->order == ORDER_COLUMN);
    } else { /* read row by row, D is its own transpose: op(B) comes first */
        gemm->m = (int64_t)n;
        gemm->n = (int64_t)m;
        gemm->a_type = (int)b->type;
        gemm->b_type = (int)a->type;
        gemm->a_transposed = tb != (b->order == ORDER_ROW);
        gemm->b_transposed = ta != (a->order == ORDER_ROW);
    }
    return true;
}

HL_API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, struct desc *desc, struct layout *a,
                                                     struct layout *b, struct layout *c, struct layout *d,
                                                     struct preference *preference, int wanted,
                                                     struct heuristic results[], int *count)
{
    hl_bridge_gemm gemm;

    if (!hl_bridge_blas_valid(h))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !a || !b || !c || !d || !preference || !results || !count || wanted <= 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    *count = 0;
    if (!shape_of(desc, a, b, d, &gemm))
        return CUBLAS_STATUS_INVALID_VALUE;
    /* One algorithm: the measured durations are those of the library's own first choice. */
    results[0] = (struct heuristic){.algo = {1}, .state = CUBLAS_STATUS_SUCCESS, .waves = 1.0F};
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, struct desc *desc, const void *alpha, const void *a,
                                     struct layout *a_layout, const void *b, struct layout *b_layout, const void *beta,
                                     const void *c, struct layout *c_layout, void *d, struct layout *d_layout,
                                     const void *algo, void *workspace, size_t workspace_bytes, CUstream handle)
{
    hl_bridge_stream *stream;
    hl_bridge_context *context;
    hl_bridge_gemm gemm;

    (void)alpha, (void)beta, (void)c, (void)c_layout, (void)algo, (void)workspace, (void)workspace_bytes;
    if (!hl_bridge_blas_valid(h))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !a_layout || !b_layout || !d_layout || !a || !b || !d ||
        !shape_of(desc, a_layout, b_layout, d_layout, &gemm))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (hl_bridge_context_use(&context) || hl_bridge_stream_of(handle, &stream))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    CUresult result = hl_bridge_gemm_launch(&gemm, stream);
    if (result == CUDA_ERROR_NOT_SUPPORTED)
        return (cublasStatus_t)hl_bridge_unsupported_part("cublasLtMatmul", HL_LIBRARY,
                                                          "types that have no name, compute type", gemm.compute,
                                                          __builtin_return_address(0), CUBLAS_STATUS_NOT_SUPPORTED);
    return result ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
