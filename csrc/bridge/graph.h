/* Stream capture and graphs as CUDA handles over the core's recipes.
 *
 * The core keeps the launches of a captured stream. Here is what CUDA adds: which calls a capture forbids, handles, and
 * the bytes that captured copies move at each launch of the graph (`effects`). */
#ifndef HL_BRIDGE_GRAPH_H
#define HL_BRIDGE_GRAPH_H

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>

#include "bridge/stream.h"

/* Bytes that an operation moves: a copy, or a fill when source is NULL. */
typedef struct hl_bridge_effect {
    void *target;
    const void *source;
    size_t target_pitch, source_pitch, width, height; /* bytes, bytes, bytes, rows */
    uint32_t pattern;
    unsigned pattern_bytes;
    bool source_pageable, target_pageable; /* memory that only the program knows */
} hl_bridge_effect;

/* False: an address of pageable memory that does not exist. */
bool hl_bridge_effect_apply(const hl_bridge_effect *effect);
/* Applies it, or keeps it for the graph when the stream is capturing. */
CUresult hl_bridge_graph_effect(hl_bridge_stream *stream, const hl_bridge_effect *effect);

/* Every use of a stream asks one of these first: work adds an operation to what is captured, use does not. Refused with
 * CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, which loses the capture, is the legacy stream while a blocking stream captures. */
CUresult hl_bridge_graph_use(hl_bridge_stream *stream);
CUresult hl_bridge_graph_work(hl_bridge_stream *stream);
/* The event's place in the capture, if the stream takes part in one. */
void hl_bridge_graph_record(hl_bridge_stream *stream, hl_bridge_event *event);
/* Whether the stream may wait for the event; a captured event joins it to the capture. */
CUresult hl_bridge_graph_wait(hl_bridge_stream *stream, const hl_bridge_event *event);

/* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED where the calling thread must not make a call that a capture forbids
 * (cudaMalloc, cudaEventQuery, ...): that is, under a capture in global mode of any thread or in thread-local mode of
 * its own. */
CUresult hl_bridge_graph_forbid(void);
/* The same for calls that are forbidden while any stream of the device captures (device synchronisation). */
CUresult hl_bridge_graph_forbid_device(void);
/* A forbidden call on this very stream: the capture is lost. */
CUresult hl_bridge_graph_invalidate(hl_bridge_stream *stream);

CUresult hl_bridge_graph_capture_begin(hl_bridge_stream *stream, CUstreamCaptureMode mode);
CUresult hl_bridge_graph_capture_end(hl_bridge_stream *stream, CUgraph *graph);
/* Refused for the legacy stream as every use of it, but loses no capture. */
CUresult hl_bridge_graph_capture_status(hl_bridge_stream *stream, CUstreamCaptureStatus *status);
/* id and graph of the capture that the stream takes part in; 0 and NULL without one. */
void hl_bridge_graph_capture_info(hl_bridge_stream *stream, cuuint64_t *id, CUgraph *graph);
CUresult hl_bridge_graph_exchange_mode(CUstreamCaptureMode *mode);

CUresult hl_bridge_graph_create(CUgraph *graph);
CUresult hl_bridge_graph_destroy(CUgraph graph);
CUresult hl_bridge_graph_instantiate(CUgraph graph, CUgraphExec *exec);
CUresult hl_bridge_graph_exec_destroy(CUgraphExec exec);
CUresult hl_bridge_graph_exec_launch(CUgraphExec exec, hl_bridge_stream *stream);
CUresult hl_bridge_graph_exec_update(CUgraphExec exec, CUgraph graph);
CUresult hl_bridge_graph_count(CUgraph graph, size_t *nodes);
/* Opaque node handles, in launch order. */
CUresult hl_bridge_graph_list(CUgraph graph, CUgraphNode *nodes, size_t *count);
CUresult hl_bridge_graph_exec_valid(CUgraphExec exec);

#endif
