/* Many copies in one call: what engines move KV-cache blocks with.
 *
 * Why not one copy after the other: the call exists so that the card pays for starting once, and thousands of blocks would
 * each be charged a copy's latency. So all copies of one direction are one operation of the stream, with the sum of their
 * bytes. Like a single copy they move bytes only up to HL_COPY_BYTES_MAX, here together. */
#include "bridge/copy_batch.h"

#include "bridge/memory.h"
#include "core/export.h"

static const char *const names[] = {[HL_H2H] = "", [HL_H2D] = "h2d", [HL_D2H] = "d2h", [HL_D2D] = "d2d"};

enum { DIRECTIONS = sizeof names / sizeof *names };

static CUresult inspect(const void *target, const void *source, size_t bytes, hl_bridge_direction *is, bool *pageable)
{
    hl_memory to, from;

    if (!target || !source || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    hl_bridge_memory_of(target, &to);
    hl_bridge_memory_of(source, &from);
    if (!hl_bridge_memory_inside(&to, target, bytes) || !hl_bridge_memory_inside(&from, source, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    *is = hl_bridge_memory_on_device(&to) ? hl_bridge_memory_on_device(&from) ? HL_D2D : HL_H2D
          : hl_bridge_memory_on_device(&from) ? HL_D2H
                                              : HL_H2H;
    *pageable = to.kind == HL_MEMORY_NONE || to.kind == HL_MEMORY_REGISTERED || from.kind == HL_MEMORY_NONE ||
                from.kind == HL_MEMORY_REGISTERED;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_copy_batch(const CUdeviceptr *targets, const CUdeviceptr *sources, const size_t *sizes,
                                        size_t count, hl_bridge_stream *stream, size_t *failed)
{
    size_t sums[DIRECTIONS] = {0}, all = 0;
    hl_bridge_direction is;
    CUresult result;
    bool pageable;

    for (*failed = 0; *failed < count; ++*failed) {
        result = inspect((const void *)targets[*failed], (const void *)sources[*failed], sizes[*failed], &is, &pageable);
        if (result)
            return result;
        sums[is] += sizes[*failed];
        if (__builtin_add_overflow(all, sizes[*failed], &all))
            return CUDA_ERROR_INVALID_VALUE;
    }
    result = hl_bridge_graph_work(stream);
    if (result)
        return result;
    for (size_t i = 0; i < count; i++) {
        hl_bridge_effect effect = {
            .target = (void *)targets[i], .source = (const void *)sources[i], .width = sizes[i], .height = 1};
        inspect(effect.target, effect.source, effect.width, &is, &effect.target_pageable); /* either side: the careful way */
        if (all > HL_COPY_BYTES_MAX && is != HL_H2H)
            continue;
        result = hl_bridge_graph_effect(stream, &effect);
        if (result)
            return result;
    }
    for (int direction = HL_H2D; direction < DIRECTIONS; direction++) {
        hl_launch launch = {.kind = HL_LAUNCH_COPY, .device = stream->device, .name = names[direction]};
        launch.arg[0] = (int64_t)sums[direction];
        if (sums[direction])
            hl_timeline_launch(stream->line, &launch);
    }
    return CUDA_SUCCESS;
}
