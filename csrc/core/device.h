/* Facts of the virtual devices of a run, published once by the launcher from the device profiles (YAML) into the
 * shared GPU segment; every process reads the same copy. Facts only: anything computed belongs to its user. */
#ifndef HL_CORE_DEVICE_H
#define HL_CORE_DEVICE_H

#include <stdint.h>

#define HL_DEVICES_MAX 16

typedef struct hl_device_facts {
    char name[96];                 /* as cudaDeviceProp.name and nvmlDeviceGetName give it */
    char profile[64];              /* the profile's own name, e.g. h100-sxm-80gb */
    int64_t total_memory_bytes;    /* as cudaMemGetInfo's total */
    int64_t context_bytes;         /* used by a fresh context */
    int64_t nvml_total_bytes;      /* as nvmlDeviceGetMemoryInfo's total */
    /* What the driver and cuBLAS take beside a fresh context (ledger_driver.c). */
    int64_t stream_bytes;
    int64_t first_kernel_bytes;    /* once, at the first kernel of a process */
    int64_t kernel_code_bytes;     /* for each kernel, when it is first launched */
    int64_t cublas_bytes;          /* once, at the first product of a process */
    int64_t graph_bytes, graph_node_bytes; /* for each instantiated graph, and for each of its nodes */
    int32_t compute_major, compute_minor;
    int32_t multiprocessors;
    int32_t l2_cache_bytes;
    int32_t shared_memory_per_block_bytes;
    int32_t shared_memory_per_block_optin_bytes;
    int32_t shared_memory_per_multiprocessor_bytes;
    int32_t reserved_shared_memory_per_block_bytes;
    int32_t registers_per_multiprocessor;
    int32_t registers_per_block;
    int32_t max_threads_per_multiprocessor;
    int32_t max_blocks_per_multiprocessor;
    int32_t clock_khz, memory_clock_khz, memory_bus_bits;
    int32_t async_engines;
    int32_t persisting_l2_bytes_max;
    int32_t pci_bus_first;         /* device i sits on bus pci_bus_first + i */
    int32_t ecc;                   /* 1: error correction is on */
    int32_t fp32_per_fp64;         /* single-precision operations in the time of one in double precision */
    int32_t nvlink_links;          /* links to the switch that joins the devices of a host; 0: PCIe alone */
    int32_t nvlink_version;        /* as nvmlDeviceGetNvLinkVersion; 0 without links */
    int64_t copy_h2d_bytes_per_s, copy_d2h_bytes_per_s, copy_d2d_bytes_per_s; /* achieved, not peak */
    int64_t copy_p2p_bytes_per_s;  /* to another device, one way; 0: devices cannot reach each other's memory */
    int64_t copy_latency_ns;
    int64_t launch_gap_ns;         /* device time between two back-to-back kernels of one stream */
    int64_t graph_gap_ns;          /* the same between two nodes of one graph */
    int64_t graph_launch_ns;       /* device time before the first node of a launched graph */
    int32_t driver_version;        /* as cuDriverGetVersion, e.g. 13000 */
    char driver_text[32];          /* as nvmlSystemGetDriverVersion */
} hl_device_facts;

/* Number of virtual devices of the run; 0 outside a run. */
uint32_t hl_device_count(void);

/* Facts of device ordinal (HYPERLAPSE ordinal, before CUDA_VISIBLE_DEVICES); NULL when there is none. */
const hl_device_facts *hl_device_facts_of(uint32_t device);

/* Launcher only: creates the segment file with these devices. Returns 0 or -errno. */
int hl_device_segment_create(const char *run_dir, const hl_device_facts *facts, uint32_t count);

#endif
