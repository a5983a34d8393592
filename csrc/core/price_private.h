/* Between the files of pricing, the timeline and graphs. */
#ifndef HL_CORE_PRICE_PRIVATE_H
#define HL_CORE_PRICE_PRIVATE_H

#include "price.h"
#include "segment.h"

/* 128 bits: two launches with one key would silently get one price. */
hl_key hl_price_hash_bytes(const void *bytes, size_t length);
hl_key hl_price_hash_text(const char *text);

/* Hash of a launch's name; kernels' names are remembered by address (they live as long as the process). */
hl_key hl_price_name_hash(const hl_launch *launch);

/* The calling thread's annotation. */
typedef struct hl_annotation {
    hl_key hash;
    uint32_t tokens, length;
    char text[HL_ANNOTATION_TEXT_MAX];
} hl_annotation;
const hl_annotation *hl_annotation_get(void);

/* What a key is made of. depends: HL_DEPENDS_* bits, or HL_DEPENDS_OPEN while nobody has said. */
#define HL_DEPENDS_OPEN UINT32_C(0xff)
typedef struct hl_price_subject {
    uint32_t kind;
    hl_key name_hash;
    uint64_t profile_hash;
    const int64_t *arg;
    uint32_t tokens;
    hl_key annotation_hash;
} hl_price_subject;
hl_key hl_price_key(const hl_price_subject *subject, uint32_t depends);

/* What the duration of this launch depends on, as far as it is known. */
uint32_t hl_price_depends(hl_segment *segment, uint32_t kind, hl_key name_hash);

/* Copies and memsets: from the device's facts alone. */
bool hl_price_is_physical(uint32_t kind);
void hl_price_physical(const hl_launch *launch, const hl_device_facts *facts, hl_price *price);

/* price_table.c. insert and learn: under table_lock, which they take. */
bool hl_price_table_find(hl_segment *segment, hl_key key, hl_price *price);
void hl_price_table_insert(hl_segment *segment, hl_key key, const hl_price *price, bool passing);
uint32_t hl_price_name_find(hl_segment *segment, hl_key name_hash); /* state word, 0: not known */
void hl_price_name_learn(hl_segment *segment, hl_key name_hash, uint32_t depends);

/* Finds the price, or a request for it that `devices` (bits) are told about: returns the request (one reference) and
 * holds the clock until it is answered. 0: *price holds. May wait (real back-pressure) when 4095 are on their way. */
uint32_t hl_price_want(hl_segment *segment, const hl_launch *launch, uint32_t devices, hl_price *price);
bool hl_price_request_done(hl_segment *segment, uint32_t request, hl_price *price);
void hl_price_request_drop(hl_segment *segment, uint32_t request);

#endif
