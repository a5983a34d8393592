/* The pricing service's side of price.h: take a request, answer it. Its process is no participant, so it takes a lock
 * only while a request is outstanding, which holds the clock: see the rules in segment.h. */
#include <string.h>

#include "clock.h"
#include "export.h"
#include "price_private.h"
#include "report.h"
#include "segment_private.h"
#include "sys.h"

static bool any_queued(hl_segment *segment) { return atomic_load(&segment->fifo_head) != atomic_load(&segment->fifo_tail); }

static uint32_t pop(hl_segment *segment)
{
    uint32_t index = 0;
    if (!any_queued(segment))
        return 0;
    hl_lock_acquire(&segment->request_lock);
    uint32_t head = atomic_load(&segment->fifo_head);
    if (head != atomic_load(&segment->fifo_tail)) {
        index = segment->fifo[head % HL_SEGMENT_REQUESTS];
        atomic_store(&segment->requests[index].state, HL_REQUEST_TAKEN);
        atomic_store(&segment->fifo_head, head + 1);
    }
    hl_lock_release(&segment->request_lock);
    return index;
}

HL_EXPORT bool hl_price_take(hl_price_request *request, int timeout_ms)
{
    hl_segment *segment = hl_segment_need();
    int64_t give_up_ns = hl_clock_real_ns() + timeout_ms * HL_NS_PER_MS;
    uint32_t index;
    for (;;) {
        uint32_t seen = atomic_load(&segment->requests_posted);
        index = pop(segment);
        if (index)
            break;
        int64_t left_ns = give_up_ns - hl_clock_real_ns();
        if (left_ns <= 0)
            return false;
        hl_sys_futex_wait(&segment->requests_posted, seen, left_ns);
    }
    const hl_request *from = &segment->requests[index];
    request->index = index;
    request->kind = from->kind;
    request->device = from->device;
    request->pid = from->pid;
    request->tokens = from->tokens;
    request->annotation_length = from->annotation_length;
    memcpy(request->arg, from->arg, sizeof request->arg);
    memcpy(request->name, from->name, strlen(from->name) + 1);
    memcpy(request->annotation, from->annotation, from->annotation_length);
    return true;
}

static hl_price checked(const hl_price *price, const char *name)
{
    hl_price good = *price;
    int64_t sum_ns = 0;
    bool sane = good.duration_ns >= 0 && good.coverage < HL_COVERAGES;
    for (int i = 0; i < HL_COVERAGES; i++) {
        sane = sane && good.coverage_ns[i] >= 0;
        sum_ns += good.coverage_ns[i];
    }
    if (!sane || sum_ns != good.duration_ns)
        hl_report_fatal("the predictor's price of '%s' is malformed: %ld ns, of which its coverage explains %ld ns", name,
                        (long)good.duration_ns, (long)sum_ns);
    good.depends &= HL_DEPENDS_TOKENS | HL_DEPENDS_BATCH;
    return good;
}

/* Under request_lock. */
static void unlink_request(hl_segment *segment, uint32_t index)
{
    uint32_t *at = &segment->request_chains[segment->requests[index].key.high % HL_SEGMENT_REQUEST_CHAINS];
    while (*at && *at != index)
        at = &segment->requests[*at].next_in_chain;
    if (*at)
        *at = segment->requests[index].next_in_chain;
}

/* Learning a name changes the key of its launches. In one piece for those that ask under the lock: between the steps
 * they would find neither the price nor, by its new key, the request in flight, and ask a second time. */
static void publish(hl_segment *segment, uint32_t index)
{
    hl_request *request = &segment->requests[index];
    hl_lock_acquire(&segment->request_lock);
    if (request->kind == HL_LAUNCH_KERNEL)
        hl_price_name_learn(segment, request->name_hash, request->price.depends);
    uint32_t depends = hl_price_depends(segment, request->kind, request->name_hash);
    hl_price_subject subject = {.kind = request->kind,
                                .name_hash = request->name_hash,
                                .profile_hash = segment->devices[request->device].profile_hash,
                                .arg = request->arg,
                                .tokens = request->tokens,
                                .annotation_hash = request->annotation_hash};
    hl_price_table_insert(segment, hl_price_key(&subject, depends), &request->price, depends & HL_DEPENDS_BATCH);
    unlink_request(segment, index);
    hl_lock_release(&segment->request_lock);
}

HL_EXPORT void hl_price_answer(uint32_t index, const hl_price *price)
{
    hl_segment *segment = hl_segment_need();
    if (index == 0 || index >= HL_SEGMENT_REQUESTS || atomic_load(&segment->requests[index].state) != HL_REQUEST_TAKEN)
        hl_report_fatal("request %u was answered, but it is not being priced: answer each request once", index);
    hl_request *request = &segment->requests[index];
    request->price = checked(price, request->name);
    publish(segment, index);
    if (request->price.coverage == HL_COVERAGE_UNKNOWN) {
        atomic_fetch_add(&segment->price_counts.unknown_answers, 1);
        hl_report_event(request->kind == HL_LAUNCH_KERNEL ? "unknown-kernel" : "unknown-launch", request->name);
    }
    int32_t pid = request->pid;
    atomic_store(&request->state, HL_REQUEST_ANSWERED);
    uint32_t devices = atomic_load(&request->devices);
    hl_price_request_drop(segment, index);
    hl_timeline_kick(segment, devices);
    hl_segment_announce(segment); /* who waits for room among the requests */
    atomic_fetch_add(&segment->price_counts.answers, 1); /* last: until here the launch holds the clock */
    hl_clock_release_for(pid);
}

HL_EXPORT uint64_t hl_price_outstanding(void)
{
    hl_segment *segment = hl_segment_get();
    if (!segment)
        return 0;
    uint64_t answers = atomic_load(&segment->price_counts.answers); /* first: an answer between the two counts as none */
    uint64_t requests = atomic_load(&segment->price_counts.requests);
    return requests > answers ? requests - answers : 0;
}

HL_EXPORT void hl_price_serve(int32_t pid)
{
    hl_segment *segment = hl_segment_need();
    atomic_store(&segment->service_pid, pid);
    bool outstanding = atomic_load(&segment->price_counts.requests) != atomic_load(&segment->price_counts.answers);
    if (!pid || !outstanding)
        return;
    hl_lock_acquire(&segment->request_lock);
    for (uint32_t i = 1; i <= atomic_load(&segment->requests_pool.high); i++) {
        if (atomic_load(&segment->requests[i].state) != HL_REQUEST_TAKEN)
            continue;
        uint32_t tail = atomic_load(&segment->fifo_tail);
        segment->fifo[tail % HL_SEGMENT_REQUESTS] = i;
        atomic_store(&segment->requests[i].state, HL_REQUEST_QUEUED);
        atomic_store(&segment->fifo_tail, tail + 1);
    }
    hl_lock_release(&segment->request_lock);
    hl_timeline_kick(segment, (1u << segment->device_count) - 1); /* answered, but killed before it said so */
}

HL_EXPORT void hl_price_statistics(hl_price_totals *totals)
{
    hl_segment *segment = hl_segment_need();
    hl_price_counts *counts = &segment->price_counts;
    *totals = (hl_price_totals){.requests = atomic_load(&counts->requests),
                                .answers = atomic_load(&counts->answers),
                                .unknown_answers = atomic_load(&counts->unknown_answers),
                                .evictions = atomic_load(&counts->evictions),
                                .lasting_evictions = atomic_load(&counts->lasting_evictions),
                                .names = atomic_load(&segment->names_used),
                                .service_pid = atomic_load(&segment->service_pid)};
}
