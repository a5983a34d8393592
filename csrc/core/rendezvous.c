/* Collectives: operations that start when the last rank has reached them and end for all together. See timeline.h.
 *
 * A rank counts in when its stream reaches the operation and its price is known, not when the host calls: what is
 * before it on the stream may still be unresolved. */
#include "clock.h"
#include "export.h"
#include "price_private.h"
#include "report.h"
#include "timeline_private.h"

#include <string.h>

static uint32_t *chain_of(hl_segment *segment, uint64_t group, uint64_t sequence)
{
    uint64_t name[2] = {group, sequence};
    return &segment->meeting_chains[hl_price_hash_bytes(name, sizeof name).low % HL_SEGMENT_MEETING_CHAINS];
}

static uint32_t find(hl_segment *segment, uint64_t group, uint64_t sequence)
{
    uint32_t index = *chain_of(segment, group, sequence);
    while (index && (segment->meetings[index].group != group || segment->meetings[index].sequence != sequence))
        index = segment->meetings[index].next_in_chain;
    return index;
}

/* Under the lock. 0: no room. */
static uint32_t make(hl_segment *segment, uint64_t group, uint64_t sequence, uint32_t ranks)
{
    uint32_t index = HL_TAKE(segment, meetings, HL_SEGMENT_MEETINGS), *chain = chain_of(segment, group, sequence);
    if (!index)
        return 0;
    hl_meeting *meeting = &segment->meetings[index];
    meeting->group = group;
    meeting->sequence = sequence;
    meeting->ranks = ranks;
    meeting->joined = meeting->arrived = meeting->present = meeting->devices = 0;
    meeting->ready_ns = meeting->duration_ns = 0;
    meeting->end_ns = HL_MARK_OPEN;
    meeting->next_in_chain = *chain;
    *chain = index;
    return index;
}

static void unlink_meeting(hl_segment *segment, uint32_t index)
{
    uint32_t *at = chain_of(segment, segment->meetings[index].group, segment->meetings[index].sequence);
    while (*at && *at != index)
        at = &segment->meetings[*at].next_in_chain;
    if (*at)
        *at = segment->meetings[index].next_in_chain;
}

/* In the rank's own call, so that a program whose ranks disagree ends in the rank that does, not in whoever resolves. */
static uint32_t join(hl_segment *segment, uint64_t group, uint64_t sequence, uint32_t ranks)
{
    hl_lock_acquire(&segment->meeting_lock);
    uint32_t index = find(segment, group, sequence), agreed = ranks;
    if (!index)
        index = make(segment, group, sequence, ranks);
    if (index) {
        hl_meeting *meeting = &segment->meetings[index];
        agreed = meeting->ranks;
        if (agreed == ranks) {
            meeting->present++;
            if (++meeting->joined == ranks)
                unlink_meeting(segment, index);
        }
    }
    hl_lock_release(&segment->meeting_lock);
    if (!index)
        hl_report_fatal("more than %u collectives wait for ranks that do not come: see whether a rank has died",
                        HL_SEGMENT_MEETINGS - 1);
    if (agreed != ranks)
        hl_report_fatal("the ranks of communicator 0x%lx do not agree on operation %lu: one says %u ranks, another %u",
                        (unsigned long)group, (unsigned long)sequence, ranks, agreed);
    return index;
}

void hl_rendezvous_arrive(hl_segment *segment, hl_operation *operation, uint32_t device, int64_t ready_ns, hl_news *news)
{
    hl_lock_acquire(&segment->meeting_lock);
    hl_meeting *meeting = &segment->meetings[operation->meeting];
    operation->arrived = true;
    meeting->devices |= 1u << device;
    if (ready_ns > meeting->ready_ns)
        meeting->ready_ns = ready_ns;
    if (operation->duration_ns > meeting->duration_ns)
        meeting->duration_ns = operation->duration_ns;
    if (++meeting->arrived == meeting->ranks) {
        meeting->end_ns = meeting->ready_ns + meeting->duration_ns;
        news->kicks |= meeting->devices;
    }
    hl_lock_release(&segment->meeting_lock);
}

bool hl_rendezvous_done(hl_segment *segment, hl_operation *operation, int64_t *end_ns)
{
    hl_lock_acquire(&segment->meeting_lock);
    *end_ns = segment->meetings[operation->meeting].end_ns;
    hl_lock_release(&segment->meeting_lock);
    return *end_ns != HL_MARK_OPEN;
}

/* Under the lock. */
static void leave(hl_segment *segment, uint32_t index)
{
    hl_meeting *meeting = &segment->meetings[index];
    if (--meeting->present)
        return;
    if (meeting->joined < meeting->ranks)
        unlink_meeting(segment, index);
    HL_GIVE(segment, meetings, index);
}

void hl_rendezvous_leave(hl_segment *segment, hl_operation *operation)
{
    hl_lock_acquire(&segment->meeting_lock);
    leave(segment, operation->meeting);
    hl_lock_release(&segment->meeting_lock);
}

/* Whoever it was that the others wait for, they now wait for ever; the no-progress report says for what. */
void hl_rendezvous_withdraw(hl_segment *segment, hl_operation *operation)
{
    hl_lock_acquire(&segment->meeting_lock);
    leave(segment, operation->meeting);
    hl_lock_release(&segment->meeting_lock);
}

void hl_rendezvous_put(hl_segment *segment, hl_stream_record *stream, uint64_t group, uint64_t sequence, uint32_t ranks,
                       const hl_launch *launch, int64_t gap_ns, int64_t extra_ns, int64_t issue_ns)
{
    if (!ranks)
        hl_report_fatal("a collective of 0 ranks was launched: please report this");
    hl_price price = {0};
    hl_operation operation = {.kind = ranks == 1 ? HL_OPERATION_LAUNCH : HL_OPERATION_RENDEZVOUS, .count = 1};
    operation.meeting = ranks == 1 ? 0 : join(segment, group, sequence, ranks);
    operation.gap_ns = gap_ns;
    operation.extra_ns = extra_ns;
    operation.issue_ns = issue_ns;
    operation.request = hl_price_want(segment, launch, 1u << stream->device, &price);
    operation.duration_ns = price.duration_ns;
    operation.unknown = price.coverage == HL_COVERAGE_UNKNOWN;
    memcpy(operation.coverage_ns, price.coverage_ns, sizeof price.coverage_ns);
    hl_timeline_put(segment, stream, &operation);
}

HL_EXPORT void hl_timeline_rendezvous(hl_stream handle, uint64_t group, uint64_t sequence, uint32_t ranks, const hl_launch *launch)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "collective");
    uint64_t capture = atomic_load(&stream->capture_id);
    if (capture)
        hl_graph_keep_rendezvous(capture, group, sequence, ranks, launch);
    else
        hl_rendezvous_put(segment, stream, group, sequence, ranks, launch, segment->facts[stream->device].launch_gap_ns, 0, 0);
}
