/* Device memory: exact counts, cheap pages.
 *
 * Device memory is reserved address space with lazily backed pages, so that what an engine writes it can read back.
 * The count is exact and shared by all processes of the run, per device, so that the engine's own memory profiling
 * finds what it would find on the card and out-of-memory comes where it comes there. */
#ifndef HL_CORE_LEDGER_H
#define HL_CORE_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum hl_memory_kind {
    HL_MEMORY_NONE = 0,
    HL_MEMORY_DEVICE,
    HL_MEMORY_PINNED,      /* host memory the driver allocated */
    HL_MEMORY_REGISTERED,  /* host memory the program registered */
    HL_MEMORY_MANAGED,
    HL_MEMORY_RESERVED,    /* address range without physical memory (cuMemAddressReserve) */
    HL_MEMORY_IMPORTED     /* device memory of another process, opened here; counted there */
} hl_memory_kind;

typedef struct hl_memory {
    hl_memory_kind kind;
    uint32_t device;
    uintptr_t base;
    size_t size_bytes;     /* as asked for */
    size_t charged_bytes;  /* as counted: rounded up to the driver's granule of 2 MiB on devices */
    uint64_t identity;     /* the same in every process that has it, see shared_memory.h; 0: never given away */
    uint32_t opened;       /* IMPORTED: how often */
} hl_memory;

/* 0, -ENOMEM (does not fit: nothing is changed), -EINVAL. Pinned memory is charged to no device. */
int hl_ledger_allocate(uint32_t device, hl_memory_kind kind, size_t size_bytes, void **pointer);
int hl_ledger_register(void *pointer, size_t size_bytes);
int hl_ledger_free(void *pointer);                     /* 0 or -EINVAL: not a base pointer of ours */
bool hl_ledger_find(const void *pointer, hl_memory *memory);

/* Makes an allocation on a device known to other processes: from now on it has an identity, which they open. Opening it
 * again gives the same pointer. 0, -EINVAL (no device memory of this process), -ENOENT (freed by its owner), -errno. */
int hl_ledger_share(const void *pointer, hl_memory *memory);
int hl_ledger_open(uint64_t identity, size_t size_bytes, void **pointer);
int hl_ledger_close(void *pointer);

/* Physical memory without addresses (cuMemCreate), charged; and context or module memory. -ENOMEM when it does not fit. */
int hl_ledger_charge(uint32_t device, size_t size_bytes);
void hl_ledger_discharge(uint32_t device, size_t size_bytes);

/* What the driver and cuBLAS take for themselves, in this process: each part's bytes are the device profile's.
 * 0, -ENOMEM (does not fit: nothing is changed), -EINVAL (no such device). */
typedef enum hl_ledger_driver_part {
    HL_DRIVER_STREAM = 1,
    HL_DRIVER_KERNEL,    /* a kernel launched for the first time: its code is loaded */
    HL_DRIVER_PRODUCT,   /* a product of cuBLAS; the first one counts */
    HL_DRIVER_GRAPH,     /* instantiated */
    HL_DRIVER_GRAPH_NODE /* of an instantiated graph */
} hl_ledger_driver_part;
int hl_ledger_driver_take(uint32_t device, hl_ledger_driver_part part, int64_t count);
/* Streams, graphs and their nodes; see ledger_driver.c for what that gives back. */
void hl_ledger_driver_give(uint32_t device, hl_ledger_driver_part part, int64_t count);

/* Makes sure that this process's context on the device is charged (device facts: context_bytes). */
int hl_ledger_context(uint32_t device);

void hl_ledger_info(uint32_t device, size_t *free_bytes, size_t *total_bytes);
size_t hl_ledger_process_bytes(uint32_t device);

#endif
