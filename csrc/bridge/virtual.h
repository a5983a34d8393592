/* Virtual memory management (cuMem*) and stream-ordered pools, over the ledger.
 *
 * An address range is reserved with lazily backed pages, physical memory is only counted, and mapping joins the two in
 * the books. Physical memory that may be exported is a file from the start: its bytes are the same at every address and
 * in every process that maps it. One that may not, mapped at two addresses, is two memories (no engine's control data
 * does it). */
#ifndef HL_BRIDGE_VIRTUAL_H
#define HL_BRIDGE_VIRTUAL_H

#include <cuda.h>
#include <stddef.h>

#include "bridge/stream.h"
#include "core/ledger.h"

CUresult hl_bridge_virtual_granularity(const CUmemAllocationProp *prop, size_t *granularity_bytes);
CUresult hl_bridge_virtual_create(size_t size_bytes, const CUmemAllocationProp *prop,
                                  CUmemGenericAllocationHandle *handle);
CUresult hl_bridge_virtual_release(CUmemGenericAllocationHandle handle);
CUresult hl_bridge_virtual_reserve(size_t size_bytes, CUdeviceptr *pointer);
CUresult hl_bridge_virtual_unreserve(CUdeviceptr pointer, size_t size_bytes);
CUresult hl_bridge_virtual_map(CUdeviceptr pointer, size_t size_bytes, size_t offset_bytes,
                               CUmemGenericAllocationHandle handle);
CUresult hl_bridge_virtual_unmap(CUdeviceptr pointer, size_t size_bytes);
/* The handle mapped at an address, with one more reference. */
CUresult hl_bridge_virtual_retain(CUdeviceptr pointer, CUmemGenericAllocationHandle *handle);
CUresult hl_bridge_virtual_properties(CUmemGenericAllocationHandle handle, CUmemAllocationProp *prop);
/* What is mapped at an address of a reserved range: its device and identity, put into `memory`. */
void hl_bridge_virtual_describe(CUdeviceptr pointer, hl_memory *memory);
/* A new file descriptor for the memory, which whoever gets it (by fork or over a socket) can import. */
CUresult hl_bridge_virtual_export(CUmemGenericAllocationHandle handle, int *file);
CUresult hl_bridge_virtual_import(int file, CUmemGenericAllocationHandle *handle);

CUresult hl_bridge_pool_default(int ordinal, CUmemoryPool *pool);
CUresult hl_bridge_pool_current(int ordinal, CUmemoryPool *pool);
CUresult hl_bridge_pool_set_current(int ordinal, CUmemoryPool pool);
CUresult hl_bridge_pool_create(int ordinal, CUmemoryPool *pool);
CUresult hl_bridge_pool_destroy(CUmemoryPool pool);
/* pool NULL: the device's current one. */
CUresult hl_bridge_pool_allocate(CUmemoryPool pool, size_t size_bytes, hl_bridge_stream *stream, void **pointer);
CUresult hl_bridge_pool_free(void *pointer, hl_bridge_stream *stream);
CUresult hl_bridge_pool_get(CUmemoryPool pool, CUmemPool_attribute attribute, void *value);
CUresult hl_bridge_pool_set(CUmemoryPool pool, CUmemPool_attribute attribute, const void *value);
CUresult hl_bridge_pool_valid(CUmemoryPool pool);

#endif
