/* Modules, libraries, kernels, launches and occupancy of the driver API. */
#include "bridge/modules.h"

#include <string.h>

#include "bridge/driver/driver.h"
#include "bridge/launch.h"

/* --- images --- */

static CUresult load(const void *image, void **handle)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_module_load(image, (hl_bridge_module **)handle);
}

HL_API CUresult cuModuleLoadData(CUmodule *module, const void *image) { return load(image, (void **)module); }

HL_API CUresult cuModuleLoadFatBinary(CUmodule *module, const void *image) { return load(image, (void **)module); }

HL_API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, CUjit_option *options,
                                   void **values)
{
    (void)count, (void)options, (void)values; /* options of the JIT compiler: nothing is compiled */
    return load(image, (void **)module);
}

HL_API CUresult cuModuleLoad(CUmodule *module, const char *path)
{
    CUresult result = hl_bridge_driver_context();

    return result ? result : hl_bridge_module_load_file(path, (hl_bridge_module **)module);
}

HL_API CUresult cuModuleUnload(CUmodule module) { return hl_bridge_module_unload((hl_bridge_module *)module); }

HL_API CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode)
{
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = CU_MODULE_LAZY_LOADING; /* the default since CUDA 12.2 */
    return CUDA_SUCCESS;
}

HL_API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    return hl_bridge_module_kernel((hl_bridge_module *)module, name, (hl_bridge_kernel **)function);
}

HL_API CUresult cuModuleGetFunctionCount(unsigned *count, CUmodule module)
{
    return count ? hl_bridge_module_list((hl_bridge_module *)module, NULL, count) : CUDA_ERROR_INVALID_VALUE;
}

HL_API CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned count, CUmodule module)
{
    return functions ? hl_bridge_module_list((hl_bridge_module *)module, (hl_bridge_kernel **)functions, &count)
                     : CUDA_ERROR_INVALID_VALUE;
}

HL_API CUresult cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *size_bytes, CUmodule module, const char *name)
{
    return hl_bridge_module_global((hl_bridge_module *)module, name, (void **)address, size_bytes);
}

/* A library is loaded without a context; the driver must be initialised. */
HL_API CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit_options, void **jit_values,
                                  unsigned jit_count, CUlibraryOption *options, void **values, unsigned count)
{
    CUresult result = hl_bridge_process_ready();

    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return result ? result : hl_bridge_module_load(code, (hl_bridge_module **)library);
}

HL_API CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *path, CUjit_option *jit_options,
                                      void **jit_values, unsigned jit_count, CUlibraryOption *options, void **values,
                                      unsigned count)
{
    CUresult result = hl_bridge_process_ready();

    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return result ? result : hl_bridge_module_load_file(path, (hl_bridge_module **)library);
}

HL_API CUresult cuLibraryUnload(CUlibrary library) { return hl_bridge_module_unload((hl_bridge_module *)library); }

HL_API CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    return hl_bridge_module_kernel((hl_bridge_module *)library, name, (hl_bridge_kernel **)kernel);
}

HL_API CUresult cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
    if (!module)
        return CUDA_ERROR_INVALID_VALUE;
    if (!hl_bridge_module_valid(library))
        return CUDA_ERROR_INVALID_HANDLE;
    *module = (CUmodule)library;
    return CUDA_SUCCESS;
}

HL_API CUresult cuLibraryGetKernelCount(unsigned *count, CUlibrary library)
{
    return count ? hl_bridge_module_list((hl_bridge_module *)library, NULL, count) : CUDA_ERROR_INVALID_VALUE;
}

HL_API CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned count, CUlibrary library)
{
    return kernels ? hl_bridge_module_list((hl_bridge_module *)library, (hl_bridge_kernel **)kernels, &count)
                   : CUDA_ERROR_INVALID_VALUE;
}

HL_API CUresult cuLibraryGetGlobal(CUdeviceptr *address, size_t *size_bytes, CUlibrary library, const char *name)
{
    return hl_bridge_module_global((hl_bridge_module *)library, name, (void **)address, size_bytes);
}

/* --- kernels --- */

static CUresult kernel_of(const void *handle, hl_bridge_kernel **kernel)
{
    *kernel = hl_bridge_kernel_of(handle);
    return *kernel ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult kernel_here(const void *handle, hl_bridge_kernel **kernel, uint32_t *device)
{
    hl_bridge_context *context;
    CUresult result = hl_bridge_context_need(&context);

    if (result)
        return result;
    *device = context->device;
    return kernel_of(handle, kernel);
}

static CUresult name_of(const char **name, const void *handle)
{
    hl_bridge_kernel *kernel;
    CUresult result = name ? kernel_of(handle, &kernel) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *name = kernel->name;
    return result;
}

HL_API CUresult cuFuncGetName(const char **name, CUfunction function) { return name_of(name, function); }

HL_API CUresult cuKernelGetName(const char **name, CUkernel kernel) { return name_of(name, kernel); }

HL_API CUresult cuKernelGetFunction(CUfunction *function, CUkernel handle)
{
    hl_bridge_kernel *kernel;
    CUresult result = function ? kernel_of(handle, &kernel) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *function = (CUfunction)kernel;
    return result;
}

static CUresult module_of(void **module, const void *handle)
{
    hl_bridge_kernel *kernel;
    CUresult result = module ? kernel_of(handle, &kernel) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *module = kernel->module;
    return result;
}

HL_API CUresult cuFuncGetModule(CUmodule *module, CUfunction function) { return module_of((void **)module, function); }

HL_API CUresult cuKernelGetLibrary(CUlibrary *library, CUkernel kernel) { return module_of((void **)library, kernel); }

/* Code is loaded as soon as its image is. */
HL_API CUresult cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function)
{
    hl_bridge_kernel *kernel;
    CUresult result = state ? kernel_of(function, &kernel) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *state = CU_FUNCTION_LOADING_STATE_LOADED;
    return result;
}

