/* The price table and what is known of kernel names. Readers take no lock: a set's version tells them when to look
 * again. A full set evicts what depended on one batch composition first (those are asked for once), then the oldest:
 * an evicted price is asked for again, so a full table is slower and never wrong. */
#include <string.h>

#include "price_private.h"

static hl_price_set *set_of(hl_segment *segment, hl_key key) { return &segment->prices[key.low % HL_SEGMENT_PRICE_SETS]; }

static bool is(hl_key a, hl_key b) { return a.low == b.low && a.high == b.high; }

bool hl_price_table_find(hl_segment *segment, hl_key key, hl_price *price)
{
    hl_price_set *set = set_of(segment, key);
    for (int tries = 0; tries < 1000; tries++) {
        uint32_t version = atomic_load_explicit(&set->version, memory_order_acquire);
        bool found = false;
        if (version & 1)
            continue;
        for (uint32_t way = 0; way < HL_SEGMENT_PRICE_WAYS && !found; way++)
            if (is(set->key[way], key)) {
                *price = set->price[way];
                found = true;
            }
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&set->version, memory_order_relaxed) == version)
            return found;
    }
    return false; /* its writer was killed half-way, or writes all the time: the request looks again under the lock */
}

static uint32_t place_for(const hl_price_set *set, hl_key key, hl_price_counts *counts)
{
    uint32_t best = 0;
    for (uint32_t way = 0; way < HL_SEGMENT_PRICE_WAYS; way++)
        if (is(set->key[way], key))
            return way;
    for (uint32_t way = 0; way < HL_SEGMENT_PRICE_WAYS; way++)
        if (is(set->key[way], (hl_key){0}))
            return way;
    for (uint32_t way = 1; way < HL_SEGMENT_PRICE_WAYS; way++) {
        bool more_passing = set->passing[way] > set->passing[best];
        bool older = set->passing[way] == set->passing[best] && set->stamp - set->written[way] > set->stamp - set->written[best];
        if (more_passing || older)
            best = way;
    }
    atomic_fetch_add_explicit(&counts->evictions, 1, memory_order_relaxed);
    if (!set->passing[best])
        atomic_fetch_add_explicit(&counts->lasting_evictions, 1, memory_order_relaxed);
    return best;
}

void hl_price_table_insert(hl_segment *segment, hl_key key, const hl_price *price, bool passing)
{
    hl_price_set *set = set_of(segment, key);
    hl_lock_acquire(&segment->table_lock);
    uint32_t version = atomic_load_explicit(&set->version, memory_order_relaxed) | 1;
    atomic_store_explicit(&set->version, version, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    uint32_t way = place_for(set, key, &segment->price_counts);
    set->key[way] = key;
    set->price[way] = *price;
    set->passing[way] = passing;
    set->written[way] = ++set->stamp;
    atomic_store_explicit(&set->version, version + 1, memory_order_release);
    hl_lock_release(&segment->table_lock);
}

uint32_t hl_price_name_find(hl_segment *segment, hl_key name_hash)
{
    for (uint32_t i = 0; i < HL_SEGMENT_NAMES; i++) {
        hl_name *name = &segment->names[(name_hash.low + i) % HL_SEGMENT_NAMES];
        uint32_t state = atomic_load_explicit(&name->state, memory_order_acquire);
        if (!state)
            return 0;
        if (is(name->hash, name_hash))
            return state;
    }
    return 0;
}

/* Bits are only ever added: an older key of that name holds less than it should and is not looked up any more. */
void hl_price_name_learn(hl_segment *segment, hl_key name_hash, uint32_t depends)
{
    uint32_t wanted = HL_NAME_KNOWN | (depends & (HL_DEPENDS_TOKENS | HL_DEPENDS_BATCH));
    hl_lock_acquire(&segment->table_lock);
    /* A table with no free place would make every miss probe all of it; names beyond that keep the whole annotation. */
    bool room = atomic_load(&segment->names_used) < HL_SEGMENT_NAMES / 2;
    for (uint32_t i = 0; i < HL_SEGMENT_NAMES; i++) {
        hl_name *name = &segment->names[(name_hash.low + i) % HL_SEGMENT_NAMES];
        uint32_t state = atomic_load(&name->state);
        if (state && !is(name->hash, name_hash))
            continue;
        if (!state && room) {
            name->hash = name_hash;
            atomic_store_explicit(&name->state, wanted, memory_order_release);
            atomic_fetch_add(&segment->names_used, 1);
        } else if (state && (state | wanted) != state) {
            atomic_store_explicit(&name->state, state | wanted, memory_order_release);
            atomic_fetch_add(&segment->names_changed, 1);
        }
        break;
    }
    hl_lock_release(&segment->table_lock);
}
