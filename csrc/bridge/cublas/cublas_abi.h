/* The part of cuBLAS's C interface that is implemented. NVIDIA's header comes only with the library, half a gigabyte;
 * names, argument types and enum values are the interface, the same in 12.8 and 13.1 (checked against
 * cublas_api.h by tests/bridge). */
#ifndef HL_BRIDGE_CUBLAS_ABI_H
#define HL_BRIDGE_CUBLAS_ABI_H

#include <cuda.h>
#include <library_types.h>

typedef enum {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
    CUBLAS_STATUS_LICENSE_ERROR = 16
} cublasStatus_t;

typedef enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 } cublasOperation_t;

enum { CUBLAS_PEDANTIC_MATH = 2, CUBLAS_TF32_TENSOR_OP_MATH = 3 }; /* cublasMath_t, low bits */

#if CUDA_VERSION >= 13000 /* nvidia-cublas 13.1.0.3 */
enum { HL_CUBLAS_VERSION = 130100, HL_CUBLAS_MAJOR = 13, HL_CUBLAS_MINOR = 1, HL_CUBLAS_PATCH = 0 };
#else /* nvidia-cublas-cu12 12.8.4.1 */
enum { HL_CUBLAS_VERSION = 120804, HL_CUBLAS_MAJOR = 12, HL_CUBLAS_MINOR = 8, HL_CUBLAS_PATCH = 4 };
#endif

#endif
