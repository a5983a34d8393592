/* What can be read of a device image without running it: its kernels, their registers and memory, its globals. */
#ifndef HL_BRIDGE_CUBIN_H
#define HL_BRIDGE_CUBIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hl_bridge_cubin_kernel {
    const char *name; /* inside the image */
    int registers;
    int threads_max;       /* 0: no bound in the image */
    uint32_t shared_bytes; /* static */
    uint32_t local_bytes;  /* stack frame of a thread */
} hl_bridge_cubin_kernel;

typedef enum hl_bridge_image_format {
    HL_IMAGE_UNKNOWN,
    HL_IMAGE_CUBIN,
    HL_IMAGE_FATBIN,
    HL_IMAGE_PTX
} hl_bridge_image_format;

hl_bridge_image_format hl_bridge_cubin_format(const void *image);
/* Bytes of a cubin (ELF) or fatbin, from its own headers; 0 when it is neither. */
size_t hl_bridge_cubin_size(const void *image);
/* Calls found() for every kernel of a cubin. False: not a cubin that can be read. */
bool hl_bridge_cubin_kernels(const void *image, void (*found)(const hl_bridge_cubin_kernel *kernel, void *user),
                             void *user);
/* Size of a global variable of a cubin. */
bool hl_bridge_cubin_global(const void *image, const char *name, size_t *size_bytes);

#endif
