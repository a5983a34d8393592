/* The calls of CUDA that compiled CuTe programs make, under the names that their runtime gives them.
 *
 * Why: CuTe-DSL's runtime has a CUDA runtime built in, which works past the driver's interface. Programs compiled by the DSL
 * reach it only through these names, an underscore before CUDA's own, with CUDA's arguments and results; so whoever owns the
 * names needs nothing of what is behind them. The rest of the library (its own module loader, XLA's calls) is unsupported.
 *
 * This must only pass on: what a call means is the runtime's and the driver's business here. */
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "bridge/stub.h"

#define HL_API_FORWARD(name, type, target, parameters, arguments)                                                      \
    HL_API type name parameters;                                                                                       \
    type name parameters { return target arguments; }

HL_API_FORWARD(_cudaGetDevice, cudaError_t, cudaGetDevice, (int *device), (device))
HL_API_FORWARD(_cudaSetDevice, cudaError_t, cudaSetDevice, (int device), (device))
HL_API_FORWARD(_cudaGetDeviceCount, cudaError_t, cudaGetDeviceCount, (int *count), (count))
HL_API_FORWARD(_cudaDeviceGetAttribute, cudaError_t, cudaDeviceGetAttribute,
               (int *value, enum cudaDeviceAttr attribute, int device), (value, attribute, device))
HL_API_FORWARD(_cudaDeviceSynchronize, cudaError_t, cudaDeviceSynchronize, (void), ())
HL_API_FORWARD(_cudaMalloc, cudaError_t, cudaMalloc, (void **memory, size_t size), (memory, size))
HL_API_FORWARD(_cudaFree, cudaError_t, cudaFree, (void *memory), (memory))
HL_API_FORWARD(_cudaMemcpyAsync, cudaError_t, cudaMemcpyAsync,
               (void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream),
               (to, from, size, kind, stream))
HL_API_FORWARD(_cudaMemsetAsync, cudaError_t, cudaMemsetAsync,
               (void *memory, int value, size_t size, cudaStream_t stream), (memory, value, size, stream))
HL_API_FORWARD(_cudaStreamCreate, cudaError_t, cudaStreamCreate, (cudaStream_t *stream), (stream))
HL_API_FORWARD(_cudaStreamDestroy, cudaError_t, cudaStreamDestroy, (cudaStream_t stream), (stream))
HL_API_FORWARD(_cudaStreamSynchronize, cudaError_t, cudaStreamSynchronize, (cudaStream_t stream), (stream))
HL_API_FORWARD(_cudaEventCreate, cudaError_t, cudaEventCreate, (cudaEvent_t *event), (event))
HL_API_FORWARD(_cudaEventDestroy, cudaError_t, cudaEventDestroy, (cudaEvent_t event), (event))
HL_API_FORWARD(_cudaEventRecord, cudaError_t, cudaEventRecord,
               (cudaEvent_t event, cudaStream_t stream), (event, stream))
HL_API_FORWARD(_cudaEventElapsedTime, cudaError_t, cudaEventElapsedTime,
               (float *milliseconds, cudaEvent_t start, cudaEvent_t end), (milliseconds, start, end))
HL_API_FORWARD(_cudaFuncSetAttribute, cudaError_t, cudaFuncSetAttribute,
               (const void *kernel, enum cudaFuncAttribute attribute, int value), (kernel, attribute, value))
HL_API_FORWARD(_cudaKernelSetAttributeForDevice, cudaError_t, cudaKernelSetAttributeForDevice,
               (cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value, int device),
               (kernel, attribute, value, device))
HL_API_FORWARD(_cudaLibraryLoadData, cudaError_t, cudaLibraryLoadData,
               (cudaLibrary_t *library, const void *code, enum cudaJitOption *jit_options, void **jit_values,
                unsigned jit_count, enum cudaLibraryOption *options, void **values, unsigned count),
               (library, code, jit_options, jit_values, jit_count, options, values, count))
HL_API_FORWARD(_cudaLibraryUnload, cudaError_t, cudaLibraryUnload, (cudaLibrary_t library), (library))
HL_API_FORWARD(_cudaLibraryGetKernel, cudaError_t, cudaLibraryGetKernel,
               (cudaKernel_t *kernel, cudaLibrary_t library, const char *name), (kernel, library, name))
HL_API_FORWARD(_cudaLibraryGetKernelCount, cudaError_t, cudaLibraryGetKernelCount,
               (unsigned *count, cudaLibrary_t library), (count, library))
HL_API_FORWARD(_cudaLibraryGetGlobal, cudaError_t, cudaLibraryGetGlobal,
               (void **memory, size_t *size, cudaLibrary_t library, const char *name), (memory, size, library, name))
HL_API_FORWARD(_cudaLaunchKernelEx, cudaError_t, cudaLaunchKernelExC,
               (const cudaLaunchConfig_t *configuration, const void *kernel, void **arguments),
               (configuration, kernel, arguments))
HL_API_FORWARD(_cuTensorMapEncodeTiled, CUresult, cuTensorMapEncodeTiled,
               (CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                const cuuint64_t *dimensions, const cuuint64_t *strides, const cuuint32_t *box,
                const cuuint32_t *element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill),
               (map, type, rank, address, dimensions, strides, box, element_strides, interleave, swizzle, promotion, fill))
HL_API_FORWARD(_cuDeviceGet, CUresult, cuDeviceGet, (CUdevice *device, int ordinal), (device, ordinal))
HL_API_FORWARD(_cuKernelGetAttribute, CUresult, cuKernelGetAttribute,
               (int *value, CUfunction_attribute attribute, CUkernel kernel, CUdevice device),
               (value, attribute, kernel, device))
HL_API_FORWARD(_cuLibraryGetGlobal, CUresult, cuLibraryGetGlobal,
               (CUdeviceptr *memory, size_t *size, CUlibrary library, const char *name), (memory, size, library, name))
HL_API_FORWARD(_cuLibraryGetKernel, CUresult, cuLibraryGetKernel,
               (CUkernel *kernel, CUlibrary library, const char *name), (kernel, library, name))
HL_API_FORWARD(_cuLibraryGetKernelCount, CUresult, cuLibraryGetKernelCount,
               (unsigned *count, CUlibrary library), (count, library))
HL_API_FORWARD(_cuLibraryLoadData, CUresult, cuLibraryLoadData,
               (CUlibrary *library, const void *code, CUjit_option *jit_options, void **jit_values, unsigned jit_count,
                CUlibraryOption *options, void **values, unsigned count),
               (library, code, jit_options, jit_values, jit_count, options, values, count))
HL_API_FORWARD(_cuLibraryUnload, CUresult, cuLibraryUnload, (CUlibrary library), (library))
HL_API_FORWARD(_cudaOccupancyMaxActiveBlocksPerMultiprocessor, cudaError_t, cudaOccupancyMaxActiveBlocksPerMultiprocessor,
               (int *blocks, const void *kernel, int threads, size_t shared_bytes),
               (blocks, kernel, threads, shared_bytes))
HL_API_FORWARD(_cudaStreamWaitEvent, cudaError_t, cudaStreamWaitEvent,
               (cudaStream_t stream, cudaEvent_t event, unsigned flags), (stream, event, flags))
