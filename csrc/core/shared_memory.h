/* Device memory that several processes of a run map: a sparse file of the run directory.
 *
 * Ordinary device memory is private and anonymous; it moves into such a file when it is first given away (CUDA's IPC
 * handles). Exportable physical memory (cuMemCreate) is one from the start, without a name, and travels as a file
 * descriptor. Backing all device memory by one file was rejected: what a process frees would have to be punched out of
 * it, and few allocations are ever shared.
 *
 * identity: never 0, unique in the run; its low four bits are the device. */
#ifndef HL_CORE_SHARED_MEMORY_H
#define HL_CORE_SHARED_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define HL_SHARED_MEMORY_DEVICE(identity) ((uint32_t)((identity) & 15))

/* Moves `bytes` of private anonymous memory at a page boundary, contents included, into a new file that is mapped in its
 * place. What other threads write meanwhile may be lost. 0 or -errno. */
int hl_shared_memory_move(uint32_t device, void *at, size_t bytes, uint64_t *identity);
/* Maps it over [at, at + bytes), which is the caller's. -ENOENT: whoever made it has taken it away. 0 or -errno. */
int hl_shared_memory_map(uint64_t identity, void *at, size_t bytes);
/* Takes the name away: who has it mapped keeps it. */
void hl_shared_memory_unlink(uint64_t identity);

/* A file of `bytes` zeros without a name: its descriptor (closed by exec), or -errno. */
int hl_shared_memory_file(uint32_t device, size_t bytes, uint64_t *identity);
/* What a descriptor is, wherever it came from. -EINVAL: none of this run's. 0 or -errno. */
int hl_shared_memory_describe(int file, size_t *bytes, uint64_t *identity);
int hl_shared_memory_map_file(int file, void *at, size_t bytes);

#endif
