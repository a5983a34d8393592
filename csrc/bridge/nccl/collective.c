/* Collectives and point-to-point operations.
 *
 * A collective is a meeting of all ranks on the virtual timeline. Its size is that of the whole message, as nccl-tests
 * counts it: for all-gather and reduce-scatter the large buffer. Bytes are not exchanged, but for a communicator of one
 * rank, where an operation is a copy.
 *
 * Sends and receives between two ranks meet in pairs: the n-th send of one with the n-th receive of the other. Those of
 * one group are put in an order that is the same on all ranks, or two ranks that send to each other would wait for each
 * other for ever; a real group runs them at once (docs/limitations.md). */
#include <stdbool.h>
#include <stdlib.h>

#include "bridge/memory.h"
#include "bridge/nccl/comm.h"

enum operation { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE, ALL_TO_ALL, GATHER, SCATTER, SEND_RECEIVE };

static const unsigned type_bytes[NCCL_DATA_TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};

#define TYPES(op)                                                                                                      \
    {op ",i8",  op ",u8",  op ",i32", op ",u32",  op ",i64",  op ",u64",                                               \
     op ",f16", op ",f32", op ",f64", op ",bf16", op ",e4m3", op ",e5m2"}

static const char *const names[][NCCL_DATA_TYPES] = {
    [ALL_REDUCE] = TYPES("all_reduce"), [ALL_GATHER] = TYPES("all_gather"), [REDUCE_SCATTER] = TYPES("reduce_scatter"),
    [BROADCAST] = TYPES("broadcast"),   [REDUCE] = TYPES("reduce"),         [ALL_TO_ALL] = TYPES("all_to_all"),
    [GATHER] = TYPES("gather"),         [SCATTER] = TYPES("scatter"),       [SEND_RECEIVE] = TYPES("send_receive"),
};

struct pending { /* a send or receive inside a group */
    ncclComm_t comm;
    hl_bridge_stream *stream;
    int from, to, type;
    size_t bytes;
    uint64_t number; /* of its pair of ranks and direction */
};

static __thread struct {
    int depth;
    struct pending *list;
    size_t count, room;
} group;

static ncclResult_t stream_of(ncclComm_t comm, CUstream handle, hl_bridge_stream **stream)
{
    hl_bridge_context *context;

    if (hl_bridge_comm_check(comm))
        return ncclInvalidArgument;
    if (hl_bridge_context_use(&context) || hl_bridge_stream_of(handle, stream))
        return ncclUnhandledCudaError;
    return ncclSuccess;
}

/* blocks: how many of `count` elements the whole message has. */
static ncclResult_t collective(enum operation operation, const void *send, void *receive, size_t count, size_t blocks,
                               int type, ncclComm_t comm, CUstream handle)
{
    hl_bridge_stream *stream;
    ncclResult_t result = stream_of(comm, handle, &stream);

    if (result)
        return result;
    if (type < 0 || type >= NCCL_DATA_TYPES)
        return ncclInvalidArgument;
    size_t bytes = count * type_bytes[type];
    if (comm->ranks == 1) {
        if (send && receive && send != receive && bytes &&
            hl_bridge_memory_copy_bytes(receive, send, bytes, HL_ANY, stream, false))
            return ncclUnhandledCudaError;
        return ncclSuccess;
    }
    hl_launch launch = {.kind = HL_LAUNCH_COLLECTIVE,
                        .device = stream->device,
                        .name = names[operation][type],
                        .arg = {(int64_t)(bytes * blocks), comm->ranks}};
    if (hl_bridge_graph_work(stream))
        return ncclUnhandledCudaError;
    hl_timeline_rendezvous(stream->line, comm->group, comm->sequence++, (uint32_t)comm->ranks, &launch);
    return ncclSuccess;
}

#define RANKS(comm) (hl_bridge_comm_check(comm) ? 1 : (size_t)(comm)->ranks)

HL_API ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, ncclComm_t comm,
                                  CUstream stream)
{
    (void)op;
    return collective(ALL_REDUCE, send, receive, count, 1, type, comm, stream);
}

HL_API ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, int type, ncclComm_t comm,
                                  CUstream stream)
{
    return collective(ALL_GATHER, send, receive, count, RANKS(comm), type, comm, stream);
}

HL_API ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, ncclComm_t comm,
                                      CUstream stream)
{
    (void)op;
    return collective(REDUCE_SCATTER, send, receive, count, RANKS(comm), type, comm, stream);
}

HL_API ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, ncclComm_t comm,
                                  CUstream stream)
{
    (void)root;
    return collective(BROADCAST, send, receive, count, 1, type, comm, stream);
}

HL_API ncclResult_t ncclBcast(void *buffer, size_t count, int type, int root, ncclComm_t comm, CUstream stream)
{
    (void)root;
    return collective(BROADCAST, buffer, buffer, count, 1, type, comm, stream);
}

