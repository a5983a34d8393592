/* Names, annotations and keys: which launches cost the same.
 *
 * A kernel's key holds as much of the annotation as its duration depends on. Until the pricing service has said so for
 * that name it holds all of it, which is right and only costs a request more. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "export.h"
#include "price_private.h"
#include "report.h"

#define K0 UINT64_C(0x87c37b91114253d5)
#define K1 UINT64_C(0x4cf5ad432745937f)
#define K2 UINT64_C(0x9e3779b97f4a7c15)
#define K3 UINT64_C(0xc2b2ae3d27d4eb4f)

static inline uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

/* Each half is a bijection of every single word (multiplication by odd constants, xor, rotation), so that two inputs
 * that differ in one word always differ in the key. */
static inline void mix(hl_key *state, uint64_t word)
{
    state->low = rotate(state->low ^ (rotate(word * K0, 31) * K1), 27) * K2 + K3;
    state->high = rotate(state->high + (rotate(word ^ K2, 29) * K3), 31) * K0 + state->low;
}

static inline uint64_t avalanche(uint64_t x)
{
    x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
    x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

static inline hl_key finish(hl_key state)
{
    hl_key key = {avalanche(state.low + rotate(state.high, 17)), avalanche(state.high ^ K1)};
    key.low |= key.low == 0 && key.high == 0; /* 0,0 is an empty place in the table */
    return key;
}

hl_key hl_price_hash_bytes(const void *bytes, size_t length)
{
    hl_key state = {K2 ^ length, K3 + length};
    const char *at = bytes;
    for (; length >= 8; at += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        mix(&state, word);
    }
    uint64_t rest = 0;
    memcpy(&rest, at, length);
    mix(&state, rest);
    return finish(state);
}

hl_key hl_price_hash_text(const char *text) { return hl_price_hash_bytes(text, strlen(text)); }

/* Written once each, never evicted: names are as many as the program has kernels. */
#define NAME_CACHE 16384u
#define NAME_PROBES 8u
static struct {
    _Atomic uintptr_t name;
    _Atomic uint32_t valid;
    hl_key hash;
} name_cache[NAME_CACHE];

static hl_key kernel_name_hash(const char *name)
{
    uintptr_t address = (uintptr_t)name;
    uint32_t at = (uint32_t)(address * K2 >> 48);
    for (uint32_t probe = 0; probe < NAME_PROBES; probe++, at++) {
        at %= NAME_CACHE;
        uintptr_t there = atomic_load_explicit(&name_cache[at].name, memory_order_relaxed);
        if (there == address && atomic_load_explicit(&name_cache[at].valid, memory_order_acquire))
            return name_cache[at].hash;
        if (there == 0 && atomic_compare_exchange_strong(&name_cache[at].name, &there, address)) {
            name_cache[at].hash = hl_price_hash_text(name);
            atomic_store_explicit(&name_cache[at].valid, 1, memory_order_release);
            return name_cache[at].hash;
        }
    }
    return hl_price_hash_text(name);
}

hl_key hl_price_name_hash(const hl_launch *launch)
{
    return launch->kind == HL_LAUNCH_KERNEL ? kernel_name_hash(launch->name) : hl_price_hash_text(launch->name);
}

/* Not thread-local storage itself: 16 KiB more for every thread would break those with minimal stacks. */
static __thread hl_annotation *annotation;
static pthread_key_t annotation_key;
static pthread_once_t annotation_once = PTHREAD_ONCE_INIT;

static void unmap_annotation(void *value)
{
    annotation = NULL;
    munmap(value, sizeof(hl_annotation));
}

static void make_annotation_key(void)
{
    if (pthread_key_create(&annotation_key, unmap_annotation) != 0)
        hl_report_fatal("no thread key left for batch annotations (PTHREAD_KEYS_MAX)");
}

HL_EXPORT int hl_annotate(const char *text, size_t length, uint32_t tokens)
{
    if (!text) {
        if (annotation)
            annotation->hash = (hl_key){0}, annotation->length = 0, annotation->tokens = 0;
        return 0;
    }
    if (length > HL_ANNOTATION_TEXT_MAX)
        return -E2BIG;
    if (!annotation) {
        pthread_once(&annotation_once, make_annotation_key);
        void *address = mmap(NULL, sizeof *annotation, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (address == MAP_FAILED)
            hl_report_fatal("the host has no memory for a batch annotation");
        annotation = address;
        pthread_setspecific(annotation_key, address);
    }
    memcpy(annotation->text, text, length);
    annotation->length = (uint32_t)length;
    annotation->tokens = tokens;
    annotation->hash = hl_price_hash_bytes(text, length);
    return 0;
}

const hl_annotation *hl_annotation_get(void)
{
    static const hl_annotation none;
    return annotation ? annotation : &none;
}

hl_key hl_price_key(const hl_price_subject *subject, uint32_t depends)
{
    hl_key state = {K2 ^ subject->kind, K3 ^ depends};
    mix(&state, subject->name_hash.low);
    mix(&state, subject->name_hash.high);
    mix(&state, subject->profile_hash);
    for (int i = 0; i < HL_LAUNCH_ARGS; i++)
        mix(&state, (uint64_t)subject->arg[i]);
    if (depends & HL_DEPENDS_TOKENS)
        mix(&state, subject->tokens);
    if (depends & HL_DEPENDS_BATCH) {
        mix(&state, subject->annotation_hash.low);
        mix(&state, subject->annotation_hash.high);
    }
    return finish(state);
}

uint32_t hl_price_depends(hl_segment *segment, uint32_t kind, hl_key name_hash)
{
    if (kind == HL_LAUNCH_STEP)
        return HL_DEPENDS_TOKENS | HL_DEPENDS_BATCH;
    if (kind != HL_LAUNCH_KERNEL)
        return 0;
    uint32_t state = hl_price_name_find(segment, name_hash);
    return state ? state & (HL_DEPENDS_TOKENS | HL_DEPENDS_BATCH) : HL_DEPENDS_OPEN;
}
