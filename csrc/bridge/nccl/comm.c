/* Communicators: made, split, asked, ended. */
#include "bridge/nccl/comm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bridge/errors.h"
#include "bridge/memory.h"
#include "bridge/nccl/board.h"
#include "bridge/slab.h"
#include "core/clock.h"

static hl_bridge_slab comms = HL_SLAB(struct ncclComm, 1u << 14);

ncclResult_t hl_bridge_comm_check(ncclComm_t comm)
{
    return hl_bridge_slab_owns(&comms, comm) ? ncclSuccess : ncclInvalidArgument;
}

static uint64_t hash(const void *bytes, size_t count, uint64_t start)
{
    const unsigned char *at = bytes;
    uint64_t value = start ? start : UINT64_C(14695981039346656037);

    while (count--)
        value = (value ^ *at++) * UINT64_C(1099511628211);
    return value ? value : 1;
}

HL_API ncclResult_t ncclGetVersion(int *version)
{
    if (!version)
        return ncclInvalidArgument;
    *version = HL_NCCL_VERSION;
    return ncclSuccess;
}

HL_API const char *ncclGetErrorString(ncclResult_t result)
{
    const hl_bridge_error_text *row = hl_bridge_error(HL_ERRORS_NCCL, (int)result);

    return row ? row->text : "unknown result code";
}

HL_API const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm; /* text about the last error of a link: links do not fail here */
    return "";
}

/* Unique in the run: process, counter, real time. Its bytes never reach a result. */
HL_API ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static _Atomic uint64_t counter;

    if (!id)
        return ncclInvalidArgument;
    uint64_t parts[3] = {(uint64_t)getpid(), atomic_fetch_add(&counter, 1), (uint64_t)hl_clock_real_ns()};
    memset(id, 0, sizeof *id);
    memcpy(id->internal, parts, sizeof parts);
    return ncclSuccess;
}

static ncclResult_t make(ncclComm_t *out, int ranks, int rank, uint64_t group)
{
    ncclComm_t comm;

    comm = hl_bridge_slab_take(&comms);
    if (!comm)
        return ncclInternalError;
    comm->rank = rank;
    comm->ranks = ranks;
    comm->group = group;
    comm->ordinal = hl_bridge_context_ordinal();
    comm->sent = calloc((size_t)ranks * 2, sizeof *comm->sent);
    if (!comm->sent) {
        hl_bridge_slab_give(&comms, comm);
        return ncclSystemError;
    }
    comm->received = comm->sent + ranks;
    *out = comm;
    return ncclSuccess;
}

static ncclResult_t initialise(ncclComm_t *out, int ranks, const ncclUniqueId *id, int rank)
{
    hl_bridge_board_entry entries[HL_RANKS_MAX];
    hl_bridge_context *context;
    uint64_t group;

    if (!out || ranks < 1 || ranks > HL_RANKS_MAX || rank < 0 || rank >= ranks)
        return ncclInvalidArgument;
    if (hl_bridge_context_use(&context))
        return ncclUnhandledCudaError;
    group = hash(id->internal, sizeof id->internal, 0);
    if (!hl_bridge_board_meet(group, rank, ranks, (hl_bridge_board_entry){0, rank}, entries))
        return ncclSystemError;
    return make(out, ranks, rank, group);
}

HL_API ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank)
{
    return initialise(comm, ranks, &id, rank);
}

HL_API ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    (void)config;
    return initialise(comm, ranks, &id, rank);
}

HL_API ncclResult_t ncclCommInitRankScalable(ncclComm_t *comm, int ranks, int rank, int ids, ncclUniqueId *id,
                                             ncclConfig_t *config)
{
    (void)config;
    return ids > 0 && id ? initialise(comm, ranks, id, rank) : ncclInvalidArgument;
}

