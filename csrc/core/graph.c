/* Graphs: recipes of launches. See timeline.h.
 *
 * A graph is kept as parts that run one after the other. Most are one run of launches, whose durations simply add up, so
 * equal launches are kept once with a count, and what does not depend on the batch is summed once. Keeping CUDA's
 * directed graph was rejected for now: engines capture one stream, and its side branches overlap little. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "export.h"
#include "price_private.h"
#include "report.h"
#include "timeline.h"
#include "timeline_private.h"

#define CAPTURE_STREAMS 64

typedef struct counted_launch {
    hl_launch launch;
    uint32_t count;
    bool summed; /* in its part's static sum */
} counted_launch;

typedef enum part_kind { PART_RUN, PART_RENDEZVOUS, PART_CALLBACK } part_kind;

typedef struct part {
    part_kind kind;
    /* PART_RUN */
    counted_launch *launches;
    uint32_t different, room, nodes;
    hl_operation sum; /* of the launches that are summed: count, unknown, duration_ns, coverage_ns */
    /* PART_RENDEZVOUS */
    hl_launch collective;
    uint64_t group, sequence;
    uint32_t ranks;
    /* PART_CALLBACK */
    void (*fn)(void *);
    void *arg;
} part;

struct hl_graph {
    _Atomic uint32_t references;
    _Atomic uint64_t replays;
    pthread_mutex_t mutex;   /* the sums */
    uint32_t names_changed;  /* what the sums were made with */
    uint32_t nodes, parts, room;
    part *part;
};

typedef struct capture {
    struct capture *next;
    uint64_t id;
    hl_graph *graph;
    uint32_t streams;
    hl_stream stream[CAPTURE_STREAMS]; /* [0]: where it began and must end */
} capture;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static capture *captures;
static uint32_t captures_made;

void hl_graph_forget(void)
{
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    captures = NULL;
}

static void *grown(void *table, size_t count, size_t size)
{
    void *bigger = realloc(table, count * size);
    if (!bigger)
        hl_report_fatal("the host has no memory for a graph of %zu entries", count);
    return bigger;
}

static part *new_part(hl_graph *graph, part_kind kind)
{
    if (graph->parts == graph->room) {
        graph->room = graph->room ? 2 * graph->room : 4;
        graph->part = grown(graph->part, graph->room, sizeof *graph->part);
    }
    part *made = &graph->part[graph->parts++];
    *made = (part){.kind = kind};
    return made;
}

static bool same(const hl_launch *a, const hl_launch *b)
{
    return a->kind == b->kind && a->device == b->device && a->name == b->name && !memcmp(a->arg, b->arg, sizeof a->arg);
}

static void add_launch(hl_graph *graph, const hl_launch *launch, uint32_t count)
{
    part *run = graph->parts ? &graph->part[graph->parts - 1] : NULL;
    if (!run || run->kind != PART_RUN)
        run = new_part(graph, PART_RUN);
    graph->nodes += count;
    run->nodes += count;
    /* From the back: a layer repeats what the layer before it did. */
    for (uint32_t i = run->different; i-- > 0;)
        if (same(&run->launches[i].launch, launch)) {
            run->launches[i].count += count;
            return;
        }
    if (run->different == run->room) {
        run->room = run->room ? 2 * run->room : 16;
        run->launches = grown(run->launches, run->room, sizeof *run->launches);
    }
    run->launches[run->different++] = (counted_launch){.launch = *launch, .count = count};
}

static void add_rendezvous(hl_graph *graph, uint64_t group, uint64_t sequence, uint32_t ranks, const hl_launch *launch)
{
    part *made = new_part(graph, PART_RENDEZVOUS);
    made->collective = *launch;
    made->group = group;
    made->sequence = sequence;
    made->ranks = ranks;
    graph->nodes++;
}

static void add_callback(hl_graph *graph, void (*fn)(void *), void *arg)
{
    part *made = new_part(graph, PART_CALLBACK);
    made->fn = fn;
    made->arg = arg;
    graph->nodes++;
}

/* Under the mutex. */
static capture *find(uint64_t id)
{
    capture *each = captures;
    while (each && each->id != id)
        each = each->next;
    return each;
}

static capture *need(uint64_t id)
{
    capture *found = find(id);
    if (!found)
        hl_report_fatal("a stream belongs to a capture that has ended: please report this");
    return found;
}

void hl_graph_keep_launch(uint64_t id, const hl_launch *launch)
{
    pthread_mutex_lock(&mutex);
    add_launch(need(id)->graph, launch, 1);
    pthread_mutex_unlock(&mutex);
}

void hl_graph_keep_rendezvous(uint64_t id, uint64_t group, uint64_t sequence, uint32_t ranks, const hl_launch *launch)
{
    pthread_mutex_lock(&mutex);
    add_rendezvous(need(id)->graph, group, sequence, ranks, launch);
    pthread_mutex_unlock(&mutex);
}

