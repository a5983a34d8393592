/* Streams and events as CUDA handles over the core's timelines. */
#ifndef HL_BRIDGE_STREAM_H
#define HL_BRIDGE_STREAM_H

#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>

#include "bridge/process.h"
#include "core/timeline.h"

typedef struct hl_bridge_stream {
    uint32_t live;
    uint32_t device;
    hl_stream line;
    unsigned flags; /* CU_STREAM_* */
    int priority;
    uint64_t id;
    hl_bridge_context *context;
} hl_bridge_stream;

typedef struct hl_bridge_event {
    uint32_t live;
    uint32_t device;
    hl_event mark;
    unsigned flags; /* CU_EVENT_* */
    bool recorded;         /* or another process may have done it */
    bool imported;         /* its mark belongs to another process */
    uint64_t capture_id;   /* not 0: last recorded while capturing */
    uint32_t capture_mark; /* its place in that capture */
} hl_bridge_event;

/* The stream behind a handle, in the current context: 0 and CU_STREAM_LEGACY, CU_STREAM_PER_THREAD, or a handle. */
CUresult hl_bridge_stream_of(CUstream handle, hl_bridge_stream **stream);
/* Is it a legacy default stream? */
bool hl_bridge_stream_legacy(const hl_bridge_stream *stream);
CUresult hl_bridge_stream_create(unsigned flags, int priority, CUstream *handle);
CUresult hl_bridge_stream_destroy(CUstream handle);
CUresult hl_bridge_stream_query(hl_bridge_stream *stream);
CUresult hl_bridge_stream_wait(hl_bridge_stream *stream);
CUresult hl_bridge_stream_device_wait(void);
CUresult hl_bridge_stream_callback(hl_bridge_stream *stream, CUhostFn function, void *user_data);
void hl_bridge_stream_priorities(int *least, int *greatest);

CUresult hl_bridge_event_of(CUevent handle, hl_bridge_event **event);
CUresult hl_bridge_event_create(unsigned flags, CUevent *handle);
CUresult hl_bridge_event_destroy(CUevent handle);
/* An event of another process, by its mark. */
CUresult hl_bridge_event_import(hl_event mark, uint32_t device, CUevent *handle);
CUresult hl_bridge_event_record(hl_bridge_event *event, hl_bridge_stream *stream);
CUresult hl_bridge_event_query(hl_bridge_event *event);
CUresult hl_bridge_event_wait(hl_bridge_event *event);
CUresult hl_bridge_event_elapsed(hl_bridge_event *from, hl_bridge_event *to, float *elapsed_ms);
CUresult hl_bridge_stream_wait_event(hl_bridge_stream *stream, hl_bridge_event *event, unsigned flags);

#endif
