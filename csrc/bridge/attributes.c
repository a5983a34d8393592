/* Device attributes; see attributes.h.
 *
 * What differs between products comes from the device profile. The rest are limits of the programming model, the same
 * on every device of compute capability 7.0 to 12.x (CUDA C++ programming guide, "Compute Capabilities"). An attribute
 * that is not in this table is reported by the caller and never answered with 0.
 *
 * Compared with an H100 80GB HBM3 (driver 580.159.04, CUDA 13.0): every difference left is a feature whose calls are not
 * written here, and which is denied for that reason (GPUDirect RDMA, dma-buf, fabric handles, host memory pools). */
#include "bridge/attributes.h"

#include <cuda.h>
#include <stdio.h>
#include <string.h>

#include "core/export.h"

#define A(name) CU_DEVICE_ATTRIBUTE_##name

/* Limits of the programming model. */
static const struct {
    int attribute, value;
} limits[] = {
    {A(MAX_THREADS_PER_BLOCK), 1024},
    {A(MAX_BLOCK_DIM_X), 1024},
    {A(MAX_BLOCK_DIM_Y), 1024},
    {A(MAX_BLOCK_DIM_Z), 64},
    {A(MAX_GRID_DIM_X), 2147483647},
    {A(MAX_GRID_DIM_Y), 65535},
    {A(MAX_GRID_DIM_Z), 65535},
    {A(TOTAL_CONSTANT_MEMORY), 65536},
    {A(WARP_SIZE), 32},
    {A(MAX_PITCH), 2147483647},
    {A(TEXTURE_ALIGNMENT), 512},
    {A(TEXTURE_PITCH_ALIGNMENT), 32},
    {A(SURFACE_ALIGNMENT), 512},
    {A(MAXIMUM_TEXTURE1D_WIDTH), 131072},
    {A(MAXIMUM_TEXTURE2D_WIDTH), 131072},
    {A(MAXIMUM_TEXTURE2D_HEIGHT), 65536},
    {A(MAXIMUM_TEXTURE3D_WIDTH), 16384},
    {A(MAXIMUM_TEXTURE3D_HEIGHT), 16384},
    {A(MAXIMUM_TEXTURE3D_DEPTH), 16384},
    {A(MAXIMUM_TEXTURE2D_LAYERED_WIDTH), 32768},
    {A(MAXIMUM_TEXTURE2D_LAYERED_HEIGHT), 32768},
    {A(MAXIMUM_TEXTURE2D_LAYERED_LAYERS), 2048},
    {A(MAXIMUM_TEXTURE1D_LAYERED_WIDTH), 32768},
    {A(MAXIMUM_TEXTURE1D_LAYERED_LAYERS), 2048},
    {A(MAXIMUM_TEXTURE2D_GATHER_WIDTH), 32768},
    {A(MAXIMUM_TEXTURE2D_GATHER_HEIGHT), 32768},
    {A(MAXIMUM_TEXTURE3D_WIDTH_ALTERNATE), 8192},
    {A(MAXIMUM_TEXTURE3D_HEIGHT_ALTERNATE), 8192},
    {A(MAXIMUM_TEXTURE3D_DEPTH_ALTERNATE), 32768},
    {A(MAXIMUM_TEXTURECUBEMAP_WIDTH), 32768},
    {A(MAXIMUM_TEXTURECUBEMAP_LAYERED_WIDTH), 32768},
    {A(MAXIMUM_TEXTURECUBEMAP_LAYERED_LAYERS), 2046},
    {A(MAXIMUM_SURFACE1D_WIDTH), 32768},
    {A(MAXIMUM_SURFACE2D_WIDTH), 131072},
    {A(MAXIMUM_SURFACE2D_HEIGHT), 65536},
    {A(MAXIMUM_SURFACE3D_WIDTH), 16384},
    {A(MAXIMUM_SURFACE3D_HEIGHT), 16384},
    {A(MAXIMUM_SURFACE3D_DEPTH), 16384},
    {A(MAXIMUM_SURFACE1D_LAYERED_WIDTH), 32768},
    {A(MAXIMUM_SURFACE1D_LAYERED_LAYERS), 2048},
    {A(MAXIMUM_SURFACE2D_LAYERED_WIDTH), 32768},
    {A(MAXIMUM_SURFACE2D_LAYERED_HEIGHT), 32768},
    {A(MAXIMUM_SURFACE2D_LAYERED_LAYERS), 2048},
    {A(MAXIMUM_SURFACECUBEMAP_WIDTH), 32768},
    {A(MAXIMUM_SURFACECUBEMAP_LAYERED_WIDTH), 32768},
    {A(MAXIMUM_SURFACECUBEMAP_LAYERED_LAYERS), 2046},
    {A(MAXIMUM_TEXTURE1D_LINEAR_WIDTH), 268435456},
    {A(MAXIMUM_TEXTURE2D_LINEAR_WIDTH), 131072},
    {A(MAXIMUM_TEXTURE2D_LINEAR_HEIGHT), 65000},
    {A(MAXIMUM_TEXTURE2D_LINEAR_PITCH), 2097120},
    {A(MAXIMUM_TEXTURE2D_MIPMAPPED_WIDTH), 32768},
    {A(MAXIMUM_TEXTURE2D_MIPMAPPED_HEIGHT), 32768},
    {A(MAXIMUM_TEXTURE1D_MIPMAPPED_WIDTH), 32768},
    /* What the driver offers on Linux. */
    {A(GPU_OVERLAP), 1},
    {A(KERNEL_EXEC_TIMEOUT), 0},
    {A(INTEGRATED), 0},
    {A(CAN_MAP_HOST_MEMORY), 1},
    {A(COMPUTE_MODE), CU_COMPUTEMODE_DEFAULT},
    {A(CONCURRENT_KERNELS), 1},
    {A(PCI_DEVICE_ID), 0},
    {A(PCI_DOMAIN_ID), 0},
    {A(TCC_DRIVER), 0},
    {A(UNIFIED_ADDRESSING), 1},
    {A(STREAM_PRIORITIES_SUPPORTED), 1},
    {A(GLOBAL_L1_CACHE_SUPPORTED), 1},
    {A(LOCAL_L1_CACHE_SUPPORTED), 1},
    {A(MANAGED_MEMORY), 1},
    {A(MULTI_GPU_BOARD), 0},
    {A(MULTI_GPU_BOARD_GROUP_ID), 0},
    {A(HOST_NATIVE_ATOMIC_SUPPORTED), 0},
    {A(PAGEABLE_MEMORY_ACCESS), 0},
    {A(CONCURRENT_MANAGED_ACCESS), 1},
    {A(COMPUTE_PREEMPTION_SUPPORTED), 1},
    {A(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM), 1},
    {A(COOPERATIVE_LAUNCH), 1},
    {A(CAN_FLUSH_REMOTE_WRITES), 0},
    {A(HOST_REGISTER_SUPPORTED), 1},
    {A(PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES), 0},
    {A(DIRECT_MANAGED_MEM_ACCESS_FROM_HOST), 0},
    {A(VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED), 1},
    {A(HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED), 1},
    {A(HANDLE_TYPE_WIN32_HANDLE_SUPPORTED), 0},
    {A(HANDLE_TYPE_WIN32_KMT_HANDLE_SUPPORTED), 0},
    {A(GENERIC_COMPRESSION_SUPPORTED), 1},
    {A(GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED), 0},
    {A(SPARSE_CUDA_ARRAY_SUPPORTED), 1},
    {A(READ_ONLY_HOST_REGISTER_SUPPORTED), 1},
    {A(TIMELINE_SEMAPHORE_INTEROP_SUPPORTED), 1},
    {A(MEMORY_POOLS_SUPPORTED), 1},
    {A(GPU_DIRECT_RDMA_SUPPORTED), 0},
    {A(GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS), 0},
    {A(GPU_DIRECT_RDMA_WRITES_ORDERING), 0},
    {A(MEMPOOL_SUPPORTED_HANDLE_TYPES), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR},
    {A(DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED), 1},
    {A(CAN_USE_64_BIT_STREAM_MEM_OPS), 1},
    {A(CAN_USE_STREAM_WAIT_VALUE_NOR), 1},
    {A(DMA_BUF_SUPPORTED), 0},
    {A(IPC_EVENT_SUPPORTED), 1},
    {A(MEM_SYNC_DOMAIN_COUNT), 4},
    {A(HANDLE_TYPE_FABRIC_SUPPORTED), 0},
    /* The card has it over NVLink since Hopper; cuMulticast* is not written (docs/limitations.md), and programs that are told so
     * take their other way. */
    {A(MULTICAST_SUPPORTED), 0},
    {A(UNIFIED_FUNCTION_POINTERS), 1},
    {A(NUMA_CONFIG), CU_DEVICE_NUMA_CONFIG_NONE},
    {A(NUMA_ID), -1},
    {A(MPS_ENABLED), 0},
    {A(HOST_NUMA_ID), 0},
    {A(D3D12_CIG_SUPPORTED), 0},
    {A(VULKAN_CIG_SUPPORTED), 0},
    {A(HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED), 0},
    {A(HOST_NUMA_MEMORY_POOLS_SUPPORTED), 0},
    {A(HOST_NUMA_MULTINODE_IPC_SUPPORTED), 0},
    {A(HOST_MEMORY_POOLS_SUPPORTED), 0},
    {A(HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED), 0},
    {A(HOST_ALLOC_DMA_BUF_SUPPORTED), 0},
    {A(ONLY_PARTIAL_HOST_NATIVE_ATOMIC_SUPPORTED), 0},
    {A(CAN_TEX2D_GATHER), 1},
    /* Calls that are not written (and, but for decompression, left out of CUDA 13). */
    {A(CAN_USE_STREAM_MEM_OPS_V1), 0},
    {A(CAN_USE_64_BIT_STREAM_MEM_OPS_V1), 0},
    {A(CAN_USE_STREAM_WAIT_VALUE_NOR_V1), 0},
    {A(COOPERATIVE_MULTI_DEVICE_LAUNCH), 0},
    {A(MEM_DECOMPRESS_ALGORITHM_MASK), 0},
    {A(MEM_DECOMPRESS_MAXIMUM_LENGTH), 0},
};

