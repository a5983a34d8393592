/* Devices of the runtime API. */
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "bridge/attributes.h"
#include "bridge/cudart/runtime.h"
#include "bridge/memory.h"

static unsigned device_flags[HL_DEVICES_MAX];

HL_API cudaError_t cudaGetDeviceCount(int *count)
{
    CUresult result = hl_bridge_process_init();

    if (!count)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    *count = result ? 0 : hl_bridge_process_device_count();
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaGetDevice(int *ordinal)
{
    CUresult result = hl_bridge_process_init();

    if (!ordinal)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    if (!result)
        *ordinal = hl_bridge_context_ordinal();
    return hl_bridge_runtime_done(result);
}

static CUresult set_device(int ordinal)
{
    CUresult result = hl_bridge_process_init();
    hl_bridge_context *context = result ? NULL : hl_bridge_context_current();

    if (result || (context && context->ordinal == ordinal && context->primary))
        return result;
    result = hl_bridge_context_retain(ordinal, &context);
    if (!result)
        hl_bridge_context_set(context);
    return result;
}

HL_API cudaError_t cudaSetDevice(int ordinal) { return hl_bridge_runtime_done(set_device(ordinal)); }

HL_API cudaError_t cudaInitDevice(int ordinal, unsigned flags, unsigned flags_valid)
{
    hl_bridge_context *context;
    CUresult result = hl_bridge_process_init();

    if (!result)
        result = hl_bridge_context_retain(ordinal, &context);
    if (!result && flags_valid & cudaInitDeviceFlagsAreValid)
        device_flags[ordinal] = flags;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    CUresult result = hl_bridge_process_init();

    if (!result)
        device_flags[hl_bridge_context_ordinal()] = flags;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaGetDeviceFlags(unsigned *flags)
{
    CUresult result = hl_bridge_process_init();

    if (!flags)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    if (!result)
        *flags = device_flags[hl_bridge_context_ordinal()];
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaDeviceSynchronize(void)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_stream_device_wait());
}

HL_API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int ordinal)
{
    CUresult result = hl_bridge_process_init();
    uint32_t device;

    if (!value)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    if (!result)
        result = hl_bridge_process_device(ordinal, &device);
    if (!result && !hl_bridge_attributes_get(device, (int)attribute, value))
        result = (CUresult)hl_bridge_unsupported_part("cudaDeviceGetAttribute", HL_LIBRARY, "attribute", attribute,
                                                      __builtin_return_address(0), CUDA_ERROR_INVALID_VALUE);
    return hl_bridge_runtime_done(result);
}

static int attribute(uint32_t device, CUdevice_attribute which)
{
    int value = 0;

    hl_bridge_attributes_get(device, which, &value);
    return value;
}

#define A(name) attribute(device, CU_DEVICE_ATTRIBUTE_##name)

/* The structure's layout is the caller's: CUDA 13 dropped eight fields of 12 in its middle (12.8.90 and 13.0.96). */
#if CUDART_VERSION >= 13000
_Static_assert(sizeof(struct cudaDeviceProp) == 1008, "cudaDeviceProp of CUDA 13");
#else
_Static_assert(sizeof(struct cudaDeviceProp) == 1032 && offsetof(struct cudaDeviceProp, clockRate) == 348 &&
                   offsetof(struct cudaDeviceProp, multiProcessorCount) == 388,
               "cudaDeviceProp of CUDA 12");
#endif

