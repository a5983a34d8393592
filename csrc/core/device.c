/* Facts of the virtual devices: written once by the launcher, read by everybody. See device.h. */
#include "device.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "export.h"
#include "price_private.h"
#include "segment_private.h"

HL_EXPORT uint32_t hl_device_count(void)
{
    hl_segment *segment = hl_segment_get();
    return segment ? segment->device_count : 0;
}

HL_EXPORT const hl_device_facts *hl_device_facts_of(uint32_t device)
{
    hl_segment *segment = hl_segment_get();
    return segment && device < segment->device_count ? &segment->facts[device] : NULL;
}

static bool plausible(const hl_device_facts *facts)
{
    return facts->name[0] && facts->profile[0] && facts->total_memory_bytes > 0 && facts->context_bytes >= 0 &&
           facts->stream_bytes >= 0 && facts->first_kernel_bytes >= 0 && facts->kernel_code_bytes >= 0 &&
           facts->cublas_bytes >= 0 && facts->graph_bytes >= 0 && facts->graph_node_bytes >= 0 &&
           facts->copy_h2d_bytes_per_s > 0 && facts->copy_d2h_bytes_per_s > 0 && facts->copy_d2d_bytes_per_s > 0 &&
           facts->copy_p2p_bytes_per_s >= 0 && facts->nvlink_links >= 0 && facts->fp32_per_fp64 > 0 &&
           facts->copy_latency_ns >= 0 && facts->launch_gap_ns >= 0 && facts->graph_gap_ns >= 0 &&
           facts->graph_launch_ns >= 0;
}

HL_EXPORT int hl_device_segment_create(const char *run_dir, const hl_device_facts *facts, uint32_t count)
{
    if (!run_dir || !facts || count == 0 || count > HL_DEVICES_MAX)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++)
        if (!plausible(&facts[i]))
            return -EINVAL;
    hl_segment *segment = NULL;
    int error = hl_segment_create(run_dir, &segment);
    if (error)
        return error;
    segment->version = HL_SEGMENT_VERSION;
    segment->size_bytes = sizeof *segment;
    segment->device_count = count;
    for (uint32_t i = 0; i < count; i++) {
        segment->facts[i] = facts[i];
        segment->facts[i].name[sizeof facts->name - 1] = 0;
        segment->facts[i].profile[sizeof facts->profile - 1] = 0;
        segment->facts[i].driver_text[sizeof facts->driver_text - 1] = 0;
        segment->devices[i].profile_hash = hl_price_hash_text(segment->facts[i].profile).low;
    }
    atomic_thread_fence(memory_order_seq_cst);
    segment->magic = HL_SEGMENT_MAGIC;
    munmap(segment, sizeof *segment);
    return 0;
}
