/* Allocations, copies and fills; see memory.h.
 *
 * Bytes move when the call is made, not when the stream gets there: kernels write nothing, so no later operation of the
 * stream can change what an earlier one would have read. Timing is the stream's. */
#include "bridge/memory.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bridge/virtual.h"
#include "core/export.h"

static CUresult code_of(int error)
{
    switch (error) {
    case 0: return CUDA_SUCCESS;
    case -ENOMEM: return CUDA_ERROR_OUT_OF_MEMORY;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

HL_EXPORT CUresult hl_bridge_memory_allocate(hl_memory_kind kind, size_t size_bytes, void **pointer)
{
    hl_bridge_context *context = hl_bridge_context_current();
    CUresult result = hl_bridge_graph_forbid();

    if (!pointer)
        return CUDA_ERROR_INVALID_VALUE;
    if (result)
        return result;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    return code_of(hl_ledger_allocate(context->device, kind, size_bytes, pointer));
}

HL_EXPORT CUresult hl_bridge_memory_free(void *pointer, bool host)
{
    hl_memory memory;
    CUresult result;

    if (!pointer)
        return CUDA_SUCCESS;
    result = hl_bridge_graph_forbid();
    if (result)
        return result;
    if (!hl_ledger_find(pointer, &memory) || memory.base != (uintptr_t)pointer ||
        host != (memory.kind == HL_MEMORY_PINNED) || memory.kind == HL_MEMORY_REGISTERED ||
        memory.kind == HL_MEMORY_RESERVED || memory.kind == HL_MEMORY_IMPORTED)
        return CUDA_ERROR_INVALID_VALUE;
    /* cudaFree waits until nothing that was put on the device before can still use the memory. */
    if (!host)
        hl_timeline_device_wait(memory.device);
    return code_of(hl_ledger_free(pointer));
}

/* Can the byte be read? Asked of the kernel, which answers where a look would crash. */
static bool readable(const char *at)
{
    char byte;
    struct iovec to = {&byte, 1}, from = {(void *)at, 1};

    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 || errno == EPERM || errno == ENOSYS;
}

HL_EXPORT CUresult hl_bridge_memory_register(void *pointer, size_t size_bytes)
{
    size_t last;

    if (!pointer || !size_bytes || __builtin_add_overflow((uintptr_t)pointer, size_bytes - 1, &last) ||
        !readable(pointer) || !readable((const char *)last))
        return CUDA_ERROR_INVALID_VALUE;
    if (hl_ledger_register(pointer, size_bytes))
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_memory_unregister(void *pointer)
{
    hl_memory memory;

    if (!hl_ledger_find(pointer, &memory) || memory.kind != HL_MEMORY_REGISTERED || memory.base != (uintptr_t)pointer)
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    return code_of(hl_ledger_free(pointer));
}

HL_EXPORT CUresult hl_bridge_memory_info(size_t *free_bytes, size_t *total_bytes)
{
    hl_bridge_context *context = hl_bridge_context_current();
    size_t free_now, total;

    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    hl_ledger_info(context->device, &free_now, &total);
    if (free_bytes)
        *free_bytes = free_now;
    if (total_bytes)
        *total_bytes = total;
    return CUDA_SUCCESS;
}

HL_EXPORT void hl_bridge_memory_of(const void *pointer, hl_memory *memory)
{
    if (!hl_ledger_find(pointer, memory))
        *memory = (hl_memory){.kind = HL_MEMORY_NONE};
    else if (memory->kind == HL_MEMORY_RESERVED)
        hl_bridge_virtual_describe((CUdeviceptr)pointer, memory);
}

HL_EXPORT bool hl_bridge_memory_on_device(const hl_memory *memory)
{
    return memory->kind == HL_MEMORY_DEVICE || memory->kind == HL_MEMORY_MANAGED || memory->kind == HL_MEMORY_RESERVED ||
           memory->kind == HL_MEMORY_IMPORTED;
}

HL_EXPORT bool hl_bridge_memory_inside(const hl_memory *memory, const void *pointer, size_t bytes)
{
    return memory->kind == HL_MEMORY_NONE || memory->kind == HL_MEMORY_REGISTERED ||
           ((uintptr_t)pointer - memory->base <= memory->size_bytes &&
            bytes <= memory->size_bytes - ((uintptr_t)pointer - memory->base));
}

/* Bytes from the first row's begin to the last row's end; height is not 0. False: more than addresses can count. */
static bool span(size_t pitch, size_t width, size_t height, size_t *bytes)
{
    return !__builtin_mul_overflow(height > 1 ? pitch : 0, height - 1, bytes) &&
           !__builtin_add_overflow(*bytes, width, bytes);
}

HL_EXPORT CUresult hl_bridge_memory_copy(const hl_bridge_effect *copy, hl_bridge_direction direction,
                                         hl_bridge_stream *stream, bool wait)
{
    static const char *const names[] = {[HL_H2D] = "h2d", [HL_D2H] = "d2h", [HL_D2D] = "d2d"};
    hl_launch launch = {.kind = HL_LAUNCH_COPY, .device = stream->device};
    size_t bytes, to_bytes, from_bytes;
    hl_memory target, source;
    hl_bridge_direction is;
    CUresult result;

    if (!copy->width || !copy->height)
        return CUDA_SUCCESS;
    if (!copy->target || !copy->source || __builtin_mul_overflow(copy->width, copy->height, &bytes) ||
        !span(copy->target_pitch, copy->width, copy->height, &to_bytes) ||
        !span(copy->source_pitch, copy->width, copy->height, &from_bytes) ||
        (copy->height > 1 && (copy->width > copy->target_pitch || copy->width > copy->source_pitch)))
        return CUDA_ERROR_INVALID_VALUE;
    hl_bridge_memory_of(copy->target, &target);
    hl_bridge_memory_of(copy->source, &source);
    if (!hl_bridge_memory_inside(&target, copy->target, to_bytes) ||
        !hl_bridge_memory_inside(&source, copy->source, from_bytes))
        return CUDA_ERROR_INVALID_VALUE;
    bool to = hl_bridge_memory_on_device(&target), from = hl_bridge_memory_on_device(&source);
    is = to ? from ? HL_D2D : HL_H2D : from ? HL_D2H : HL_H2H;
    /* Managed memory is both; else a direction that contradicts the pointers is an error. */
    if (direction != HL_ANY && direction != is && target.kind != HL_MEMORY_MANAGED && source.kind != HL_MEMORY_MANAGED)
        return CUDA_ERROR_INVALID_VALUE;
    result = hl_bridge_graph_work(stream);
    if (result)
        return result;
    if (bytes <= HL_COPY_BYTES_MAX || is == HL_H2H) {
        hl_bridge_effect effect = *copy;
        effect.target_pageable = target.kind == HL_MEMORY_NONE || target.kind == HL_MEMORY_REGISTERED;
        effect.source_pageable = source.kind == HL_MEMORY_NONE || source.kind == HL_MEMORY_REGISTERED;
        result = hl_bridge_graph_effect(stream, &effect);
        if (result)
            return result;
    }
    if (is != HL_H2H) {
        launch.name = is == HL_D2D && target.device != source.device ? "p2p" : names[is];
        launch.arg[0] = (int64_t)bytes;
        hl_timeline_launch(stream->line, &launch);
    }
    /* A copy into pageable host memory is synchronous even when asked for asynchronously; one between devices never
     * is (CUDA runtime API, "API synchronization behavior"). */
    if ((wait && is != HL_D2D) || (is == HL_D2H && target.kind == HL_MEMORY_NONE))
        return hl_graph_capturing(stream->line) ? CUDA_SUCCESS : hl_bridge_stream_wait(stream);
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_memory_copy_bytes(void *target, const void *source, size_t bytes,
                                               hl_bridge_direction direction, hl_bridge_stream *stream, bool wait)
{
    hl_bridge_effect copy = {.target = target, .source = source, .width = bytes, .height = 1};

    return hl_bridge_memory_copy(&copy, direction, stream, wait);
}

HL_EXPORT CUresult hl_bridge_memory_fill(const hl_bridge_effect *fill, hl_bridge_stream *stream, bool wait)
{
    hl_launch launch = {.kind = HL_LAUNCH_MEMSET, .device = stream->device, .name = "memset"};
    size_t bytes, to_bytes;
    hl_memory target;
    CUresult result;

    if (!fill->width || !fill->height)
        return CUDA_SUCCESS;
    if (__builtin_mul_overflow(fill->width, fill->height, &bytes) ||
        !span(fill->target_pitch, fill->width, fill->height, &to_bytes))
        return CUDA_ERROR_INVALID_VALUE;
    hl_bridge_memory_of(fill->target, &target);
    if (target.kind == HL_MEMORY_NONE || (fill->height > 1 && fill->width > fill->target_pitch) ||
        !hl_bridge_memory_inside(&target, fill->target, to_bytes))
        return CUDA_ERROR_INVALID_VALUE;
    result = hl_bridge_graph_work(stream);
    if (result)
        return result;
    launch.arg[0] = (int64_t)bytes;
    hl_timeline_launch(stream->line, &launch);
    if (bytes <= HL_COPY_BYTES_MAX)
        result = hl_bridge_graph_effect(stream, fill);
    if (result)
        return result;
    /* cudaMemset is asynchronous but for pinned host memory. */
    return wait && !hl_bridge_memory_on_device(&target) ? hl_bridge_stream_wait(stream) : CUDA_SUCCESS;
}
