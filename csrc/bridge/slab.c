/* See slab.h. */
#include "bridge/slab.h"

#include <string.h>
#include <sys/mman.h>

#include "core/export.h"

struct slot { /* a free slot */
    uint32_t live, next;
};

HL_EXPORT void *hl_bridge_slab_take(hl_bridge_slab *slab)
{
    struct slot *slot = NULL;

    pthread_mutex_lock(&slab->lock);
    if (!slab->base) {
        void *base = mmap(NULL, slab->item_bytes * slab->capacity, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        slab->base = base == MAP_FAILED ? NULL : base;
    }
    if (slab->base && slab->free_first) {
        slot = (struct slot *)(slab->base + (slab->free_first - 1) * slab->item_bytes);
        slab->free_first = slot->next;
    } else if (slab->base && slab->used < slab->capacity) {
        slot = (struct slot *)(slab->base + slab->used++ * slab->item_bytes);
    }
    if (slot) {
        memset(slot, 0, slab->item_bytes);
        slot->live = 1;
    }
    pthread_mutex_unlock(&slab->lock);
    return slot;
}

HL_EXPORT void hl_bridge_slab_give(hl_bridge_slab *slab, void *item)
{
    struct slot *slot = item;

    pthread_mutex_lock(&slab->lock);
    slot->live = 0;
    slot->next = slab->free_first;
    slab->free_first = (uint32_t)(((char *)item - slab->base) / (ptrdiff_t)slab->item_bytes) + 1;
    pthread_mutex_unlock(&slab->lock);
}

HL_EXPORT bool hl_bridge_slab_owns(const hl_bridge_slab *slab, const void *item)
{
    const char *base = slab->base, *at = item;

    if (!base || at < base || at >= base + slab->used * slab->item_bytes)
        return false;
    return (size_t)(at - base) % slab->item_bytes == 0 && *(const uint32_t *)item != 0;
}
