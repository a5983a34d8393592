/* From a launch to its price: by physics (copies), from the table, or by asking. See price.h. */
#include "price.h"

#include <string.h>

#include "clock.h"
#include "export.h"
#include "price_private.h"
#include "report.h"
#include "sys.h"

bool hl_price_is_physical(uint32_t kind) { return kind == HL_LAUNCH_COPY || kind == HL_LAUNCH_MEMSET; }

static int64_t bandwidth(const hl_launch *launch, const hl_device_facts *facts)
{
    if (launch->kind == HL_LAUNCH_MEMSET)
        return 2 * facts->copy_d2d_bytes_per_s; /* a copy inside the device moves each byte twice, a memset once */
    if (!strcmp(launch->name, "h2d"))
        return facts->copy_h2d_bytes_per_s;
    if (!strcmp(launch->name, "d2h"))
        return facts->copy_d2h_bytes_per_s;
    if (!strcmp(launch->name, "d2d"))
        return facts->copy_d2d_bytes_per_s;
    if (!strcmp(launch->name, "p2p"))
        /* Devices that cannot reach each other copy by way of the host's memory. */
        return facts->copy_p2p_bytes_per_s ? facts->copy_p2p_bytes_per_s : facts->copy_d2h_bytes_per_s;
    hl_report_fatal("a copy named '%s' was launched (known: h2d, d2h, d2d, p2p): please report this", launch->name);
}

void hl_price_physical(const hl_launch *launch, const hl_device_facts *facts, hl_price *price)
{
    int64_t bytes = launch->arg[0] > 0 ? launch->arg[0] : 0, rate = bandwidth(launch, facts);
    int64_t moving_ns = (int64_t)(((unsigned __int128)bytes * HL_NS_PER_S + (uint64_t)rate - 1) / (uint64_t)rate);
    *price = (hl_price){.duration_ns = facts->copy_latency_ns + moving_ns, .coverage = HL_COVERAGE_ANALYTICAL};
    price->coverage_ns[HL_COVERAGE_ANALYTICAL] = price->duration_ns;
}

static const hl_device_facts *facts_of(const hl_segment *segment, const hl_launch *launch)
{
    if (launch->device >= segment->device_count)
        hl_report_fatal("a launch on device %u, but this run has %u (see `--gpus`)", launch->device, segment->device_count);
    return &segment->facts[launch->device];
}

static hl_price_subject subject_of(hl_segment *segment, const hl_launch *launch)
{
    const hl_annotation *annotation = hl_annotation_get();
    facts_of(segment, launch);
    return (hl_price_subject){.kind = launch->kind,
                              .name_hash = hl_price_name_hash(launch),
                              .profile_hash = segment->devices[launch->device].profile_hash,
                              .arg = launch->arg,
                              .tokens = annotation->tokens,
                              .annotation_hash = annotation->hash};
}

static bool find(hl_segment *segment, const hl_price_subject *subject, hl_key *key, hl_price *price)
{
    *key = hl_price_key(subject, hl_price_depends(segment, subject->kind, subject->name_hash));
    return hl_price_table_find(segment, *key, price);
}

HL_EXPORT bool hl_price_find(const hl_launch *launch, hl_price *price)
{
    hl_segment *segment = hl_segment_need();
    if (hl_price_is_physical(launch->kind)) {
        hl_price_physical(launch, facts_of(segment, launch), price);
        return true;
    }
    hl_price_subject subject = subject_of(segment, launch);
    hl_key key;
    return find(segment, &subject, &key, price);
}

static uint32_t *chain_of(hl_segment *segment, hl_key key)
{
    return &segment->request_chains[key.high % HL_SEGMENT_REQUEST_CHAINS];
}

static uint32_t in_flight(hl_segment *segment, hl_key key)
{
    uint32_t index = *chain_of(segment, key);
    while (index && (segment->requests[index].key.low != key.low || segment->requests[index].key.high != key.high))
        index = segment->requests[index].next_in_chain;
    return index;
}

