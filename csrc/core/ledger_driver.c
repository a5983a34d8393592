/* What the driver and cuBLAS take of a device's memory for themselves. See ledger.h.
 *
 * Why: an engine sizes its KV cache from the free memory that cudaMemGetInfo reports, and on a card that falls with no
 * allocation of the program's: streams, the code of kernels (loaded when first launched), cuBLAS's own workspaces and
 * instantiated graphs live there. On an H100 that is 230 MiB before vLLM counts its blocks, and 370 MiB more for graphs.
 *
 * How much each costs is the device profile's; here is only when. Sums are kept exactly and charged in whole granules,
 * as cuMemGetInfo shows them: five streams moved it by one granule, twelve further kernels by none.
 *
 * Destroyed streams and unloaded kernels stay charged: a program that makes one again gets the old one's memory (not
 * observed on a card; it keeps a loop that creates and destroys from growing). Graphs give theirs back. */
#include "ledger.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "export.h"
#include "report.h"
#include "segment_private.h"

#define GRANULE_BYTES (INT64_C(2) << 20)

typedef struct taken {
    int64_t streams, streams_most, kernels, graphs, graph_nodes;
    int64_t charged_bytes;
    _Atomic bool product; /* cuBLAS has computed one */
} taken;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static taken devices[HL_DEVICES_MAX]; /* of this process */

static int64_t wanted_bytes(const hl_device_facts *facts, const taken *of)
{
    int64_t bytes = of->streams_most * facts->stream_bytes + of->kernels * facts->kernel_code_bytes +
                    of->graphs * facts->graph_bytes + of->graph_nodes * facts->graph_node_bytes;

    if (of->kernels || of->product)
        bytes += facts->first_kernel_bytes;
    if (of->product)
        bytes += facts->cublas_bytes;
    return bytes / GRANULE_BYTES * GRANULE_BYTES;
}

/* Under the mutex. */
static void add(taken *of, hl_ledger_driver_part part, int64_t count)
{
    switch (part) {
    case HL_DRIVER_STREAM:
        of->streams += count;
        if (of->streams > of->streams_most)
            of->streams_most = of->streams;
        return;
    case HL_DRIVER_KERNEL: of->kernels += count; return;
    case HL_DRIVER_PRODUCT: of->product = true; return;
    case HL_DRIVER_GRAPH: of->graphs += count; return;
    case HL_DRIVER_GRAPH_NODE: of->graph_nodes += count; return;
    }
    hl_report_fatal("the driver's memory was asked for part %d, which there is not: please report this", (int)part);
}

HL_EXPORT int hl_ledger_driver_take(uint32_t device, hl_ledger_driver_part part, int64_t count)
{
    const hl_device_facts *facts = hl_device_facts_of(device);
    int error = 0;

    if (!facts || count < 0)
        return -EINVAL;
    taken *of = &devices[device];
    if (part == HL_DRIVER_PRODUCT && atomic_load(&of->product)) /* asked at every one */
        return 0;
    pthread_mutex_lock(&mutex);
    taken before = *of;
    add(of, part, count);
    int64_t more_bytes = wanted_bytes(facts, of) - of->charged_bytes;
    if (more_bytes > 0)
        error = hl_ledger_charge(device, (size_t)more_bytes);
    if (error)
        *of = before;
    else if (more_bytes > 0)
        of->charged_bytes += more_bytes;
    pthread_mutex_unlock(&mutex);
    return error;
}

HL_EXPORT void hl_ledger_driver_give(uint32_t device, hl_ledger_driver_part part, int64_t count)
{
    const hl_device_facts *facts = hl_device_facts_of(device);

    if (!facts)
        return;
    pthread_mutex_lock(&mutex);
    taken *of = &devices[device];
    add(of, part, -count);
    if (of->streams < 0 || of->graphs < 0 || of->graph_nodes < 0)
        hl_report_fatal("more of the driver's memory was given back to device %u than this process had: please report "
                        "this", device);
    int64_t less_bytes = of->charged_bytes - wanted_bytes(facts, of);
    if (less_bytes > 0) {
        hl_ledger_discharge(device, (size_t)less_bytes);
        of->charged_bytes -= less_bytes;
    }
    pthread_mutex_unlock(&mutex);
}

/* A new segment, or the child of a fork: nothing is charged there yet, and another thread may have held the mutex. */
void hl_ledger_driver_forget(void)
{
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    memset(devices, 0, sizeof devices);
}
