/* Kernels in which the devices of a group meet, without NCCL: an engine's own all-reduce, torch's symmetric memory.
 *
 * On the card such a kernel writes flags into its peers' memory and spins until theirs are in its own. Here the launch is
 * a meeting on the virtual timeline, like a collective of NCCL. Which kernels they are, and where their arguments say who
 * the peers are and how much there is to move, comes as data from the run (shim/collective_kernels.py): nothing here
 * knows an engine. */
#ifndef HL_BRIDGE_COLLECTIVE_H
#define HL_BRIDGE_COLLECTIVE_H

#include <stdbool.h>

#include "bridge/modules.h"
#include "bridge/stream.h"

/* Puts the launch on the stream as a meeting with its peers. False: no such kernel, launch it as any other one. arguments:
 * the launch's, one pointer to each; NULL where the caller has none. */
bool hl_bridge_collective_launch(hl_bridge_kernel *kernel, void *const *arguments, hl_bridge_stream *stream);

#endif