void hl_graph_keep_callback(uint64_t id, void (*fn)(void *), void *arg)
{
    pthread_mutex_lock(&mutex);
    add_callback(need(id)->graph, fn, arg);
    pthread_mutex_unlock(&mutex);
}

static void join(capture *to, hl_stream_record *stream, hl_stream handle)
{
    if (to->streams == CAPTURE_STREAMS)
        hl_report_fatal("a graph capture spans more than %d streams", CAPTURE_STREAMS);
    to->stream[to->streams++] = handle;
    atomic_store(&stream->capture_id, to->id);
}

bool hl_graph_wait_event(hl_stream_record *stream, hl_stream handle, hl_event_record *event)
{
    uint64_t of_stream = atomic_load(&stream->capture_id), of_event = atomic_load(&event->capture_id);
    if (!of_stream && !of_event)
        return false;
    pthread_mutex_lock(&mutex);
    capture *from = of_event ? find(of_event) : NULL;
    if (from && !of_stream)
        join(from, stream, handle);
    bool foreign = of_stream && (!from || of_event != of_stream);
    pthread_mutex_unlock(&mutex);
    if (foreign) /* CUDA ends the capture with an error (isolation); the graph here holds the launches all the same */
        hl_report_event("graph-capture", "a capturing stream waits for an event from outside its capture: not in the graph");
    return of_stream || from;
}

HL_EXPORT bool hl_graph_capturing(hl_stream stream) { return hl_graph_capture_id(stream) != 0; }

HL_EXPORT uint64_t hl_graph_capture_id(hl_stream stream)
{
    return atomic_load(&hl_timeline_stream_of(hl_segment_need(), stream, "capture query")->capture_id);
}

