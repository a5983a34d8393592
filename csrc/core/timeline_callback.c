/* Host callbacks: host functions that a stream calls when it reaches them (cudaLaunchHostFunc).
 *
 * One helper thread a process, made at the first callback, runs them one after the other in the order of their virtual
 * instants (ties: in the order of their calls), as CUDA's does. Running a callback in the thread that resolves the stream
 * was rejected: that may be another process. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "clock.h"
#include "export.h"
#include "page.h"
#include "report.h"
#include "timeline.h"
#include "timeline_private.h"

typedef struct callback {
    struct callback *next;
    void (*fn)(void *);
    void *arg;
    uint32_t start, end; /* marks */
    uint32_t device;
} callback;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* held for a list operation only */
static callback *first, **last = &first;
static bool helper_runs;

static void post(hl_segment *segment)
{
    _Atomic uint32_t *word = &segment->owners[hl_segment_self()].callbacks_posted;
    atomic_fetch_add(word, 1);
    hl_clock_wake_word(word);
}

/* The reached callback with the earliest instant; NULL when none is reached. any: there is one at all. */
static callback *earliest(hl_segment *segment, int64_t *instant_ns, bool *any)
{
    callback *best = NULL;
    pthread_mutex_lock(&mutex);
    *any = first != NULL;
    for (callback *each = first; each; each = each->next) {
        int64_t start_ns = atomic_load(&segment->marks[each->start].instant_ns);
        if (start_ns != HL_MARK_OPEN && (!best || start_ns < *instant_ns)) {
            best = each;
            *instant_ns = start_ns;
        }
    }
    pthread_mutex_unlock(&mutex);
    return best;
}

static void take_out(callback *done)
{
    pthread_mutex_lock(&mutex);
    callback **at = &first;
    while (*at != done)
        at = &(*at)->next;
    *at = done->next;
    if (last == &done->next)
        last = at;
    pthread_mutex_unlock(&mutex);
}

static void run(hl_segment *segment, callback *due)
{
    hl_news news = {0};
    due->fn(due->arg);
    take_out(due);
    hl_mark_set(segment, due->end, hl_clock_now_ns(), &news);
    hl_timeline_kick(segment, news.kicks);
    hl_mark_drop(segment, due->start);
    hl_mark_drop(segment, due->end);
    free(due);
}

static void *helper(void *unused)
{
    (void)unused;
    hl_segment *segment = hl_segment_need();
    _Atomic uint32_t *posted = &segment->owners[hl_segment_self()].callbacks_posted;
    for (;;) {
        uint32_t seen = atomic_load(&segment->generation), seen_posted = atomic_load(posted);
        int64_t instant_ns = 0;
        bool any;
        callback *due = earliest(segment, &instant_ns, &any);
        if (due && instant_ns <= hl_clock_now_ns())
            run(segment, due);
        else if (due) /* another may be reached before it */
            hl_clock_wait_word(&segment->generation, seen, instant_ns, HL_WAIT_DEVICE);
        else if (any)
            hl_clock_wait_word(&segment->generation, seen, HL_NEVER_NS, HL_WAIT_DEVICE);
        else
            hl_clock_wait_word(posted, seen_posted, HL_NEVER_NS, HL_WAIT_DEVICE);
    }
    return NULL;
}

/* Under the mutex. The program's signals are not the helper's business. */
static void start_helper(void)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGABRT);
    sigdelset(&all, SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, helper, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        hl_report_fatal("cannot start the thread that runs stream callbacks (error %d): raise the limit on threads", error);
    pthread_detach(thread);
    helper_runs = true;
}

void hl_timeline_forget(void)
{
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    first = NULL;
    last = &first;
    helper_runs = false;
}

HL_EXPORT void hl_timeline_host_callback(hl_stream handle, void (*fn)(void *), void *arg)
{
    hl_segment *segment = hl_segment_need();
    hl_stream_record *stream = hl_timeline_stream_of(segment, handle, "host callback");
    uint64_t capture = atomic_load(&stream->capture_id);
    if (capture) {
        hl_graph_keep_callback(capture, fn, arg);
        return;
    }
    callback *new = malloc(sizeof *new);
    if (!new)
        hl_report_fatal("the host has no memory for a stream callback");
    *new = (callback){.fn = fn, .arg = arg, .device = stream->device};
    new->start = hl_mark_make(segment, 2, 0);
    new->end = hl_mark_make(segment, 2, 1u << stream->device);
    hl_operation operation = {.kind = HL_OPERATION_CALLBACK, .mark = new->start, .mark_end = new->end};
    pthread_mutex_lock(&mutex);
    *last = new;
    last = &new->next;
    if (!helper_runs)
        start_helper();
    pthread_mutex_unlock(&mutex);
    hl_timeline_put(segment, stream, &operation);
    post(segment);
}