static void fill_limits(struct cudaDeviceProp *prop, uint32_t device)
{
    prop->maxThreadsPerBlock = A(MAX_THREADS_PER_BLOCK);
    prop->maxThreadsDim[0] = A(MAX_BLOCK_DIM_X);
    prop->maxThreadsDim[1] = A(MAX_BLOCK_DIM_Y);
    prop->maxThreadsDim[2] = A(MAX_BLOCK_DIM_Z);
    prop->maxGridSize[0] = A(MAX_GRID_DIM_X);
    prop->maxGridSize[1] = A(MAX_GRID_DIM_Y);
    prop->maxGridSize[2] = A(MAX_GRID_DIM_Z);
    prop->totalConstMem = (size_t)A(TOTAL_CONSTANT_MEMORY);
    prop->memPitch = (size_t)A(MAX_PITCH);
    prop->warpSize = A(WARP_SIZE);
    prop->textureAlignment = (size_t)A(TEXTURE_ALIGNMENT);
    prop->texturePitchAlignment = (size_t)A(TEXTURE_PITCH_ALIGNMENT);
    prop->surfaceAlignment = (size_t)A(SURFACE_ALIGNMENT);
    prop->maxTexture1D = A(MAXIMUM_TEXTURE1D_WIDTH);
    prop->maxTexture1DMipmap = A(MAXIMUM_TEXTURE1D_MIPMAPPED_WIDTH);
    prop->maxTexture2D[0] = A(MAXIMUM_TEXTURE2D_WIDTH);
    prop->maxTexture2D[1] = A(MAXIMUM_TEXTURE2D_HEIGHT);
    prop->maxTexture2DMipmap[0] = A(MAXIMUM_TEXTURE2D_MIPMAPPED_WIDTH);
    prop->maxTexture2DMipmap[1] = A(MAXIMUM_TEXTURE2D_MIPMAPPED_HEIGHT);
    prop->maxTexture2DLinear[0] = A(MAXIMUM_TEXTURE2D_LINEAR_WIDTH);
    prop->maxTexture2DLinear[1] = A(MAXIMUM_TEXTURE2D_LINEAR_HEIGHT);
    prop->maxTexture2DLinear[2] = A(MAXIMUM_TEXTURE2D_LINEAR_PITCH);
    prop->maxTexture2DGather[0] = A(MAXIMUM_TEXTURE2D_GATHER_WIDTH);
    prop->maxTexture2DGather[1] = A(MAXIMUM_TEXTURE2D_GATHER_HEIGHT);
    prop->maxTexture3D[0] = A(MAXIMUM_TEXTURE3D_WIDTH);
    prop->maxTexture3D[1] = A(MAXIMUM_TEXTURE3D_HEIGHT);
    prop->maxTexture3D[2] = A(MAXIMUM_TEXTURE3D_DEPTH);
    prop->maxTexture3DAlt[0] = A(MAXIMUM_TEXTURE3D_WIDTH_ALTERNATE);
    prop->maxTexture3DAlt[1] = A(MAXIMUM_TEXTURE3D_HEIGHT_ALTERNATE);
    prop->maxTexture3DAlt[2] = A(MAXIMUM_TEXTURE3D_DEPTH_ALTERNATE);
    prop->maxTextureCubemap = A(MAXIMUM_TEXTURECUBEMAP_WIDTH);
    prop->maxTexture1DLayered[0] = A(MAXIMUM_TEXTURE1D_LAYERED_WIDTH);
    prop->maxTexture1DLayered[1] = A(MAXIMUM_TEXTURE1D_LAYERED_LAYERS);
    prop->maxTexture2DLayered[0] = A(MAXIMUM_TEXTURE2D_LAYERED_WIDTH);
    prop->maxTexture2DLayered[1] = A(MAXIMUM_TEXTURE2D_LAYERED_HEIGHT);
    prop->maxTexture2DLayered[2] = A(MAXIMUM_TEXTURE2D_LAYERED_LAYERS);
    prop->maxTextureCubemapLayered[0] = A(MAXIMUM_TEXTURECUBEMAP_LAYERED_WIDTH);
    prop->maxTextureCubemapLayered[1] = A(MAXIMUM_TEXTURECUBEMAP_LAYERED_LAYERS);
    prop->maxSurface1D = A(MAXIMUM_SURFACE1D_WIDTH);
    prop->maxSurface2D[0] = A(MAXIMUM_SURFACE2D_WIDTH);
    prop->maxSurface2D[1] = A(MAXIMUM_SURFACE2D_HEIGHT);
    prop->maxSurface3D[0] = A(MAXIMUM_SURFACE3D_WIDTH);
    prop->maxSurface3D[1] = A(MAXIMUM_SURFACE3D_HEIGHT);
    prop->maxSurface3D[2] = A(MAXIMUM_SURFACE3D_DEPTH);
    prop->maxSurface1DLayered[0] = A(MAXIMUM_SURFACE1D_LAYERED_WIDTH);
    prop->maxSurface1DLayered[1] = A(MAXIMUM_SURFACE1D_LAYERED_LAYERS);
    prop->maxSurface2DLayered[0] = A(MAXIMUM_SURFACE2D_LAYERED_WIDTH);
    prop->maxSurface2DLayered[1] = A(MAXIMUM_SURFACE2D_LAYERED_HEIGHT);
    prop->maxSurface2DLayered[2] = A(MAXIMUM_SURFACE2D_LAYERED_LAYERS);
    prop->maxSurfaceCubemap = A(MAXIMUM_SURFACECUBEMAP_WIDTH);
    prop->maxSurfaceCubemapLayered[0] = A(MAXIMUM_SURFACECUBEMAP_LAYERED_WIDTH);
    prop->maxSurfaceCubemapLayered[1] = A(MAXIMUM_SURFACECUBEMAP_LAYERED_LAYERS);
}

