/* Launches, function attributes and occupancy of the runtime API. */
#include "bridge/launch.h"

#include <string.h>

#include "bridge/cudart/runtime.h"

static __thread struct { /* <<<grid, block, shared, stream>>> stands before the stub that nvcc made is called */
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
} configured;

/* Start-up interfaces of nvcc's code: declared in crt/, for C++ only. */
HL_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st *stream);
HL_API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream);
HL_API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host);
HL_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                                      cudaStream_t stream);

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st *stream)
{
    configured.grid = grid;
    configured.block = block;
    configured.shared_bytes = shared_bytes;
    configured.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream)
{
    *grid = configured.grid;
    *block = configured.block;
    *shared_bytes = configured.shared_bytes;
    *(cudaStream_t *)stream = configured.stream;
    return cudaSuccess;
}

static CUresult kernel_of(const void *function, hl_bridge_kernel **kernel)
{
    *kernel = hl_bridge_kernel_of(function);
    return *kernel ? CUDA_SUCCESS : (CUresult)cudaErrorInvalidDeviceFunction;
}

static cudaError_t launch(const void *function, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t handle,
                          bool cooperative, void *const *arguments)
{
    hl_bridge_launch_shape shape = {.grid = {grid.x, grid.y, grid.z},
                                    .block = {block.x, block.y, block.z},
                                    .dynamic_shared_bytes = (unsigned)shared_bytes,
                                    .cooperative = cooperative};
    hl_bridge_stream *stream;
    hl_bridge_kernel *kernel;
    CUresult result = hl_bridge_runtime_stream(handle, &stream);

    if (!result)
        result = kernel_of(function, &kernel);
    if (!result && !hl_bridge_launch_shape_valid(&shape))
        result = (CUresult)cudaErrorInvalidConfiguration;
    return hl_bridge_runtime_done(result ? result : hl_bridge_launch_kernel(kernel, &shape, arguments, stream));
}

HL_API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                                    cudaStream_t stream)
{
    return launch(function, grid, block, shared_bytes, stream, false, arguments);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                               cudaStream_t stream)
{
    return launch(kernel, grid, block, shared_bytes, stream, false, arguments);
}

HL_API cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                               size_t shared_bytes, cudaStream_t stream)
{
    return launch(function, grid, block, shared_bytes, stream, true, arguments);
}

HL_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments)
{
    bool cooperative = false;

    if (!config || (config->numAttrs && !config->attrs))
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    for (unsigned i = 0; i < config->numAttrs; i++) /* clusters, priorities, overlap: inside the measured durations */
        if (config->attrs[i].id == cudaLaunchAttributeCooperative)
            cooperative = config->attrs[i].val.cooperative != 0;
    return launch(function, config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream, cooperative,
                  arguments);
}

cudaError_t __cudaGetKernel(cudaKernel_t *handle, const void *host)
{
    hl_bridge_kernel *kernel;
    CUresult result = handle ? kernel_of(host, &kernel) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *handle = (cudaKernel_t)kernel;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaGetKernel(cudaKernel_t *kernel, const void *host) { return __cudaGetKernel(kernel, host); }

HL_API cudaError_t cudaGetFuncBySymbol(cudaFunction_t *function, const void *host)
{
    return __cudaGetKernel((cudaKernel_t *)function, host);
}

HL_API cudaError_t cudaFuncGetName(const char **name, const void *function)
{
    hl_bridge_kernel *kernel;
    CUresult result = name ? kernel_of(function, &kernel) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *name = kernel->name;
    return hl_bridge_runtime_done(result);
}

static CUresult kernel_and_device(const void *function, hl_bridge_kernel **kernel, uint32_t *device)
{
    hl_bridge_context *context;
    CUresult result = hl_bridge_context_use(&context);

    if (result)
        return result;
    *device = context->device;
    return kernel_of(function, kernel);
}

static int attribute(hl_bridge_kernel *kernel, CUfunction_attribute which, uint32_t device)
{
    int value = 0;

    hl_bridge_kernel_attribute(kernel, which, device, &value);
    return value;
}

_Static_assert(sizeof(struct cudaFuncAttributes) >= 64, "cudaFuncAttributes");

HL_API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = attributes ? kernel_and_device(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    if (result)
        return hl_bridge_runtime_done(result);
    memset(attributes, 0, sizeof *attributes);
    attributes->sharedSizeBytes = kernel->shared_bytes;
    attributes->localSizeBytes = kernel->local_bytes;
    attributes->maxThreadsPerBlock = attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, device);
    attributes->numRegs = attribute(kernel, CU_FUNC_ATTRIBUTE_NUM_REGS, device);
    attributes->ptxVersion = attribute(kernel, CU_FUNC_ATTRIBUTE_PTX_VERSION, device);
    attributes->binaryVersion = attribute(kernel, CU_FUNC_ATTRIBUTE_BINARY_VERSION, device);
    attributes->maxDynamicSharedSizeBytes = attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, device);
    attributes->preferredShmemCarveout = kernel->carveout;
    attributes->nonPortableClusterSizeAllowed = kernel->cluster_non_portable;
    return cudaSuccess;
}

_Static_assert((int)cudaFuncAttributeMaxDynamicSharedMemorySize == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES &&
                   (int)cudaFuncAttributeNonPortableClusterSizeAllowed ==
                       CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
               "function attributes of runtime and driver");

HL_API cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute which, int value)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = kernel_and_device(function, &kernel, &device);

    return hl_bridge_runtime_done(
        result ? result : hl_bridge_kernel_set_attribute(kernel, (CUfunction_attribute)which, device, value));
}

HL_API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t handle, enum cudaFuncAttribute which, int value,
                                                   int ordinal)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = hl_bridge_process_init();

    if (!result)
        result = hl_bridge_process_device(ordinal, &device);
    if (!result)
        result = kernel_of(handle, &kernel);
    return hl_bridge_runtime_done(
        result ? result : hl_bridge_kernel_set_attribute(kernel, (CUfunction_attribute)which, device, value));
}

/* How a kernel's fast memory is split between cache and shared memory: a preference, inside the measured durations. */
HL_API cudaError_t cudaFuncSetCacheConfig(const void *function, enum cudaFuncCache config)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = kernel_and_device(function, &kernel, &device);

    if ((unsigned)config > cudaFuncCachePreferEqual)
        result = CUDA_ERROR_INVALID_VALUE;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                          int threads, size_t shared_bytes,
                                                                          unsigned flags)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = blocks && threads > 0 ? kernel_and_device(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    if (flags & ~(unsigned)cudaOccupancyDisableCachingOverride)
        result = CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *blocks = hl_bridge_occupancy_blocks(kernel, device, (unsigned)threads, shared_bytes);
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                                 size_t shared_bytes)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared_bytes, 0);
}

HL_API cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t *shared_bytes, const void *function, int blocks,
                                                             int threads)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = shared_bytes && threads > 0 && blocks > 0 ? kernel_and_device(function, &kernel, &device)
                                                                : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *shared_bytes = hl_bridge_occupancy_shared_bytes(kernel, device, blocks, (unsigned)threads);
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *function, const cudaLaunchConfig_t *config)
{
    unsigned size = 1;
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = clusters && config ? kernel_and_device(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    if (result)
        return hl_bridge_runtime_done(result);
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
            size = config->attrs[i].val.clusterDim.x * config->attrs[i].val.clusterDim.y *
                   config->attrs[i].val.clusterDim.z;
    *clusters = hl_bridge_occupancy_clusters(
        kernel, device, size, config->blockDim.x * config->blockDim.y * config->blockDim.z, config->dynamicSmemBytes);
    return cudaSuccess;
}