static bool from_facts(const hl_device_facts *facts, uint32_t device, int attribute, int *value)
{
    switch (attribute) {
    case A(MAX_SHARED_MEMORY_PER_BLOCK): *value = facts->shared_memory_per_block_bytes; return true;
    case A(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN): *value = facts->shared_memory_per_block_optin_bytes; return true;
    case A(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR): *value = facts->shared_memory_per_multiprocessor_bytes; return true;
    case A(RESERVED_SHARED_MEMORY_PER_BLOCK): *value = facts->reserved_shared_memory_per_block_bytes; return true;
    case A(MAX_REGISTERS_PER_BLOCK): *value = facts->registers_per_block; return true;
    case A(MAX_REGISTERS_PER_MULTIPROCESSOR): *value = facts->registers_per_multiprocessor; return true;
    case A(MAX_THREADS_PER_MULTIPROCESSOR): *value = facts->max_threads_per_multiprocessor; return true;
    case A(MAX_BLOCKS_PER_MULTIPROCESSOR): *value = facts->max_blocks_per_multiprocessor; return true;
    case A(CLOCK_RATE): *value = facts->clock_khz; return true;
    case A(MEMORY_CLOCK_RATE): *value = facts->memory_clock_khz; return true;
    case A(GLOBAL_MEMORY_BUS_WIDTH): *value = facts->memory_bus_bits; return true;
    case A(L2_CACHE_SIZE): *value = facts->l2_cache_bytes; return true;
    case A(MAX_PERSISTING_L2_CACHE_SIZE): *value = facts->persisting_l2_bytes_max; return true;
    case A(MAX_ACCESS_POLICY_WINDOW_SIZE): *value = facts->compute_major >= 8 ? 134217728 : 0; return true;
    case A(MULTIPROCESSOR_COUNT): *value = facts->multiprocessors; return true;
    case A(ASYNC_ENGINE_COUNT): *value = facts->async_engines; return true;
    case A(COMPUTE_CAPABILITY_MAJOR): *value = facts->compute_major; return true;
    case A(COMPUTE_CAPABILITY_MINOR): *value = facts->compute_minor; return true;
    case A(PCI_BUS_ID): *value = facts->pci_bus_first + (int)device; return true;
    case A(ECC_ENABLED): *value = facts->ecc; return true;
    case A(SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO): *value = facts->fp32_per_fp64; return true;
    case A(CLUSTER_LAUNCH): *value = facts->compute_major >= 9; return true;
    case A(TENSOR_MAP_ACCESS_SUPPORTED): *value = facts->compute_major >= 9; return true;
    default: return false;
    }
}

