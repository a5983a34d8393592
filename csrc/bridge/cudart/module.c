/* What nvcc's start-up code registers, and libraries of device code. */
#include "bridge/modules.h"

#include <stdlib.h>
#include <vector_types.h>

#include "bridge/cudart/runtime.h"

/* Declared in crt/host_runtime.h, for C++ only. */
HL_API void **__cudaRegisterFatBinary(void *fatbin);
HL_API void __cudaRegisterFatBinaryEnd(void **handle);
HL_API void __cudaUnregisterFatBinary(void **handle);
HL_API char __cudaInitModule(void **handle);
HL_API void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int threads_max,
                                   uint3 *thread_id, uint3 *block_id, dim3 *block, dim3 *grid, int *warp_size);
HL_API void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t size,
                              int constant, int global);

void **__cudaRegisterFatBinary(void *fatbin) { return (void **)hl_bridge_module_register(fatbin); }

/* Closes the list of one fatbin: each entry was complete when it was registered. */
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }

void __cudaUnregisterFatBinary(void **handle) { hl_bridge_module_unregister((hl_bridge_module *)handle); }

/* Asks for managed variables to be placed; true: nothing more to do. */
char __cudaInitModule(void **handle)
{
    (void)handle;
    return 1;
}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int threads_max,
                            uint3 *thread_id, uint3 *block_id, dim3 *block, dim3 *grid, int *warp_size)
{
    (void)device, (void)thread_id, (void)block_id, (void)block, (void)grid, (void)warp_size;
    hl_bridge_kernel_register((hl_bridge_module *)handle, host, name, threads_max);
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t size,
                       int constant, int global)
{
    (void)device, (void)external, (void)constant, (void)global;
    hl_bridge_variable_register((hl_bridge_module *)handle, host, name, size);
}

HL_API cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit_options,
                                       void **jit_values, unsigned jit_count, enum cudaLibraryOption *options,
                                       void **values, unsigned count)
{
    CUresult result = hl_bridge_runtime_context();

    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return hl_bridge_runtime_done(result ? result : hl_bridge_module_load(code, (hl_bridge_module **)library));
}

HL_API cudaError_t cudaLibraryLoadFromFile(cudaLibrary_t *library, const char *path, enum cudaJitOption *jit_options,
                                           void **jit_values, unsigned jit_count, enum cudaLibraryOption *options,
                                           void **values, unsigned count)
{
    CUresult result = hl_bridge_runtime_context();

    (void)jit_options, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return hl_bridge_runtime_done(result ? result : hl_bridge_module_load_file(path, (hl_bridge_module **)library));
}

HL_API cudaError_t cudaLibraryUnload(cudaLibrary_t library)
{
    return hl_bridge_runtime_done(hl_bridge_module_unload((hl_bridge_module *)library));
}

HL_API cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name)
{
    return hl_bridge_runtime_done(
        hl_bridge_module_kernel((hl_bridge_module *)library, name, (hl_bridge_kernel **)kernel));
}

HL_API cudaError_t cudaLibraryGetGlobal(void **address, size_t *size_bytes, cudaLibrary_t library, const char *name)
{
    return hl_bridge_runtime_done(hl_bridge_module_global((hl_bridge_module *)library, name, address, size_bytes));
}

HL_API cudaError_t cudaLibraryGetKernelCount(unsigned *count, cudaLibrary_t library)
{
    return hl_bridge_runtime_done(count ? hl_bridge_module_list((hl_bridge_module *)library, NULL, count)
                                        : CUDA_ERROR_INVALID_VALUE);
}

HL_API cudaError_t cudaLibraryEnumerateKernels(cudaKernel_t *kernels, unsigned count, cudaLibrary_t library)
{
    return hl_bridge_runtime_done(
        kernels ? hl_bridge_module_list((hl_bridge_module *)library, (hl_bridge_kernel **)kernels, &count)
                : CUDA_ERROR_INVALID_VALUE);
}