static void fill_abilities(struct cudaDeviceProp *prop, uint32_t device)
{
    prop->integrated = A(INTEGRATED);
    prop->canMapHostMemory = A(CAN_MAP_HOST_MEMORY);
    prop->concurrentKernels = A(CONCURRENT_KERNELS);
    prop->ECCEnabled = A(ECC_ENABLED);
    prop->tccDriver = A(TCC_DRIVER);
    prop->unifiedAddressing = A(UNIFIED_ADDRESSING);
    prop->streamPrioritiesSupported = A(STREAM_PRIORITIES_SUPPORTED);
    prop->globalL1CacheSupported = A(GLOBAL_L1_CACHE_SUPPORTED);
    prop->localL1CacheSupported = A(LOCAL_L1_CACHE_SUPPORTED);
    prop->managedMemory = A(MANAGED_MEMORY);
    prop->isMultiGpuBoard = A(MULTI_GPU_BOARD);
    prop->multiGpuBoardGroupID = A(MULTI_GPU_BOARD_GROUP_ID);
    prop->hostNativeAtomicSupported = A(HOST_NATIVE_ATOMIC_SUPPORTED);
    prop->pageableMemoryAccess = A(PAGEABLE_MEMORY_ACCESS);
    prop->concurrentManagedAccess = A(CONCURRENT_MANAGED_ACCESS);
    prop->computePreemptionSupported = A(COMPUTE_PREEMPTION_SUPPORTED);
    prop->canUseHostPointerForRegisteredMem = A(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM);
    prop->cooperativeLaunch = A(COOPERATIVE_LAUNCH);
    prop->pageableMemoryAccessUsesHostPageTables = A(PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES);
    prop->directManagedMemAccessFromHost = A(DIRECT_MANAGED_MEM_ACCESS_FROM_HOST);
    prop->hostRegisterSupported = A(HOST_REGISTER_SUPPORTED);
    prop->sparseCudaArraySupported = A(SPARSE_CUDA_ARRAY_SUPPORTED);
    prop->hostRegisterReadOnlySupported = A(READ_ONLY_HOST_REGISTER_SUPPORTED);
    prop->timelineSemaphoreInteropSupported = A(TIMELINE_SEMAPHORE_INTEROP_SUPPORTED);
    prop->memoryPoolsSupported = A(MEMORY_POOLS_SUPPORTED);
    prop->gpuDirectRDMASupported = A(GPU_DIRECT_RDMA_SUPPORTED);
    prop->gpuDirectRDMAFlushWritesOptions = (unsigned)A(GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
    prop->gpuDirectRDMAWritesOrdering = A(GPU_DIRECT_RDMA_WRITES_ORDERING);
    prop->memoryPoolSupportedHandleTypes = (unsigned)A(MEMPOOL_SUPPORTED_HANDLE_TYPES);
    prop->deferredMappingCudaArraySupported = A(DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED);
    prop->ipcEventSupported = A(IPC_EVENT_SUPPORTED);
    prop->clusterLaunch = A(CLUSTER_LAUNCH);
    prop->unifiedFunctionPointers = A(UNIFIED_FUNCTION_POINTERS);
#if CUDART_VERSION >= 13000
    prop->deviceNumaConfig = A(NUMA_CONFIG);
    prop->deviceNumaId = A(NUMA_ID);
    prop->mpsEnabled = A(MPS_ENABLED);
    prop->hostNumaId = A(HOST_NUMA_ID);
    prop->hostNumaMultinodeIpcSupported = A(HOST_NUMA_MULTINODE_IPC_SUPPORTED);
#endif
}

static cudaError_t properties(struct cudaDeviceProp *prop, int ordinal)
{
    CUresult result = hl_bridge_process_init();
    uint32_t device;

    if (!prop)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    if (!result)
        result = hl_bridge_process_device(ordinal, &device);
    if (result)
        return hl_bridge_runtime_done(result);
    const hl_device_facts *facts = hl_device_facts_of(device);
    memset(prop, 0, sizeof *prop);
    memcpy(prop->name, facts->name, sizeof facts->name);
    hl_bridge_attributes_uuid(device, (uint8_t *)prop->uuid.bytes);
    prop->totalGlobalMem = (size_t)facts->total_memory_bytes;
    prop->major = facts->compute_major;
    prop->minor = facts->compute_minor;
    prop->multiProcessorCount = facts->multiprocessors;
    prop->sharedMemPerBlock = (size_t)facts->shared_memory_per_block_bytes;
    prop->sharedMemPerBlockOptin = (size_t)facts->shared_memory_per_block_optin_bytes;
    prop->sharedMemPerMultiprocessor = (size_t)facts->shared_memory_per_multiprocessor_bytes;
    prop->reservedSharedMemPerBlock = (size_t)facts->reserved_shared_memory_per_block_bytes;
    prop->regsPerBlock = facts->registers_per_block;
    prop->regsPerMultiprocessor = facts->registers_per_multiprocessor;
    prop->maxThreadsPerMultiProcessor = facts->max_threads_per_multiprocessor;
    prop->maxBlocksPerMultiProcessor = facts->max_blocks_per_multiprocessor;
    prop->asyncEngineCount = facts->async_engines;
    prop->memoryBusWidth = facts->memory_bus_bits;
    prop->l2CacheSize = facts->l2_cache_bytes;
    prop->persistingL2CacheMaxSize = facts->persisting_l2_bytes_max;
    prop->accessPolicyMaxWindowSize = A(MAX_ACCESS_POLICY_WINDOW_SIZE);
    prop->pciBusID = A(PCI_BUS_ID);
    fill_limits(prop, device);
    fill_abilities(prop, device);
#if CUDART_VERSION < 13000
    prop->clockRate = facts->clock_khz;
    prop->memoryClockRate = facts->memory_clock_khz;
    prop->deviceOverlap = 1;
    prop->computeMode = A(COMPUTE_MODE);
    prop->maxTexture1DLinear = A(MAXIMUM_TEXTURE1D_LINEAR_WIDTH);
    prop->kernelExecTimeoutEnabled = A(KERNEL_EXEC_TIMEOUT);
    prop->singleToDoublePrecisionPerfRatio = A(SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO);
    prop->cooperativeMultiDeviceLaunch = A(COOPERATIVE_MULTI_DEVICE_LAUNCH);
#endif
    return cudaSuccess;
}

/* CUDA 12 fills its structure under a second name; the first one is CUDA 11's there, with a smaller structure. */
#if CUDART_VERSION >= 13000
HL_API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int ordinal)
{
    return properties(prop, ordinal);
}
#else
HL_API cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *prop, int ordinal)
{
    return properties(prop, ordinal);
}
#endif

