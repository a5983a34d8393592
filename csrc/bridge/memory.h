/* Allocations, copies and fills: what CUDA adds to the core's ledger. */
#ifndef HL_BRIDGE_MEMORY_H
#define HL_BRIDGE_MEMORY_H

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>

#include "bridge/graph.h"
#include "core/ledger.h"

/* Larger ones are put on the stream but move no bytes. Model weights and caches are larger than this, what an engine
 * reads back (token ids, block tables, counters, random state) is smaller. 16 MiB cost the host 2 ms, and 14 ms where
 * the pages are new (measured on a 2-core cloud machine). */
#define HL_COPY_BYTES_MAX ((size_t)16 << 20)

typedef enum hl_bridge_direction { HL_ANY = 0, HL_H2H, HL_H2D, HL_D2H, HL_D2D } hl_bridge_direction;

CUresult hl_bridge_memory_allocate(hl_memory_kind kind, size_t size_bytes, void **pointer);
CUresult hl_bridge_memory_free(void *pointer, bool host);
CUresult hl_bridge_memory_register(void *pointer, size_t size_bytes);
CUresult hl_bridge_memory_unregister(void *pointer);
CUresult hl_bridge_memory_info(size_t *free_bytes, size_t *total_bytes);
/* What a pointer is; kind NONE: ordinary host memory. Memory mapped into a reserved range counts as device memory. */
void hl_bridge_memory_of(const void *pointer, hl_memory *memory);
/* Is [pointer, pointer + bytes) inside the allocation that it begins in? True for memory whose end is not known. */
bool hl_bridge_memory_inside(const hl_memory *memory, const void *pointer, size_t bytes);
bool hl_bridge_memory_on_device(const hl_memory *memory);

/* wait: the synchronous calls, which return when the data is there, where CUDA's do. */
CUresult hl_bridge_memory_copy(const hl_bridge_effect *copy, hl_bridge_direction direction, hl_bridge_stream *stream,
                               bool wait);
CUresult hl_bridge_memory_fill(const hl_bridge_effect *fill, hl_bridge_stream *stream, bool wait);
/* One row of `bytes`. */
CUresult hl_bridge_memory_copy_bytes(void *target, const void *source, size_t bytes, hl_bridge_direction direction,
                                     hl_bridge_stream *stream, bool wait);

#endif
