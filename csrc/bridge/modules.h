/* Kernel identity: which name stands behind the pointer or handle that a launch gives.
 *
 * Three ways lead to a kernel: a host stub registered by nvcc's start-up code, a module (cuModule*) and a library
 * (cuLibrary*, cudaLibrary*). All end in one hl_bridge_kernel, whose address is the CUfunction, CUkernel and
 * cudaKernel_t. */
#ifndef HL_BRIDGE_MODULES_H
#define HL_BRIDGE_MODULES_H

#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>

#include "bridge/cubin.h"

typedef struct hl_bridge_module hl_bridge_module;

typedef struct hl_bridge_kernel {
    uint32_t live;
    bool name_kept;   /* the name is a copy of ours and lives as long as the process */
    const char *name; /* mangled */
    const void *host; /* the host stub, NULL for modules */
    hl_bridge_module *module;
    int registers;   /* 0: not known (compressed fatbin) */
    int threads_max; /* 0: no bound known */
    uint32_t shared_bytes, local_bytes;
    _Atomic uint32_t loaded; /* where its code is, one bit a device */
    int dynamic_shared_max_bytes; /* 0: not set, the default limit holds */
    int carveout;                 /* preferred, -1: default */
    int cluster_non_portable;
    const void *collective; /* what collective.c has found out about it */
} hl_bridge_kernel;

/* --- host stubs (__cudaRegister*) --- */
hl_bridge_module *hl_bridge_module_register(const void *fatbin_wrapper);
void hl_bridge_module_unregister(hl_bridge_module *module);
void hl_bridge_kernel_register(hl_bridge_module *module, const void *host, const char *name, int threads_max);
void hl_bridge_variable_register(hl_bridge_module *module, const void *host, const char *name, size_t size_bytes);
/* A host stub, or a handle of this API; NULL: unknown. */
hl_bridge_kernel *hl_bridge_kernel_of(const void *function);
/* Device address of a registered variable; CUDA_ERROR_NOT_FOUND. Its memory is charged at the first call. */
CUresult hl_bridge_variable_address(const void *host, void **address, size_t *size_bytes);

/* --- images --- */
CUresult hl_bridge_module_load(const void *image, hl_bridge_module **module);
CUresult hl_bridge_module_load_file(const char *path, hl_bridge_module **module);
CUresult hl_bridge_module_unload(hl_bridge_module *module);
bool hl_bridge_module_valid(const void *handle);
CUresult hl_bridge_module_kernel(hl_bridge_module *module, const char *name, hl_bridge_kernel **kernel);
CUresult hl_bridge_module_global(hl_bridge_module *module, const char *name, void **address, size_t *size_bytes);
/* Kernels of a readable image, in its order; CUDA_ERROR_NOT_SUPPORTED for a compressed one. */
CUresult hl_bridge_module_list(hl_bridge_module *module, hl_bridge_kernel **kernels, unsigned *count);

/* --- attributes --- */
CUresult hl_bridge_kernel_attribute(hl_bridge_kernel *kernel, CUfunction_attribute attribute, uint32_t device,
                                    int *value);
CUresult hl_bridge_kernel_set_attribute(hl_bridge_kernel *kernel, CUfunction_attribute attribute, uint32_t device,
                                        int value);

#endif