HL_API CUresult cuFuncLoad(CUfunction function)
{
    hl_bridge_kernel *kernel;

    return kernel_of(function, &kernel);
}

HL_API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = value ? kernel_here(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    return result ? result : hl_bridge_kernel_attribute(kernel, attribute, device, value);
}

HL_API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = kernel_here(function, &kernel, &device);

    return result ? result : hl_bridge_kernel_set_attribute(kernel, attribute, device, value);
}

HL_API CUresult cuKernelGetAttribute(int *value, CUfunction_attribute attribute, CUkernel handle, CUdevice ordinal)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = value ? hl_bridge_driver_device(ordinal, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        result = kernel_of(handle, &kernel);
    return result ? result : hl_bridge_kernel_attribute(kernel, attribute, device, value);
}

HL_API CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel handle, CUdevice ordinal)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = hl_bridge_driver_device(ordinal, &device);

    if (!result)
        result = kernel_of(handle, &kernel);
    return result ? result : hl_bridge_kernel_set_attribute(kernel, attribute, device, value);
}

/* A preference for how fast memory is split; inside the measured durations. */
HL_API CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = kernel_here(function, &kernel, &device);

    return result ? result : (unsigned)config > CU_FUNC_CACHE_PREFER_EQUAL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* --- launches --- */

static CUresult launch(CUfunction function, const hl_bridge_launch_shape *shape, void *const *arguments, CUstream handle)
{
    hl_bridge_stream *stream;
    hl_bridge_kernel *kernel;
    CUresult result = hl_bridge_driver_stream(handle, &stream);

    if (!result)
        result = kernel_of(function, &kernel);
    return result ? result : hl_bridge_launch_kernel(kernel, shape, arguments, stream);
}

HL_API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
                               void **parameters, void **extra)
{
    hl_bridge_launch_shape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, false};

    (void)extra;
    return launch(function, &shape, parameters, stream);
}

HL_API CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                          CUstream stream, void **parameters)
{
    hl_bridge_launch_shape shape = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, true};

    return launch(function, &shape, parameters, stream);
}

HL_API CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra)
{
    (void)extra;
    if (!config || (config->numAttrs && !config->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    hl_bridge_launch_shape shape = {{config->gridDimX, config->gridDimY, config->gridDimZ},
                                    {config->blockDimX, config->blockDimY, config->blockDimZ},
                                    config->sharedMemBytes,
                                    false};
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
            shape.cooperative = config->attrs[i].value.cooperative != 0;
    return launch(function, &shape, parameters, config->hStream);
}

/* --- occupancy --- */

HL_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int threads,
                                                                     size_t shared_bytes, unsigned flags)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = blocks && threads > 0 && !(flags & ~(unsigned)CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE)
                          ? kernel_here(function, &kernel, &device)
                          : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *blocks = hl_bridge_occupancy_blocks(kernel, device, (unsigned)threads, shared_bytes);
    return result;
}

HL_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
                                                            size_t shared_bytes)
{
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared_bytes, 0);
}

HL_API CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *shared_bytes, CUfunction function, int blocks,
                                                        int threads)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result =
        shared_bytes && blocks > 0 && threads > 0 ? kernel_here(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result)
        *shared_bytes = hl_bridge_occupancy_shared_bytes(kernel, device, blocks, (unsigned)threads);
    return result;
}

HL_API CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction function,
                                                 CUoccupancyB2DSize shared_of_block, size_t shared_bytes, int limit)
{
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = grid && block ? kernel_here(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    if (!result && shared_of_block)
        result = (CUresult)hl_bridge_unsupported_part("cuOccupancyMaxPotentialBlockSize", HL_LIBRARY,
                                                      "a function of the block size", 0, __builtin_return_address(0),
                                                      CUDA_ERROR_NOT_SUPPORTED);
    if (!result)
        hl_bridge_occupancy_block_size(kernel, device, shared_bytes, limit, grid, block);
    return result;
}

HL_API CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config)
{
    unsigned size = 1;
    hl_bridge_kernel *kernel;
    uint32_t device;
    CUresult result = clusters && config ? kernel_here(function, &kernel, &device) : CUDA_ERROR_INVALID_VALUE;

    if (result)
        return result;
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            size = config->attrs[i].value.clusterDim.x * config->attrs[i].value.clusterDim.y *
                   config->attrs[i].value.clusterDim.z;
    *clusters = hl_bridge_occupancy_clusters(
        kernel, device, size, config->blockDimX * config->blockDimY * config->blockDimZ, config->sharedMemBytes);
    return CUDA_SUCCESS;
}
