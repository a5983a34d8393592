/* A communicator: which ranks, and how many operations each has put. */
#ifndef HL_BRIDGE_NCCL_COMM_H
#define HL_BRIDGE_NCCL_COMM_H

#include <stdint.h>

#include "bridge/nccl/nccl_abi.h"
#include "bridge/stub.h"

#define HL_LIBRARY "libnccl.so.2"

enum { HL_RANKS_MAX = 1024 };

struct ncclComm {
    uint32_t live;
    int rank, ranks, ordinal;
    uint64_t group;            /* the same on every rank, unique in the run */
    uint64_t sequence;         /* collectives put so far */
    uint64_t splits;           /* communicators made from this one so far */
    uint64_t *sent, *received; /* by peer: point-to-point operations so far */
    int user_ops;
};

/* ncclInvalidArgument for what is no communicator of this process. */
ncclResult_t hl_bridge_comm_check(ncclComm_t comm);

#endif