/* Ranks of one colour, in the order of (key, old rank). */
HL_API ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out, ncclConfig_t *config)
{
    hl_bridge_board_entry entries[HL_RANKS_MAX];
    int ranks = 0, rank = 0;
    uint64_t parts[2];

    (void)config;
    if (hl_bridge_comm_check(comm) || !out)
        return ncclInvalidArgument;
    parts[0] = ++comm->splits;
    parts[1] = UINT64_MAX;
    uint64_t meeting = hash(parts, sizeof parts, comm->group);
    if (!hl_bridge_board_meet(meeting, comm->rank, comm->ranks, (hl_bridge_board_entry){color, key}, entries))
        return ncclSystemError;
    *out = NULL;
    if (color == NCCL_SPLIT_NOCOLOR)
        return ncclSuccess;
    for (int i = 0; i < comm->ranks; i++) {
        if (entries[i].color != color)
            continue;
        ranks++;
        rank += entries[i].key < key || (entries[i].key == key && i < comm->rank);
    }
    parts[1] = (uint64_t)(uint32_t)color;
    return make(out, ranks, rank, hash(parts, sizeof parts, comm->group));
}

HL_API ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (!comm)
        return ncclSuccess;
    if (hl_bridge_comm_check(comm))
        return ncclInvalidArgument;
    free(comm->sent);
    hl_bridge_slab_give(&comms, comm);
    return ncclSuccess;
}

HL_API ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }

/* Flushes what a communicator has begun; operations are on their streams already. */
HL_API ncclResult_t ncclCommFinalize(ncclComm_t comm) { return hl_bridge_comm_check(comm); }

static ncclResult_t answer(ncclComm_t comm, int *out, int value)
{
    if (!out || hl_bridge_comm_check(comm))
        return ncclInvalidArgument;
    *out = value;
    return ncclSuccess;
}

HL_API ncclResult_t ncclCommCount(const ncclComm_t comm, int *count)
{
    return answer(comm, count, hl_bridge_comm_check(comm) ? 0 : comm->ranks);
}

HL_API ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank)
{
    return answer(comm, rank, hl_bridge_comm_check(comm) ? 0 : comm->rank);
}

HL_API ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *ordinal)
{
    return answer(comm, ordinal, hl_bridge_comm_check(comm) ? 0 : comm->ordinal);
}

/* Links do not fail here. */
HL_API ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    return answer(comm, (int *)error, ncclSuccess);
}

/* Registration lets a real library map a buffer for its peers; bytes do not travel here. The handle is the buffer. */
HL_API ncclResult_t ncclCommRegister(const ncclComm_t comm, void *buffer, size_t size, void **handle)
{
    if (hl_bridge_comm_check(comm) || !buffer || !size || !handle)
        return ncclInvalidArgument;
    *handle = buffer;
    return ncclSuccess;
}

HL_API ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle)
{
    return hl_bridge_comm_check(comm) || !handle ? ncclInvalidArgument : ncclSuccess;
}

HL_API ncclResult_t ncclMemAlloc(void **pointer, size_t size_bytes)
{
    hl_bridge_context *context;

    if (hl_bridge_context_use(&context))
        return ncclUnhandledCudaError;
    return hl_bridge_memory_allocate(HL_MEMORY_DEVICE, size_bytes, pointer) ? ncclUnhandledCudaError : ncclSuccess;
}

HL_API ncclResult_t ncclMemFree(void *pointer)
{
    return hl_bridge_memory_free(pointer, false) ? ncclUnhandledCudaError : ncclSuccess;
}

HL_API ncclResult_t ncclRedOpCreatePreMulSum(int *op, void *scalar, int type, int residence, ncclComm_t comm)
{
    (void)scalar, (void)residence;
    if (!op || hl_bridge_comm_check(comm) || type < 0 || type >= NCCL_DATA_TYPES)
        return ncclInvalidArgument;
    *op = NCCL_BUILT_IN_OPS + comm->user_ops++;
    return ncclSuccess;
}

HL_API ncclResult_t ncclRedOpDestroy(int op, ncclComm_t comm)
{
    return hl_bridge_comm_check(comm) || op < NCCL_BUILT_IN_OPS ? ncclInvalidArgument : ncclSuccess;
}
