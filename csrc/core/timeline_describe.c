/* What unresolved streams wait for, in words: the part of the no-progress report that the clock cannot know.
 *
 * Must take no lock: it is asked when somebody may be stuck with one, and by processes that must not take any. */
#include <stdarg.h>
#include <stdio.h>

#include "export.h"
#include "timeline.h"
#include "timeline_private.h"

typedef struct sentence {
    char *text;
    uint32_t size, length;
} sentence;

__attribute__((format(printf, 2, 3))) static void say(sentence *out, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int count = vsnprintf(out->text + out->length, out->size - out->length, format, arguments);
    va_end(arguments);
    if (count > 0)
        out->length += (uint32_t)count < out->size - out->length ? (uint32_t)count : out->size - out->length - 1;
}

static void describe_operation(const hl_segment *segment, const hl_operation *operation, sentence *out)
{
    static const char *const states[] = {"being asked for", "in the queue of the pricing service",
                                         "with the pricing service", "just answered"};
    if (operation->request && operation->request < HL_SEGMENT_REQUESTS) {
        const hl_request *request = &segment->requests[operation->request];
        uint32_t state = atomic_load(&request->state);
        say(out, "the price of '%.200s' (%s)", request->name, states[state < 4 ? state : 0]);
        return;
    }
    switch (operation->kind) {
    case HL_OPERATION_RENDEZVOUS: {
        const hl_meeting *meeting = &segment->meetings[operation->meeting % HL_SEGMENT_MEETINGS];
        say(out, "operation %lu of communicator 0x%lx: of %u ranks %u have called it and %u have reached it",
            (unsigned long)meeting->sequence, (unsigned long)meeting->group, meeting->ranks, meeting->joined, meeting->arrived);
        break;
    }
    case HL_OPERATION_WAIT: say(out, "an event of another stream"); break;
    case HL_OPERATION_CALLBACK: say(out, "a host callback that has not returned"); break;
    default: say(out, "nothing (being resolved)"); break;
    }
}

HL_EXPORT uint32_t hl_timeline_describe(char *text, uint32_t size)
{
    hl_segment *segment = hl_segment_get();
    sentence out = {text, size, 0};
    if (!size)
        return 0;
    text[0] = 0;
    uint32_t streams = segment ? atomic_load(&segment->streams_pool.high) : 0;
    for (uint32_t i = 1; i <= streams && i < HL_SEGMENT_STREAMS; i++) {
        const hl_stream_record *stream = &segment->streams[i];
        uint32_t head = stream->head;
        if (atomic_load(&stream->state) == HL_STREAM_FREE || !head || head >= HL_SEGMENT_OPERATIONS)
            continue;
        say(&out, "process %d, device %u, %sstream %u waits for ",
            (int)atomic_load(&segment->owners[stream->owner % HL_SEGMENT_OWNERS].pid), stream->device,
            stream->is_default ? "default " : "", i);
        describe_operation(segment, &segment->operations[head], &out);
        say(&out, "\n");
    }
    return out.length;
}