HL_API cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int ordinal)
{
    CUresult result = hl_bridge_process_init();
    char full[16];
    uint32_t device;

    if (!result)
        result = hl_bridge_process_device(ordinal, &device);
    if (!text || length < 13)
        result = CUDA_ERROR_INVALID_VALUE;
    if (!result) {
        hl_bridge_attributes_pci_text(device, full);
        snprintf(text, (size_t)length, "%s", full);
    }
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaDeviceGetByPCIBusId(int *ordinal, const char *text)
{
    CUresult result = hl_bridge_process_init();
    char full[16];
    uint32_t device;

    if (!ordinal || !text)
        result = CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; !result && i < hl_bridge_process_device_count(); i++) {
        hl_bridge_process_device(i, &device);
        hl_bridge_attributes_pci_text(device, full);
        if (!strcasecmp(full, text)) {
            *ordinal = i;
            return cudaSuccess;
        }
    }
    return hl_bridge_runtime_done(result ? result : CUDA_ERROR_INVALID_DEVICE);
}

HL_API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    CUresult result = hl_bridge_process_init();

    if (!result)
        hl_bridge_stream_priorities(least, greatest);
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    CUresult result = hl_bridge_runtime_context();

    return hl_bridge_runtime_done(result ? result : hl_bridge_memory_info(free_bytes, total_bytes));
}

