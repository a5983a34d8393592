/* NCCL's C interface, as nccl.h 2.28 has it (checked against it by tests/bridge). */
#ifndef HL_BRIDGE_NCCL_ABI_H
#define HL_BRIDGE_NCCL_ABI_H

#include <stddef.h>

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5
} ncclResult_t;

typedef struct {
    char internal[128];
} ncclUniqueId;

typedef struct ncclComm *ncclComm_t;
typedef struct ncclConfig ncclConfig_t; /* never looked into: it shapes how a real library uses its links */

enum { NCCL_DATA_TYPES = 12, NCCL_BUILT_IN_OPS = 5, NCCL_SPLIT_NOCOLOR = -1, HL_NCCL_VERSION = 22809 };

#endif
