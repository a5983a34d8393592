/* Stream capture and graphs; see graph.h.
 *
 * A graph that was not captured (nodes added one by one) is not supported: serving code captures. An instantiated graph
 * shares its recipe with the graph it came from, so instantiating copies nothing. */
#include "bridge/graph.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bridge/forks.h"
#include "bridge/slab.h"
#include "core/export.h"
#include "core/ledger.h"
#include "core/sys.h"

struct recipe {
    _Atomic uint32_t users;
    hl_graph *launches; /* NULL: empty */
    hl_bridge_effect *effects;
    uint32_t effects_count, effects_room;
};

struct graph { /* a CUgraph or a CUgraphExec */
    uint32_t live;
    struct recipe *recipe;
    uint32_t device, nodes; /* of a CUgraphExec: what its memory is charged for */
};

struct capture {
    uint64_t id; /* 0: free */
    hl_bridge_stream *origin;
    CUstreamCaptureMode mode;
    int32_t tid;
    bool lost;
    struct graph *graph;
    hl_bridge_forks *forks;
};

enum { CAPTURES = 64, SMALL_BYTES = 64 << 10 };

static hl_bridge_slab graphs = HL_SLAB(struct graph, 1u << 20);
static hl_bridge_slab execs = HL_SLAB(struct graph, 1u << 20);
static struct capture captures[CAPTURES];
static _Atomic int capturing; /* captures in progress: the common case is none */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static struct recipe *recipe_new(void)
{
    struct recipe *recipe = calloc(1, sizeof *recipe);

    if (recipe)
        recipe->users = 1;
    return recipe;
}

static void recipe_drop(struct recipe *recipe)
{
    if (!recipe || atomic_fetch_sub(&recipe->users, 1) != 1)
        return;
    if (recipe->launches)
        hl_graph_release(recipe->launches);
    free(recipe->effects);
    free(recipe);
}

static void graph_drop(struct graph *graph)
{
    recipe_drop(graph->recipe);
    hl_bridge_slab_give(&graphs, graph);
}

static struct capture *capture_with(uint64_t id)
{
    for (int i = 0; id && i < CAPTURES; i++)
        if (captures[i].id == id)
            return &captures[i];
    return NULL;
}

/* The capture that a stream takes part in, by the core's capture id; NULL: none. Call with the lock held. */
static struct capture *capture_of(const hl_bridge_stream *stream)
{
    return capture_with(hl_graph_capture_id(stream->line));
}

