/* Which work of a capture its origin has waited for.
 *
 * Why: CUDA refuses a capture that ends while a forked stream has work that nothing joined to the origin; a graph that
 * is accepted here and refused on the card would be found out too late. Each stream of a capture counts its operations
 * and keeps, for every other stream, how many of them it comes after; an event takes such a row along. A flag per
 * stream was rejected: a stream may be joined by way of a third one.
 *
 * Callers hold the capture's lock. False: no memory, or too many streams; the capture cannot be judged any more. */
#ifndef HL_BRIDGE_FORKS_H
#define HL_BRIDGE_FORKS_H

#include <stdbool.h>
#include <stdint.h>

#include "bridge/stream.h"

typedef struct hl_bridge_forks hl_bridge_forks;

hl_bridge_forks *hl_bridge_forks_new(const hl_bridge_stream *origin); /* NULL: no memory */
void hl_bridge_forks_free(hl_bridge_forks *forks);

bool hl_bridge_forks_work(hl_bridge_forks *forks, const hl_bridge_stream *stream);
bool hl_bridge_forks_record(hl_bridge_forks *forks, const hl_bridge_stream *stream, uint32_t *mark);
bool hl_bridge_forks_wait(hl_bridge_forks *forks, const hl_bridge_stream *stream, uint32_t mark);
/* Does the origin come after all work of every stream? */
bool hl_bridge_forks_joined(const hl_bridge_forks *forks);
/* Does a stream of the device take part that orders itself with the legacy default stream? */
bool hl_bridge_forks_blocking(const hl_bridge_forks *forks, uint32_t device);

#endif
