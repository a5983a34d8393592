/* Matrix multiplications: what cuBLAS and cuBLASLt have in common. The values of enums are part of their ABI. */
#ifndef HL_BRIDGE_GEMM_H
#define HL_BRIDGE_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "bridge/stream.h"

/* cublasComputeType_t */
enum {
    HL_COMPUTE_16F = 64,
    HL_COMPUTE_16F_PEDANTIC = 65,
    HL_COMPUTE_32F = 68,
    HL_COMPUTE_32F_PEDANTIC = 69,
    HL_COMPUTE_64F = 70,
    HL_COMPUTE_64F_PEDANTIC = 71,
    HL_COMPUTE_32I = 72,
    HL_COMPUTE_32I_PEDANTIC = 73,
    HL_COMPUTE_32F_FAST_16F = 74,
    HL_COMPUTE_32F_FAST_16BF = 75,
    HL_COMPUTE_32F_FAST_TF32 = 77,
};

/* cudaDataType_t */
enum { HL_TYPE_32F = 0, HL_TYPE_64F = 1, HL_TYPE_16F = 2, HL_TYPE_32C = 4, HL_TYPE_64C = 5, HL_TYPE_16BF = 14 };

/* In row-major terms: d[m,n] = a[m,k] * b[k,n] for each of batch; transposed: stored as [k,m] and [n,k]. */
typedef struct hl_bridge_gemm {
    int a_type, b_type, d_type; /* cudaDataType_t */
    int compute;                /* cublasComputeType_t */
    int64_t m, n, k, batch;
    bool a_transposed, b_transposed;
} hl_bridge_gemm;

/* A cuBLAS handle, which by cuBLASLt's interface is a cuBLASLt handle too ("a simple cast"); torch makes one only. */
typedef struct hl_bridge_blas {
    uint32_t live;
    CUstream stream;
    int math_mode, pointer_mode, atomics_mode, sm_count_target;
} hl_bridge_blas;

/* Makes the context that the thread uses, as both libraries do. NULL: out of memory; *context_result tells the rest. */
hl_bridge_blas *hl_bridge_blas_create(CUresult *context_result);
void hl_bridge_blas_destroy(hl_bridge_blas *handle);
bool hl_bridge_blas_valid(const hl_bridge_blas *handle);

/* Puts it on the stream. CUDA_ERROR_NOT_SUPPORTED: a type that has no name here. An empty product is no launch. */
CUresult hl_bridge_gemm_launch(const hl_bridge_gemm *gemm, hl_bridge_stream *stream);

#endif