/* The legacy stream may not be used at all while a stream that it is ordered with captures. Call with the lock held. */
static CUresult implicit(const hl_bridge_stream *stream, bool use)
{
    CUresult result = CUDA_SUCCESS;

    if (!hl_bridge_stream_legacy(stream))
        return result;
    for (int i = 0; i < CAPTURES; i++)
        if (captures[i].id && hl_bridge_forks_blocking(captures[i].forks, stream->device)) {
            captures[i].lost |= use;
            result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    return result;
}

static CUresult use(hl_bridge_stream *stream, bool work)
{
    struct capture *capture;
    CUresult result;

    if (!capturing)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    result = implicit(stream, true);
    capture = result || !work ? NULL : capture_of(stream);
    if (capture && !hl_bridge_forks_work(capture->forks, stream))
        capture->lost = true;
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_graph_use(hl_bridge_stream *stream) { return use(stream, false); }

HL_EXPORT CUresult hl_bridge_graph_work(hl_bridge_stream *stream) { return use(stream, true); }

HL_EXPORT void hl_bridge_graph_record(hl_bridge_stream *stream, hl_bridge_event *event)
{
    event->capture_id = capturing ? hl_graph_capture_id(stream->line) : 0;
    if (!event->capture_id)
        return;
    pthread_mutex_lock(&lock);
    struct capture *capture = capture_with(event->capture_id);
    if (capture && !hl_bridge_forks_record(capture->forks, stream, &event->capture_mark))
        capture->lost = true;
    pthread_mutex_unlock(&lock);
}

HL_EXPORT CUresult hl_bridge_graph_wait(hl_bridge_stream *stream, const hl_bridge_event *event)
{
    CUresult result = CUDA_SUCCESS;

    if (!capturing)
        return result;
    pthread_mutex_lock(&lock);
    struct capture *own = capture_of(stream), *other = capture_with(event->capture_id);
    if (own && own != other)
        result = event->capture_id ? CUDA_ERROR_STREAM_CAPTURE_MERGE : CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    else if (other && hl_bridge_stream_legacy(stream))
        result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (own && result)
        own->lost = true;
    else if (other && (result || !hl_bridge_forks_wait(other->forks, stream, event->capture_mark)))
        other->lost = true;
    pthread_mutex_unlock(&lock);
    return result;
}

/* Can the bytes be read? Asked of the kernel, page by page, by a call that looks at its argument before it refuses the rest
 * (rt_sigprocmask with a `how` that does not exist: EINVAL, or EFAULT for a bad address); 0.2 us each. */
static bool readable(const char *at, size_t bytes)
{
    enum { PAGE = 4096, MASK_BYTES = 8 };
    uintptr_t end;

    if (__builtin_add_overflow((uintptr_t)at, bytes, &end))
        return false;
    for (uintptr_t here = (uintptr_t)at; here < end; here = (here / PAGE + 1) * PAGE)
        if (hl_sys_call6(SYS_rt_sigprocmask, -1, (long)(here & ~(uintptr_t)(MASK_BYTES - 1)), 0, MASK_BYTES, 0, 0) == -EFAULT)
            return false;
    return true;
}

/* Copies rows through the kernel, which answers a bad address with an error: pageable memory is the program's, and a stale
 * pointer must not crash here (3 us a call, benchmarks/launch_cost.py on a 2-core cloud machine). False: a bad address. */
static bool copy_checked(const hl_bridge_effect *effect)
{
    enum { PIECES = 64, PIECE_BYTES = 16 << 20 }; /* together 1 GiB: one call moves less than 2 GiB */
    struct iovec to[PIECES], from[PIECES];
    size_t row = 0, done = 0; /* whole rows, and bytes of the next one */

    while (row < effect->height) {
        size_t bytes = 0;
        int count = 0;
        for (; count < PIECES && row < effect->height; count++) {
            size_t piece = effect->width - done < PIECE_BYTES ? effect->width - done : PIECE_BYTES;
            to[count] = (struct iovec){(char *)effect->target + row * effect->target_pitch + done, piece};
            from[count] = (struct iovec){(char *)effect->source + row * effect->source_pitch + done, piece};
            bytes += piece;
            done += piece;
            if (done == effect->width)
                done = 0, row++;
        }
        ssize_t copied = process_vm_readv(getpid(), to, (unsigned long)count, from, (unsigned long)count, 0);
        if (copied < 0 && (errno == EPERM || errno == ENOSYS)) { /* a container that forbids the call */
            for (int i = 0; i < count; i++)
                memmove(to[i].iov_base, from[i].iov_base, to[i].iov_len);
        } else if (copied != (ssize_t)bytes) {
            return false;
        }
    }
    return true;
}

HL_EXPORT bool hl_bridge_effect_apply(const hl_bridge_effect *effect)
{
    char *target = effect->target;
    const char *source = effect->source;

    /* Small copies from pageable memory are frequent, those into it wait for the stream anyway. */
    if (effect->target_pageable || (effect->source_pageable && (effect->height > 1 || effect->width > SMALL_BYTES)))
        return copy_checked(effect);
    if (effect->source_pageable && !readable(source, effect->width))
        return false;
    for (size_t row = 0; row < effect->height; row++, target += effect->target_pitch) {
        if (source) {
            memmove(target, source, effect->width);
            source += effect->source_pitch;
        } else if (effect->pattern_bytes == 1) {
            memset(target, (int)effect->pattern, effect->width);
        } else {
            for (size_t at = 0; at + effect->pattern_bytes <= effect->width; at += effect->pattern_bytes)
                memcpy(target + at, &effect->pattern, effect->pattern_bytes);
        }
    }
    return true;
}

HL_EXPORT CUresult hl_bridge_graph_effect(hl_bridge_stream *stream, const hl_bridge_effect *effect)
{
    struct capture *capture;

    if (!capturing || !hl_graph_capturing(stream->line))
        return hl_bridge_effect_apply(effect) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    capture = capture_of(stream);
    if (capture) {
        struct recipe *recipe = capture->graph->recipe;
        if (recipe->effects_count == recipe->effects_room) {
            uint32_t room = recipe->effects_room ? recipe->effects_room * 2 : 16;
            hl_bridge_effect *grown = realloc(recipe->effects, room * sizeof *grown);
            if (!grown)
                capture->lost = true;
            else {
                recipe->effects = grown;
                recipe->effects_room = room;
            }
        }
        if (recipe->effects_count < recipe->effects_room)
            recipe->effects[recipe->effects_count++] = *effect;
    }
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_forbid(void)
{
    CUresult result = CUDA_SUCCESS;
    int32_t tid;

    if (!capturing || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_SUCCESS;
    tid = hl_sys_gettid();
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CAPTURES; i++) {
        struct capture *capture = &captures[i];
        bool mine = capture->tid == tid && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        bool global = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (capture->id && (mine || global)) {
            capture->lost = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_graph_forbid_device(void)
{
    CUresult result = CUDA_SUCCESS;

    if (!capturing)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CAPTURES; i++)
        if (captures[i].id) {
            captures[i].lost = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_graph_invalidate(hl_bridge_stream *stream)
{
    struct capture *capture;

    pthread_mutex_lock(&lock);
    capture = capture_of(stream);
    if (capture)
        capture->lost = true;
    pthread_mutex_unlock(&lock);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

HL_EXPORT CUresult hl_bridge_graph_capture_begin(hl_bridge_stream *stream, CUstreamCaptureMode mode)
{
    struct capture *capture = NULL;
    CUresult result = CUDA_SUCCESS;

    if (mode != CU_STREAM_CAPTURE_MODE_GLOBAL && mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL &&
        mode != CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    if (hl_bridge_stream_legacy(stream))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (hl_graph_capturing(stream->line))
        return CUDA_ERROR_ILLEGAL_STATE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CAPTURES && !capture; i++)
        if (!captures[i].id)
            capture = &captures[i];
    struct graph *graph = capture ? hl_bridge_slab_take(&graphs) : NULL;
    hl_bridge_forks *forks = graph ? hl_bridge_forks_new(stream) : NULL;
    if (graph)
        graph->recipe = recipe_new();
    if (!graph || !graph->recipe || !forks)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else if (hl_graph_begin(stream->line))
        result = CUDA_ERROR_ILLEGAL_STATE;
    if (result) {
        hl_bridge_forks_free(forks);
        if (graph)
            graph_drop(graph);
    } else {
        *capture = (struct capture){.id = hl_graph_capture_id(stream->line),
                                    .origin = stream,
                                    .mode = mode,
                                    .tid = hl_sys_gettid(),
                                    .graph = graph,
                                    .forks = forks};
        capturing++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_graph_capture_end(hl_bridge_stream *stream, CUgraph *handle)
{
    CUresult result = CUDA_SUCCESS;
    struct capture *capture;

    if (handle)
        *handle = NULL;
    pthread_mutex_lock(&lock);
    capture = capture_of(stream);
    if (!capture) {
        result = CUDA_ERROR_ILLEGAL_STATE;
    } else if (capture->origin != stream) {
        result = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    } else if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->tid != hl_sys_gettid()) {
        result = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    } else {
        struct graph *graph = capture->graph;
        if (hl_graph_end(stream->line, &graph->recipe->launches))
            capture->lost = true;
        if (capture->lost)
            result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        else if (!hl_bridge_forks_joined(capture->forks))
            result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        else if (!handle)
            result = CUDA_ERROR_INVALID_VALUE;
        if (result)
            graph_drop(graph);
        else
            *handle = (CUgraph)graph;
        hl_bridge_forks_free(capture->forks);
        capture->id = 0;
        capturing--;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT CUresult hl_bridge_graph_capture_status(hl_bridge_stream *stream, CUstreamCaptureStatus *status)
{
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (!capturing)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    struct capture *capture = capture_of(stream);
    CUresult result = implicit(stream, false);
    if (capture)
        *status = capture->lost ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT void hl_bridge_graph_capture_info(hl_bridge_stream *stream, cuuint64_t *id, CUgraph *graph)
{
    pthread_mutex_lock(&lock);
    struct capture *capture = capturing ? capture_of(stream) : NULL;
    if (id)
        *id = capture ? capture->id : 0;
    if (graph)
        *graph = capture ? (CUgraph)capture->graph : NULL;
    pthread_mutex_unlock(&lock);
}

HL_EXPORT CUresult hl_bridge_graph_exchange_mode(CUstreamCaptureMode *mode)
{
    CUstreamCaptureMode before = thread_mode;

    if (!mode || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_create(CUgraph *handle)
{
    struct graph *graph = handle ? hl_bridge_slab_take(&graphs) : NULL;

    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    if (graph)
        graph->recipe = recipe_new();
    if (!graph || !graph->recipe)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = (CUgraph)graph;
    return CUDA_SUCCESS;
}

static CUresult destroy(hl_bridge_slab *slab, void *handle)
{
    struct graph *graph = handle;

    if (!hl_bridge_slab_owns(slab, handle))
        return CUDA_ERROR_INVALID_VALUE;
    recipe_drop(graph->recipe);
    hl_bridge_slab_give(slab, graph);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_destroy(CUgraph graph) { return destroy(&graphs, graph); }

static void give_memory(uint32_t device, uint32_t nodes)
{
    hl_ledger_driver_give(device, HL_DRIVER_GRAPH, 1);
    hl_ledger_driver_give(device, HL_DRIVER_GRAPH_NODE, nodes);
}

static bool take_memory(uint32_t device, uint32_t nodes)
{
    if (hl_ledger_driver_take(device, HL_DRIVER_GRAPH, 1))
        return false;
    if (!hl_ledger_driver_take(device, HL_DRIVER_GRAPH_NODE, nodes))
        return true;
    hl_ledger_driver_give(device, HL_DRIVER_GRAPH, 1);
    return false;
}

HL_EXPORT CUresult hl_bridge_graph_exec_destroy(CUgraphExec handle)
{
    struct graph *exec = (struct graph *)handle;

    if (!hl_bridge_slab_owns(&execs, exec))
        return CUDA_ERROR_INVALID_VALUE;
    give_memory(exec->device, exec->nodes);
    return destroy(&execs, exec);
}

HL_EXPORT CUresult hl_bridge_graph_instantiate(CUgraph handle, CUgraphExec *exec)
{
    struct graph *graph = (struct graph *)handle, *made;
    hl_bridge_context *context = hl_bridge_context_current();
    uint32_t nodes;

    if (!exec || !hl_bridge_slab_owns(&graphs, handle))
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    nodes = graph->recipe->launches ? hl_graph_nodes(graph->recipe->launches) : 0;
    if (!take_memory(context->device, nodes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    made = hl_bridge_slab_take(&execs);
    if (!made) {
        give_memory(context->device, nodes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    made->device = context->device;
    made->nodes = nodes;
    graph->recipe->users++;
    made->recipe = graph->recipe;
    *exec = (CUgraphExec)made;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_exec_update(CUgraphExec handle, CUgraph from)
{
    struct graph *exec = (struct graph *)handle, *graph = (struct graph *)from;

    if (!hl_bridge_slab_owns(&execs, handle) || !hl_bridge_slab_owns(&graphs, from))
        return CUDA_ERROR_INVALID_VALUE;
    graph->recipe->users++;
    recipe_drop(exec->recipe);
    exec->recipe = graph->recipe;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_exec_valid(CUgraphExec exec)
{
    return hl_bridge_slab_owns(&execs, exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

HL_EXPORT CUresult hl_bridge_graph_exec_launch(CUgraphExec handle, hl_bridge_stream *stream)
{
    struct graph *exec = (struct graph *)handle;

    if (!hl_bridge_slab_owns(&execs, handle))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = hl_bridge_graph_work(stream);
    if (result)
        return result;
    if (exec->recipe->launches)
        hl_graph_launch(exec->recipe->launches, stream->line);
    for (uint32_t i = 0; i < exec->recipe->effects_count; i++)
        hl_bridge_graph_effect(stream, &exec->recipe->effects[i]);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_count(CUgraph handle, size_t *nodes)
{
    struct graph *graph = (struct graph *)handle;

    if (!nodes || !hl_bridge_slab_owns(&graphs, handle))
        return CUDA_ERROR_INVALID_VALUE;
    *nodes = graph->recipe->launches ? hl_graph_nodes(graph->recipe->launches) : 0;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_graph_list(CUgraph handle, CUgraphNode *nodes, size_t *count)
{
    size_t have, room = count ? *count : 0;
    CUresult result = hl_bridge_graph_count(handle, &have);

    if (result || !count)
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; nodes && i < room; i++)
        nodes[i] = i < have ? (CUgraphNode)((char *)handle + i + 1) : NULL; /* a name, never followed */
    *count = !nodes || room > have ? have : room;
    return CUDA_SUCCESS;
}