HL_API ncclResult_t ncclReduce(const void *send, void *receive, size_t count, int type, int op, int root,
                               ncclComm_t comm, CUstream stream)
{
    (void)op, (void)root;
    return collective(REDUCE, send, receive, count, 1, type, comm, stream);
}

HL_API ncclResult_t ncclAlltoAll(const void *send, void *receive, size_t count, int type, ncclComm_t comm,
                                 CUstream stream)
{
    return collective(ALL_TO_ALL, send, receive, count, RANKS(comm), type, comm, stream);
}

HL_API ncclResult_t ncclGather(const void *send, void *receive, size_t count, int type, int root, ncclComm_t comm,
                               CUstream stream)
{
    (void)root;
    return collective(GATHER, send, receive, count, RANKS(comm), type, comm, stream);
}

HL_API ncclResult_t ncclScatter(const void *send, void *receive, size_t count, int type, int root, ncclComm_t comm,
                                CUstream stream)
{
    (void)root;
    return collective(SCATTER, send, receive, count, RANKS(comm), type, comm, stream);
}

/* --- point to point --- */

static uint64_t pair_group(const struct pending *one)
{
    uint64_t value = one->comm->group;

    value = (value ^ (uint64_t)(one->from + 1)) * UINT64_C(1099511628211);
    value = (value ^ (uint64_t)(one->to + 1)) * UINT64_C(1099511628211);
    return value ? value : 1;
}

static ncclResult_t put(const struct pending *one)
{
    hl_launch launch = {.kind = HL_LAUNCH_COLLECTIVE,
                        .device = one->stream->device,
                        .name = names[SEND_RECEIVE][one->type],
                        .arg = {(int64_t)one->bytes, 2}};

    if (one->from == one->to)
        return ncclSuccess;
    if (hl_bridge_graph_work(one->stream))
        return ncclUnhandledCudaError;
    hl_timeline_rendezvous(one->stream->line, pair_group(one), one->number, 2, &launch);
    return ncclSuccess;
}

static int order(const void *left_pointer, const void *right_pointer)
{
    const struct pending *left = left_pointer, *right = right_pointer;
    int left_low = left->from < left->to ? left->from : left->to, left_high = left->from + left->to - left_low;
    int right_low = right->from < right->to ? right->from : right->to, right_high = right->from + right->to - right_low;

    if (left->comm->group != right->comm->group)
        return left->comm->group < right->comm->group ? -1 : 1;
    if (left_low != right_low)
        return left_low - right_low;
    if (left_high != right_high)
        return left_high - right_high;
    if (left->from != right->from)
        return left->from - right->from;
    return left->number < right->number ? -1 : left->number > right->number;
}

static ncclResult_t point_to_point(bool send, size_t count, int type, int peer, ncclComm_t comm, CUstream handle)
{
    hl_bridge_stream *stream;
    ncclResult_t result = stream_of(comm, handle, &stream);

    if (result)
        return result;
    if (type < 0 || type >= NCCL_DATA_TYPES || peer < 0 || peer >= comm->ranks)
        return ncclInvalidArgument;
    struct pending one = {.comm = comm,
                          .stream = stream,
                          .from = send ? comm->rank : peer,
                          .to = send ? peer : comm->rank,
                          .type = type,
                          .bytes = count * type_bytes[type],
                          .number = send ? comm->sent[peer]++ : comm->received[peer]++};
    if (!group.depth)
        return put(&one);
    if (group.count == group.room) {
        size_t room = group.room ? group.room * 2 : 16;
        struct pending *grown = realloc(group.list, room * sizeof *grown);
        if (!grown)
            return ncclSystemError;
        group.list = grown;
        group.room = room;
    }
    group.list[group.count++] = one;
    return ncclSuccess;
}

HL_API ncclResult_t ncclSend(const void *buffer, size_t count, int type, int peer, ncclComm_t comm, CUstream stream)
{
    (void)buffer;
    return point_to_point(true, count, type, peer, comm, stream);
}

HL_API ncclResult_t ncclRecv(void *buffer, size_t count, int type, int peer, ncclComm_t comm, CUstream stream)
{
    (void)buffer;
    return point_to_point(false, count, type, peer, comm, stream);
}

HL_API ncclResult_t ncclGroupStart(void)
{
    group.depth++;
    return ncclSuccess;
}

HL_API ncclResult_t ncclGroupEnd(void)
{
    ncclResult_t result = ncclSuccess;

    if (!group.depth)
        return ncclInvalidUsage;
    if (--group.depth)
        return ncclSuccess;
    qsort(group.list, group.count, sizeof *group.list, order);
    for (size_t i = 0; i < group.count && !result; i++)
        result = put(&group.list[i]);
    group.count = 0;
    return result;
}
