/* Handles: objects of one type in reserved address space, so that a handle can be checked before it is followed.
 *
 * Why: CUDA answers a stale or foreign handle with an error; following it would crash inside us and look like our
 * bug. malloc was rejected: its addresses cannot be told from garbage. A slab never shrinks; freed slots are reused
 * last in, first out. Every object begins with a uint32_t that is 0 while the slot is free. */
#ifndef HL_BRIDGE_SLAB_H
#define HL_BRIDGE_SLAB_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hl_bridge_slab {
    size_t item_bytes;
    uint32_t capacity;
    pthread_mutex_t lock;
    char *base;
    uint32_t used, free_first; /* free_first: index + 1 of the first free slot below `used` */
} hl_bridge_slab;

#define HL_SLAB(type, count) {.item_bytes = sizeof(type), .capacity = (count), .lock = PTHREAD_MUTEX_INITIALIZER}

/* Zeroed but for its first word, which is 1. NULL when the slab is full. */
void *hl_bridge_slab_take(hl_bridge_slab *slab);
void hl_bridge_slab_give(hl_bridge_slab *slab, void *item);
/* True for the address of a live object of this slab. */
bool hl_bridge_slab_owns(const hl_bridge_slab *slab, const void *item);

#endif