HL_EXPORT int hl_graph_begin(hl_stream handle)
{
    hl_stream_record *stream = hl_timeline_stream_of(hl_segment_need(), handle, "capture");
    if (atomic_load(&stream->capture_id))
        return -EALREADY;
    capture *new = grown(NULL, 1, sizeof *new);
    *new = (capture){.graph = grown(NULL, 1, sizeof(hl_graph))};
    *new->graph = (hl_graph){.references = 1, .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_mutex_lock(&mutex);
    new->id = (uint64_t)hl_segment_self() << 32 | ++captures_made;
    new->next = captures;
    captures = new;
    join(new, stream, handle);
    pthread_mutex_unlock(&mutex);
    return 0;
}

HL_EXPORT int hl_graph_end(hl_stream handle, hl_graph **graph)
{
    hl_segment *segment = hl_segment_need();
    uint64_t id = hl_graph_capture_id(handle);
    pthread_mutex_lock(&mutex);
    capture *ended = id ? find(id) : NULL;
    if (!ended || ended->stream[0] != handle) {
        pthread_mutex_unlock(&mutex);
        return -EINVAL;
    }
    capture **at = &captures;
    while (*at != ended)
        at = &(*at)->next;
    *at = ended->next;
    for (uint32_t i = 0; i < ended->streams; i++)
        if (hl_timeline_stream_valid(ended->stream[i]))
            atomic_store(&hl_timeline_stream_of(segment, ended->stream[i], "capture end")->capture_id, 0);
    pthread_mutex_unlock(&mutex);
    if (graph)
        *graph = ended->graph;
    else
        hl_graph_release(ended->graph);
    free(ended);
    return 0;
}

HL_EXPORT uint32_t hl_graph_nodes(const hl_graph *graph) { return graph->nodes; }

HL_EXPORT void hl_graph_retain(hl_graph *graph) { atomic_fetch_add(&graph->references, 1); }

HL_EXPORT void hl_graph_release(hl_graph *graph)
{
    if (!graph || atomic_fetch_sub(&graph->references, 1) != 1)
        return;
    for (uint32_t i = 0; i < graph->parts; i++)
        free(graph->part[i].launches);
    free(graph->part);
    free(graph);
}

static void add_price(hl_operation *sum, const hl_price *price, uint32_t count)
{
    sum->count += count;
    sum->unknown += price->coverage == HL_COVERAGE_UNKNOWN ? count : 0;
    sum->duration_ns += price->duration_ns * count;
    for (int i = 0; i < HL_COVERAGES; i++)
        sum->coverage_ns[i] += price->coverage_ns[i] * count;
}

static bool depends_on_nothing(hl_segment *segment, const hl_launch *launch)
{
    return launch->kind != HL_LAUNCH_STEP &&
           (launch->kind != HL_LAUNCH_KERNEL || !hl_price_depends(segment, launch->kind, hl_price_name_hash(launch)));
}

static void forget_sums(hl_graph *graph)
{
    for (uint32_t i = 0; i < graph->parts; i++) {
        part *run = &graph->part[i];
        memset(&run->sum, 0, sizeof run->sum);
        for (uint32_t j = 0; j < run->different; j++)
            run->launches[j].summed = false;
    }
}

/* Everything of the run that has a price now, in one operation; missing: what has none, as indices. */
static uint32_t gather(hl_segment *segment, hl_graph *graph, part *run, hl_operation *sum, uint32_t *missing)
{
    uint32_t count = 0;
    pthread_mutex_lock(&graph->mutex);
    uint32_t names_changed = atomic_load(&segment->names_changed);
    if (graph->names_changed != names_changed)
        forget_sums(graph);
    graph->names_changed = names_changed;
    for (uint32_t i = 0; i < run->different; i++) {
        hl_price price;
        counted_launch *each = &run->launches[i];
        if (each->summed)
            continue;
        if (!hl_price_find(&each->launch, &price))
            missing[count++] = i;
        else if (!depends_on_nothing(segment, &each->launch))
            add_price(sum, &price, each->count);
        else {
            add_price(&run->sum, &price, each->count);
            each->summed = true;
        }
    }
    sum->count += run->sum.count;
    sum->unknown += run->sum.unknown;
    sum->duration_ns += run->sum.duration_ns;
    for (int i = 0; i < HL_COVERAGES; i++)
        sum->coverage_ns[i] += run->sum.coverage_ns[i];
    pthread_mutex_unlock(&graph->mutex);
    return count;
}

static void put_unpriced(hl_segment *segment, hl_stream_record *stream, const counted_launch *each, hl_operation operation)
{
    hl_price price;
    operation.request = hl_price_want(segment, &each->launch, 1u << stream->device, &price);
    if (operation.request)
        operation.count = each->count;
    else
        add_price(&operation, &price, each->count);
    hl_timeline_put(segment, stream, &operation);
}

/* empty: an operation without launches, with the gaps and the instant of this run. */
static void launch_run(hl_segment *segment, hl_graph *graph, part *run, hl_stream_record *stream, hl_operation empty)
{
    hl_operation sum = empty;
    uint32_t few[64], *missing = run->different <= 64 ? few : grown(NULL, run->different, sizeof *missing);
    uint32_t count = gather(segment, graph, run, &sum, missing);
    if (sum.count) {
        hl_timeline_put(segment, stream, &sum);
        empty.gap_ns = empty.extra_ns = 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        put_unpriced(segment, stream, &run->launches[missing[i]], empty);
        empty.gap_ns = empty.extra_ns = 0;
    }
    if (missing != few)
        free(missing);
}

/* A graph launched on a capturing stream becomes part of the one that is being captured. */
static void nest(hl_graph *graph, uint64_t id)
{
    pthread_mutex_lock(&mutex);
    hl_graph *into = need(id)->graph;
    for (uint32_t i = 0; i < graph->parts; i++) {
        part *each = &graph->part[i];
        if (each->kind == PART_RENDEZVOUS)
            add_rendezvous(into, each->group, each->sequence, each->ranks, &each->collective);
        else if (each->kind == PART_CALLBACK)
            add_callback(into, each->fn, each->arg);
        else
            for (uint32_t j = 0; j < each->different; j++)
                add_launch(into, &each->launches[j].launch, each->launches[j].count);
    }
    pthread_mutex_unlock(&mutex);
}

/* The captured sequence number stands for one replay only; ranks replay their graphs equally often, in one order. */
static uint64_t sequence_of(uint64_t captured, uint64_t replay)
{
    uint64_t name[2] = {captured, replay};
    return hl_price_hash_bytes(name, sizeof name).low;
}

HL_EXPORT void hl_graph_launch(hl_graph *graph, hl_stream handle)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "graph launch");
    uint64_t id = atomic_load(&stream->capture_id);
    if (id) {
        nest(graph, id);
        return;
    }
    const hl_device_facts *facts = &segment->facts[stream->device];
    uint64_t replay = atomic_fetch_add(&graph->replays, 1) + 1;
    int64_t issue_ns = hl_clock_now_ns(); /* one launch: what follows in the graph never waits for the host */
    for (uint32_t i = 0; i < graph->parts; i++) {
        part *each = &graph->part[i];
        int64_t gap_ns = i ? 0 : facts->launch_gap_ns;
        int64_t before_first_ns = i ? facts->graph_gap_ns : facts->graph_launch_ns;
        switch (each->kind) {
        case PART_RUN:
            launch_run(segment, graph, each, stream,
                       (hl_operation){.kind = HL_OPERATION_LAUNCH,
                                      .issue_ns = issue_ns,
                                      .gap_ns = gap_ns,
                                      .extra_ns = before_first_ns + (each->nodes - 1) * facts->graph_gap_ns});
            break;
        case PART_RENDEZVOUS:
            hl_rendezvous_put(segment, stream, each->group, sequence_of(each->sequence, replay), each->ranks, &each->collective,
                              gap_ns, before_first_ns, issue_ns);
            break;
        case PART_CALLBACK: hl_timeline_host_callback(handle, each->fn, each->arg); break;
        }
    }
}