static _Atomic bool peers[HL_DEVICES_MAX][HL_DEVICES_MAX];

HL_API cudaError_t cudaDeviceCanAccessPeer(int *can, int ordinal, int peer)
{
    CUresult result = hl_bridge_process_init();
    uint32_t device, other;

    if (!can)
        return hl_bridge_runtime_done(CUDA_ERROR_INVALID_VALUE);
    if (!result)
        result = hl_bridge_process_device(ordinal, &device);
    if (!result)
        result = hl_bridge_process_device(peer, &other);
    if (!result)
        *can = hl_bridge_attributes_peers(device, other);
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaDeviceGetP2PAttribute(int *value, enum cudaDeviceP2PAttr attribute, int ordinal, int peer)
{
    CUresult result = value ? hl_bridge_process_init() : CUDA_ERROR_INVALID_VALUE;
    uint32_t device, other;

    if (!result)
        result = hl_bridge_process_device(ordinal, &device);
    if (!result)
        result = hl_bridge_process_device(peer, &other);
    if (!result && device == other)
        result = CUDA_ERROR_INVALID_DEVICE;
    if (!result && !hl_bridge_attributes_p2p(device, other, (int)attribute, value))
        result = CUDA_ERROR_INVALID_VALUE;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags)
{
    CUresult result = hl_bridge_runtime_context();
    uint32_t device;

    if (!result && flags)
        result = CUDA_ERROR_INVALID_VALUE;
    if (!result)
        result = hl_bridge_process_device(peer, &device);
    if (!result && peer == hl_bridge_context_ordinal())
        result = CUDA_ERROR_INVALID_DEVICE;
    if (!result && !hl_bridge_attributes_peers(hl_bridge_context_current()->device, device))
        result = CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    if (!result && atomic_exchange(&peers[hl_bridge_context_ordinal()][peer], true))
        result = CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    return hl_bridge_runtime_done(result);
}

HL_API cudaError_t cudaDeviceDisablePeerAccess(int peer)
{
    CUresult result = hl_bridge_runtime_context();
    uint32_t device;

    if (!result)
        result = hl_bridge_process_device(peer, &device);
    if (!result && !atomic_exchange(&peers[hl_bridge_context_ordinal()][peer], false))
        result = CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    return hl_bridge_runtime_done(result);
}
