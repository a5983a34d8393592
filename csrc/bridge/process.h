/* What a process has of CUDA: initialised or not, which devices it sees, which context is current on each thread.
 *
 * Device numbers: `ordinal` is the program's (after CUDA_VISIBLE_DEVICES), `device` the run's. */
#ifndef HL_BRIDGE_PROCESS_H
#define HL_BRIDGE_PROCESS_H

#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/device.h"

typedef struct hl_bridge_context {
    uint32_t live;
    uint32_t device;
    int ordinal;
    bool primary;
    int32_t retained; /* primary: users; 0 is inactive */
    unsigned flags;
    uint64_t id;
} hl_bridge_context;

/* Ends the process with advice when it runs outside a run. CUDA_ERROR_NOT_INITIALIZED in a child forked after it. */
CUresult hl_bridge_process_init(void);
/* CUDA_SUCCESS when hl_bridge_process_init has succeeded here. */
CUresult hl_bridge_process_ready(void);

int hl_bridge_process_device_count(void);
CUresult hl_bridge_process_device(int ordinal, uint32_t *device);
/* NULL: no such ordinal. */
const hl_device_facts *hl_bridge_process_facts(int ordinal);
int hl_bridge_process_ordinal(uint32_t device); /* -1: not visible */

/* The context of a device that the runtime API uses. Activates it (its memory is charged): CUDA_ERROR_OUT_OF_MEMORY. */
CUresult hl_bridge_context_retain(int ordinal, hl_bridge_context **context);
CUresult hl_bridge_context_release(int ordinal);
hl_bridge_context *hl_bridge_context_primary(int ordinal);
bool hl_bridge_context_valid(const hl_bridge_context *context);

hl_bridge_context *hl_bridge_context_current(void); /* NULL: none */
void hl_bridge_context_set(hl_bridge_context *context);
CUresult hl_bridge_context_push(hl_bridge_context *context);
CUresult hl_bridge_context_pop(hl_bridge_context **context);

/* The driver's rule: no current context is CUDA_ERROR_INVALID_CONTEXT. */
CUresult hl_bridge_context_need(hl_bridge_context **context);
/* The runtime's rule: initialise and take the primary context of the thread's device (0 at first). */
CUresult hl_bridge_context_use(hl_bridge_context **context);
/* The thread's device without making a context. */
int hl_bridge_context_ordinal(void);

#endif
