/* Handles, settings and matrix multiplications of cuBLAS.
 *
 * cuBLAS is column-major: its C[m,n] = op(A) * op(B) is, in row-major terms, D[n,m] = op(B) * op(A). That is what a
 * launch record says, because it is what the caller meant. Leading dimensions and scalars do not change the duration in
 * the measured data and are not recorded; values are not computed. */
#include "bridge/cublas/cublas_abi.h"

#include <stdint.h>

#include "bridge/errors.h"
#include "bridge/gemm.h"
#include "bridge/stub.h"

#define HL_LIBRARY "libcublas"

typedef hl_bridge_blas *cublasHandle_t;

#define CHECK(h)                                                                                                       \
    if (!hl_bridge_blas_valid(h))                                                                                      \
    return CUBLAS_STATUS_NOT_INITIALIZED

/* --- handles and settings --- */

HL_API cublasStatus_t cublasCreate_v2(cublasHandle_t *out)
{
    CUresult result;

    if (!out)
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = hl_bridge_blas_create(&result);
    return result ? CUBLAS_STATUS_NOT_INITIALIZED : *out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

HL_API cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    CHECK(h);
    hl_bridge_blas_destroy(h);
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasSetStream_v2(cublasHandle_t h, CUstream stream)
{
    CHECK(h);
    h->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetStream_v2(cublasHandle_t h, CUstream *stream)
{
    CHECK(h);
    if (!stream)
        return CUBLAS_STATUS_INVALID_VALUE;
    *stream = h->stream;
    return CUBLAS_STATUS_SUCCESS;
}

/* A workspace changes which algorithm the library may choose; the measured durations were taken with torch's. */
HL_API cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *workspace, size_t size_bytes)
{
    CHECK(h);
    return (uintptr_t)workspace % 256 && size_bytes ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetMathMode(cublasHandle_t h, int *mode)
{
    CHECK(h);
    if (!mode)
        return CUBLAS_STATUS_INVALID_VALUE;
    *mode = h->math_mode;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasSetMathMode(cublasHandle_t h, int mode)
{
    CHECK(h);
    h->math_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, int *mode)
{
    CHECK(h);
    if (!mode)
        return CUBLAS_STATUS_INVALID_VALUE;
    *mode = h->pointer_mode;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t h, int mode)
{
    CHECK(h);
    if (mode != 0 && mode != 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    h->pointer_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetAtomicsMode(cublasHandle_t h, int *mode)
{
    CHECK(h);
    if (!mode)
        return CUBLAS_STATUS_INVALID_VALUE;
    *mode = h->atomics_mode;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasSetAtomicsMode(cublasHandle_t h, int mode)
{
    CHECK(h);
    h->atomics_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetSmCountTarget(cublasHandle_t h, int *target)
{
    CHECK(h);
    if (!target)
        return CUBLAS_STATUS_INVALID_VALUE;
    *target = h->sm_count_target;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetVersion_v2(cublasHandle_t h, int *version)
{
    (void)h; /* the real one takes NULL too */
    if (!version)
        return CUBLAS_STATUS_INVALID_VALUE;
    *version = HL_CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API cublasStatus_t cublasGetProperty(libraryPropertyType property, int *value)
{
    if (!value || (unsigned)property > PATCH_LEVEL)
        return CUBLAS_STATUS_INVALID_VALUE;
    *value = property == MAJOR_VERSION   ? HL_CUBLAS_MAJOR
             : property == MINOR_VERSION ? HL_CUBLAS_MINOR
                                         : HL_CUBLAS_PATCH;
    return CUBLAS_STATUS_SUCCESS;
}

HL_API size_t cublasGetCudartVersion(void) { return CUDA_VERSION; }

HL_API const char *cublasGetStatusName(cublasStatus_t status)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_CUBLAS, (int)status);

    return row ? row->runtime_name : "unrecognized status";
}

HL_API const char *cublasGetStatusString(cublasStatus_t status)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_CUBLAS, (int)status);

    return row ? row->text : "unrecognized status";
}

/* --- matrix multiplications --- */

struct product {
    const char *api;
    cublasOperation_t trans_a, trans_b;
    int64_t m, n, k, batch;
    int a_type, b_type, c_type, compute;
};

/* CUBLAS_TF32_TENSOR_OP_MATH lets float products use TF32. */
static int effective_compute(const hl_bridge_blas *h, const struct product *p)
{
    bool tf32 = (h->math_mode & 0xF) == CUBLAS_TF32_TENSOR_OP_MATH && p->a_type == HL_TYPE_32F;

    return p->compute == HL_COMPUTE_32F && tf32 ? HL_COMPUTE_32F_FAST_TF32 : p->compute;
}

static cublasStatus_t multiply(hl_bridge_blas *h, const struct product *p, const void *caller)
{
    hl_bridge_stream *stream;
    hl_bridge_context *context;

    CHECK(h);
    if (p->m < 0 || p->n < 0 || p->k < 0 || p->batch < 0 || (unsigned)p->trans_a > CUBLAS_OP_C ||
        (unsigned)p->trans_b > CUBLAS_OP_C)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (hl_bridge_context_use(&context))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (hl_bridge_stream_of(h->stream, &stream))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    hl_bridge_gemm gemm = {.a_type = p->b_type,
                           .b_type = p->a_type,
                           .d_type = p->c_type,
                           .compute = effective_compute(h, p),
                           .m = p->n,
                           .n = p->m,
                           .k = p->k,
                           .batch = p->batch,
                           .a_transposed = p->trans_b != CUBLAS_OP_N,
                           .b_transposed = p->trans_a != CUBLAS_OP_N};
    CUresult result = hl_bridge_gemm_launch(&gemm, stream);
    if (result == CUDA_ERROR_NOT_SUPPORTED)
        return (cublasStatus_t)hl_bridge_unsupported_part(p->api, HL_LIBRARY, "types that have no name, compute type",
                                                          p->compute, caller, CUBLAS_STATUS_NOT_SUPPORTED);
    return result ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

#define CALLER __builtin_return_address(0)

/* The families differ in types of scalars and pointers alone, of which nothing is read. stubgen reads the first
 * argument of an HL_API_ macro as the name it defines. `size` is int, or int64_t for the _64 forms. */
#define HL_API_GEMM(name, size, type, compute_type)                                                                    \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, size m, size n, size k,   \
                               const void *alpha, const void *a, size lda, const void *b, size ldb, const void *beta,  \
                               void *c, size ldc)                                                                      \
    {                                                                                                                  \
        (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc;                           \
        struct product p = {#name, ta, tb, m, n, k, 1, type, type, type, compute_type};                                \
        return multiply(h, &p, CALLER);                                                                                \
    }

#define HL_API_GEMM_STRIDED(name, size, type, compute_type)                                                            \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, size m, size n, size k,   \
                               const void *alpha, const void *a, size lda, long long stride_a, const void *b,          \
                               size ldb, long long stride_b, const void *beta, void *c, size ldc, long long stride_c,  \
                               size batch)                                                                             \
    {                                                                                                                  \
        (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc;                           \
        (void)stride_a, (void)stride_b, (void)stride_c;                                                                \
        struct product p = {#name, ta, tb, m, n, k, batch, type, type, type, compute_type};                            \
        return multiply(h, &p, CALLER);                                                                                \
    }

#define HL_API_GEMM_BATCHED(name, size, type, compute_type)                                                            \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, size m, size n, size k,   \
                               const void *alpha, const void *const a[], size lda, const void *const b[], size ldb,    \
                               const void *beta, void *const c[], size ldc, size batch)                                \
    {                                                                                                                  \
        (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc;                           \
        struct product p = {#name, ta, tb, m, n, k, batch, type, type, type, compute_type};                            \
        return multiply(h, &p, CALLER);                                                                                \
    }

#define HL_API_GEMM_EX(name, size)                                                                                     \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, size m, size n, size k,   \
                               const void *alpha, const void *a, cudaDataType a_type, size lda, const void *b,         \
                               cudaDataType b_type, size ldb, const void *beta, void *c, cudaDataType c_type,          \
                               size ldc, int compute, int algorithm)                                                   \
    {                                                                                                                  \
        (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc, (void)algorithm;          \
        struct product p = {#name, ta, tb, m, n, k, 1, (int)a_type, (int)b_type, (int)c_type, compute};                \
        return multiply(h, &p, CALLER);                                                                                \
    }

#define HL_API_GEMM_STRIDED_EX(name, size)                                                                             \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, size m, size n, size k,   \
                               const void *alpha, const void *a, cudaDataType a_type, size lda, long long stride_a,    \
                               const void *b, cudaDataType b_type, size ldb, long long stride_b, const void *beta,     \
                               void *c, cudaDataType c_type, size ldc, long long stride_c, size batch, int compute,    \
                               int algorithm)                                                                          \
    {                                                                                                                  \
        (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc, (void)algorithm;          \
        (void)stride_a, (void)stride_b, (void)stride_c;                                                                \
        struct product p = {#name, ta, tb, m, n, k, batch, (int)a_type, (int)b_type, (int)c_type, compute};            \
        return multiply(h, &p, CALLER);                                                                                \
    }

#define HL_API_GEMM_BATCHED_EX(name, size)                                                                             \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, size m, size n, size k,   \
                               const void *alpha, const void *const a[], cudaDataType a_type, size lda,                \
                               const void *const b[], cudaDataType b_type, size ldb, const void *beta,                 \
                               void *const c[], cudaDataType c_type, size ldc, size batch, int compute, int algorithm) \
    {                                                                                                                  \
        (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc, (void)algorithm;          \
        struct product p = {#name, ta, tb, m, n, k, batch, (int)a_type, (int)b_type, (int)c_type, compute};            \
        return multiply(h, &p, CALLER);                                                                                \
    }

/* y[m] = op(A) * x is a product with one column. */
#define HL_API_GEMV(name, size, type, compute_type)                                                                    \
    HL_API cublasStatus_t name(cublasHandle_t h, cublasOperation_t ta, size m, size n, const void *alpha,              \
                               const void *a, size lda, const void *x, size incx, const void *beta, void *y,           \
                               size incy)                                                                              \
    {                                                                                                                  \
        bool plain = ta == CUBLAS_OP_N;                                                                                \
        (void)alpha, (void)a, (void)lda, (void)x, (void)incx, (void)beta, (void)y, (void)incy;                         \
        struct product p = {                                                                                           \
            #name, ta, CUBLAS_OP_N, plain ? m : n, 1, plain ? n : m, 1, type, type, type, compute_type};               \
        return multiply(h, &p, CALLER);                                                                                \
    }

HL_API_GEMM(cublasHgemm, int, HL_TYPE_16F, HL_COMPUTE_16F)
HL_API_GEMM(cublasSgemm_v2, int, HL_TYPE_32F, HL_COMPUTE_32F)
HL_API_GEMM(cublasDgemm_v2, int, HL_TYPE_64F, HL_COMPUTE_64F)
HL_API_GEMM(cublasCgemm_v2, int, HL_TYPE_32C, HL_COMPUTE_32F)
HL_API_GEMM(cublasZgemm_v2, int, HL_TYPE_64C, HL_COMPUTE_64F)
HL_API_GEMM(cublasSgemm_v2_64, int64_t, HL_TYPE_32F, HL_COMPUTE_32F)
HL_API_GEMM(cublasDgemm_v2_64, int64_t, HL_TYPE_64F, HL_COMPUTE_64F)
HL_API_GEMM_STRIDED(cublasHgemmStridedBatched, int, HL_TYPE_16F, HL_COMPUTE_16F)
HL_API_GEMM_STRIDED(cublasSgemmStridedBatched, int, HL_TYPE_32F, HL_COMPUTE_32F)
HL_API_GEMM_STRIDED(cublasDgemmStridedBatched, int, HL_TYPE_64F, HL_COMPUTE_64F)
HL_API_GEMM_STRIDED(cublasCgemmStridedBatched, int, HL_TYPE_32C, HL_COMPUTE_32F)
HL_API_GEMM_STRIDED(cublasZgemmStridedBatched, int, HL_TYPE_64C, HL_COMPUTE_64F)
HL_API_GEMM_BATCHED(cublasSgemmBatched, int, HL_TYPE_32F, HL_COMPUTE_32F)
HL_API_GEMM_BATCHED(cublasDgemmBatched, int, HL_TYPE_64F, HL_COMPUTE_64F)
HL_API_GEMM_BATCHED(cublasCgemmBatched, int, HL_TYPE_32C, HL_COMPUTE_32F)
HL_API_GEMM_BATCHED(cublasZgemmBatched, int, HL_TYPE_64C, HL_COMPUTE_64F)
HL_API_GEMM_EX(cublasGemmEx, int)
HL_API_GEMM_EX(cublasGemmEx_64, int64_t)
HL_API_GEMM_STRIDED_EX(cublasGemmStridedBatchedEx, int)
HL_API_GEMM_STRIDED_EX(cublasGemmStridedBatchedEx_64, int64_t)
HL_API_GEMM_BATCHED_EX(cublasGemmBatchedEx, int)
HL_API_GEMM_BATCHED_EX(cublasGemmBatchedEx_64, int64_t)
HL_API_GEMV(cublasSgemv_v2, int, HL_TYPE_32F, HL_COMPUTE_32F)
HL_API_GEMV(cublasDgemv_v2, int, HL_TYPE_64F, HL_COMPUTE_64F)

/* Float scalars and accumulation whatever the operands are. */
HL_API cublasStatus_t cublasSgemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                                    const float *alpha, const void *a, cudaDataType a_type, int lda, const void *b,
                                    cudaDataType b_type, int ldb, const float *beta, void *c, cudaDataType c_type,
                                    int ldc)
{
    (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c, (void)ldc;
    struct product p = {"cublasSgemmEx", ta, tb, m, n, k, 1, (int)a_type, (int)b_type, (int)c_type, HL_COMPUTE_32F};
    return multiply(h, &p, CALLER);
}