HL_EXPORT bool hl_bridge_attributes_get(uint32_t device, int attribute, int *value)
{
    const hl_device_facts *facts = hl_device_facts_of(device);

    if (!facts)
        return false;
    if (from_facts(facts, device, attribute, value))
        return true;
    for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].attribute == attribute) {
            *value = limits[i].value;
            return true;
        }
    return false;
}

HL_EXPORT bool hl_bridge_attributes_peers(uint32_t device, uint32_t peer)
{
    const hl_device_facts *facts = hl_device_facts_of(device);

    return facts && device != peer && facts->copy_p2p_bytes_per_s > 0;
}

HL_EXPORT bool hl_bridge_attributes_linked(uint32_t device, uint32_t peer)
{
    return hl_bridge_attributes_peers(device, peer) && hl_device_facts_of(device)->nvlink_links > 0;
}

HL_EXPORT bool hl_bridge_attributes_p2p(uint32_t device, uint32_t peer, int attribute, int *value)
{
    switch (attribute) {
    case CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED: *value = hl_bridge_attributes_peers(device, peer); return true;
    /* 0 is the best link of the host; the devices of a run are all alike. */
    case CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK: *value = 0; return true;
    case CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED:
    case CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED:
        *value = hl_bridge_attributes_linked(device, peer);
        return true;
    default: return false;
    }
}

HL_EXPORT void hl_bridge_attributes_uuid(uint32_t device, uint8_t uuid[16])
{
    const hl_device_facts *facts = hl_device_facts_of(device);
    uint64_t hash = UINT64_C(1469598103934665603) + device;

    for (int i = 0; i < 16; i++) {
        for (const char *at = facts ? facts->profile : ""; *at; at++)
            hash = (hash ^ (uint8_t)*at) * UINT64_C(1099511628211);
        hash = (hash ^ (uint64_t)i) * UINT64_C(1099511628211);
        uuid[i] = (uint8_t)(hash >> 32);
    }
}

HL_EXPORT void hl_bridge_attributes_uuid_text(uint32_t device, char text[48])
{
    uint8_t u[16];

    hl_bridge_attributes_uuid(device, u);
    snprintf(text, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

HL_EXPORT void hl_bridge_attributes_pci_text(uint32_t device, char text[16])
{
    const hl_device_facts *facts = hl_device_facts_of(device);

    snprintf(text, 16, "0000:%02X:00.0", facts ? (unsigned)facts->pci_bus_first + device : device);
}
