/* Error state of a thread, names and texts, versions and entry points. */
#include "bridge/errors.h"

#include <stddef.h>

#include "bridge/cudart/runtime.h"

static __thread cudaError_t last;

cudaError_t hl_bridge_runtime_done(CUresult result)
{
    if (result)
        last = (cudaError_t)result;
    return (cudaError_t)result;
}

HL_API cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last;

    last = cudaSuccess;
    return error;
}

HL_API cudaError_t cudaPeekAtLastError(void) { return last; }

HL_API const char *cudaGetErrorName(cudaError_t error)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_CUDA, (int)error);

    return row && *row->runtime_name ? row->runtime_name : "unrecognized error code";
}

HL_API const char *cudaGetErrorString(cudaError_t error)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_CUDA, (int)error);

    return row && *row->runtime_name ? row->text : "unrecognized error code";
}

HL_API cudaError_t cudaRuntimeGetVersion(int *version)
{
    if (!version)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    *version = CUDART_VERSION;
    return cudaSuccess;
}

HL_API cudaError_t cudaDriverGetVersion(int *version)
{
    return hl_bridge_runtime_done(version ? cuDriverGetVersion(version) : CUDA_ERROR_INVALID_VALUE);
}

static cudaError_t entry_point(const char *symbol, void **function, unsigned version, unsigned long long flags,
                               enum cudaDriverEntryPointQueryResult *status)
{
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    CUresult result;

    if (!symbol || !function)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    result = cuGetProcAddress_v2(symbol, function, (int)version, flags, &found);
    if (status)
        *status = (enum cudaDriverEntryPointQueryResult)found;
    return hl_bridge_runtime_done(result);
}

#if CUDART_VERSION < 13000
HL_API cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags,
                                           enum cudaDriverEntryPointQueryResult *status)
{
    return entry_point(symbol, function, CUDART_VERSION, flags, status);
}
#else
/* CUDA 13 keeps the symbol for older programs and drops the declaration. */
HL_API cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags,
                                           enum cudaDriverEntryPointQueryResult *status);
cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *status)
{
    return entry_point(symbol, function, CUDART_VERSION, flags, status);
}
#endif

HL_API cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *status)
{
    return entry_point(symbol, function, version, flags, status);
}