static void fill(hl_segment *segment, hl_request *request, const hl_launch *launch, const hl_price_subject *subject, hl_key key)
{
    const hl_annotation *annotation = hl_annotation_get();
    size_t length = strlen(launch->name);
    if (length >= sizeof request->name)
        length = sizeof request->name - 1;
    memcpy(request->name, launch->name, length);
    request->name[length] = 0;
    request->key = key;
    request->name_hash = subject->name_hash;
    request->annotation_hash = subject->annotation_hash;
    request->kind = launch->kind;
    request->device = launch->device;
    request->pid = atomic_load(&segment->owners[hl_segment_self()].pid);
    memcpy(request->arg, launch->arg, sizeof request->arg);
    /* GEMM and collectives get none: their key does not hold it, so their price may not depend on it. */
    bool annotated = launch->kind == HL_LAUNCH_KERNEL || launch->kind == HL_LAUNCH_STEP;
    request->tokens = annotated ? subject->tokens : 0;
    request->annotation_length = annotated ? annotation->length : 0;
    memcpy(request->annotation, annotation->text, request->annotation_length);
}

/* Under request_lock. 0: no room. */
static uint32_t enqueue(hl_segment *segment, const hl_launch *launch, const hl_price_subject *subject, hl_key key, uint32_t devices)
{
    uint32_t index = HL_TAKE(segment, requests, HL_SEGMENT_REQUESTS);
    if (!index)
        return 0;
    hl_request *request = &segment->requests[index];
    fill(segment, request, launch, subject, key);
    atomic_store(&request->devices, devices);
    atomic_store(&request->references, 2); /* the asker's and the service's */
    atomic_store(&request->state, HL_REQUEST_QUEUED);
    /* Queued before it can be shared: killed in between, it is answered for nobody; the other way round it would be
     * waited for and never answered. */
    uint32_t tail = atomic_load(&segment->fifo_tail);
    segment->fifo[tail % HL_SEGMENT_REQUESTS] = index;
    atomic_store(&segment->fifo_tail, tail + 1);
    request->next_in_chain = *chain_of(segment, key);
    *chain_of(segment, key) = index;
    atomic_fetch_add_explicit(&segment->price_counts.requests, 1, memory_order_relaxed);
    return index;
}

uint32_t hl_price_want(hl_segment *segment, const hl_launch *launch, uint32_t devices, hl_price *price)
{
    if (hl_price_is_physical(launch->kind)) {
        hl_price_physical(launch, facts_of(segment, launch), price);
        return 0;
    }
    hl_price_subject subject = subject_of(segment, launch);
    hl_key key;
    if (find(segment, &subject, &key, price))
        return 0;
    for (;;) {
        uint32_t seen = atomic_load(&segment->generation);
        /* Before the lock: from here to the answer no jump may be made, also not while the service has the lock. */
        hl_clock_hold();
        hl_lock_acquire(&segment->request_lock);
        bool found = find(segment, &subject, &key, price); /* answered, or its name learnt, in between */
        uint32_t index = found ? 0 : in_flight(segment, key);
        bool shared = index != 0;
        if (shared) {
            atomic_fetch_add(&segment->requests[index].references, 1);
            atomic_fetch_or(&segment->requests[index].devices, devices);
        } else if (!found) {
            index = enqueue(segment, launch, &subject, key, devices);
        }
        hl_lock_release(&segment->request_lock);
        if (index && !shared) {
            atomic_fetch_add(&segment->requests_posted, 1);
            hl_sys_futex_wake(&segment->requests_posted, 1);
            return index; /* its hold goes with the answer */
        }
        hl_clock_release();
        if (found || shared)
            return index;
        hl_clock_wait_word(&segment->generation, seen, HL_NEVER_NS, HL_WAIT_PRICE);
    }
}

bool hl_price_request_done(hl_segment *segment, uint32_t request, hl_price *price)
{
    if (atomic_load(&segment->requests[request].state) != HL_REQUEST_ANSWERED)
        return false;
    *price = segment->requests[request].price;
    return true;
}

void hl_price_request_drop(hl_segment *segment, uint32_t request)
{
    if (atomic_fetch_sub(&segment->requests[request].references, 1) == 1) {
        atomic_store(&segment->requests[request].state, HL_REQUEST_FREE);
        HL_GIVE(segment, requests, request);
    }
}
