/* Initialisation, visible devices and contexts; see process.h.
 *
 * A context is only a name for "this process on this device": memory and streams are counted per process and device in
 * the core, so contexts beside the primary one share it (see docs/limitations.md). */
#include "bridge/process.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bridge/attributes.h"
#include "core/export.h"
#include "core/ledger.h"
#include "core/report.h"

enum { STACK = 32 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool ready, forked;
static int visible_count;
static uint32_t visible[HL_DEVICES_MAX];
static hl_bridge_context primaries[HL_DEVICES_MAX];
static __thread struct {
    hl_bridge_context *at[STACK];
    int depth, ordinal;
} thread;

static bool in_list(uint32_t device)
{
    for (int i = 0; i < visible_count; i++)
        if (visible[i] == device)
            return true;
    return false;
}

/* CUDA_VISIBLE_DEVICES: ordinals or UUID prefixes; the first entry that names no device ends the list. */
static void read_visible(uint32_t devices)
{
    const char *text = getenv("CUDA_VISIBLE_DEVICES");

    if (!text) {
        for (uint32_t i = 0; i < devices; i++)
            visible[visible_count++] = i;
        return;
    }
    while (*text) {
        size_t length = strcspn(text, ",");
        while (length && (*text == ' ' || *text == '\t'))
            text++, length--;
        uint32_t found = devices;
        if (length >= 4 && !strncmp(text, "GPU-", 4)) {
            for (uint32_t i = 0; i < devices; i++) {
                char uuid[48];
                hl_bridge_attributes_uuid_text(i, uuid);
                if (length <= strlen(uuid) && !strncmp(uuid, text, length))
                    found = i;
            }
        } else {
            char *end;
            long number = strtol(text, &end, 10);
            if (end != text && (size_t)(end - text) <= length && number >= 0 && number < (long)devices)
                found = (uint32_t)number;
        }
        if (found == devices)
            return;
        if (in_list(found)) {
            visible_count = 0; /* as the driver does: a duplicate leaves no device */
            return;
        }
        visible[visible_count++] = found;
        text += length;
        if (*text == ',')
            text++;
    }
}

static void child_after_fork(void)
{
    if (ready)
        forked = true;
}

static void start(void)
{
    uint32_t devices = hl_device_count();

    if (!devices)
        hl_report_fatal("this program uses a GPU but takes part in no run: start it with `hyperlapse run -- COMMAND`");
    read_visible(devices);
    for (int i = 0; i < visible_count; i++)
        primaries[i] =
            (hl_bridge_context){.live = 1, .device = visible[i], .ordinal = i, .primary = true, .id = (uint64_t)i + 1};
    pthread_atfork(NULL, NULL, child_after_fork);
    ready = true;
}

HL_EXPORT CUresult hl_bridge_process_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    if (forked)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (!ready)
        pthread_once(&once, start);
    return visible_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

HL_EXPORT CUresult hl_bridge_process_ready(void)
{
    if (!ready || forked)
        return CUDA_ERROR_NOT_INITIALIZED;
    return visible_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

HL_EXPORT int hl_bridge_process_device_count(void) { return visible_count; }

HL_EXPORT CUresult hl_bridge_process_device(int ordinal, uint32_t *device)
{
    if (ordinal < 0 || ordinal >= visible_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *device = visible[ordinal];
    return CUDA_SUCCESS;
}

HL_EXPORT const hl_device_facts *hl_bridge_process_facts(int ordinal)
{
    uint32_t device;

    return hl_bridge_process_device(ordinal, &device) ? NULL : hl_device_facts_of(device);
}

HL_EXPORT int hl_bridge_process_ordinal(uint32_t device)
{
    for (int i = 0; i < visible_count; i++)
        if (visible[i] == device)
            return i;
    return -1;
}

HL_EXPORT hl_bridge_context *hl_bridge_context_primary(int ordinal)
{
    return ordinal < 0 || ordinal >= visible_count ? NULL : &primaries[ordinal];
}

HL_EXPORT bool hl_bridge_context_valid(const hl_bridge_context *context)
{
    return context >= primaries && context < primaries + visible_count && context->live;
}

HL_EXPORT CUresult hl_bridge_context_retain(int ordinal, hl_bridge_context **context)
{
    hl_bridge_context *primary = hl_bridge_context_primary(ordinal);
    CUresult result = CUDA_SUCCESS;

    if (!primary)
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (!primary->retained && hl_ledger_context(primary->device) == -ENOMEM)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else
        primary->retained++;
    pthread_mutex_unlock(&lock);
    if (!result)
        *context = primary;
    return result;
}

/* The memory of a context stays charged until the process ends: programs release the primary context and go on. */
HL_EXPORT CUresult hl_bridge_context_release(int ordinal)
{
    hl_bridge_context *primary = hl_bridge_context_primary(ordinal);
    CUresult result = CUDA_SUCCESS;

    if (!primary)
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (primary->retained)
        primary->retained--;
    else
        result = CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_unlock(&lock);
    return result;
}

HL_EXPORT hl_bridge_context *hl_bridge_context_current(void)
{
    return thread.depth ? thread.at[thread.depth - 1] : NULL;
}

HL_EXPORT void hl_bridge_context_set(hl_bridge_context *context)
{
    if (!context) {
        if (thread.depth)
            thread.depth--;
        return;
    }
    if (!thread.depth)
        thread.depth = 1;
    thread.at[thread.depth - 1] = context;
    thread.ordinal = context->ordinal;
}

HL_EXPORT CUresult hl_bridge_context_push(hl_bridge_context *context)
{
    if (thread.depth == STACK)
        return CUDA_ERROR_INVALID_CONTEXT;
    thread.at[thread.depth++] = context;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_context_pop(hl_bridge_context **context)
{
    if (!thread.depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (context)
        *context = thread.at[thread.depth - 1];
    thread.depth--;
    return CUDA_SUCCESS;
}

HL_EXPORT CUresult hl_bridge_context_need(hl_bridge_context **context)
{
    CUresult result = hl_bridge_process_ready();

    if (result)
        return result;
    *context = hl_bridge_context_current();
    return *context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

HL_EXPORT int hl_bridge_context_ordinal(void)
{
    hl_bridge_context *context = hl_bridge_context_current();

    return context ? context->ordinal : thread.ordinal;
}

HL_EXPORT CUresult hl_bridge_context_use(hl_bridge_context **context)
{
    CUresult result = CUDA_SUCCESS;

    *context = hl_bridge_context_current();
    if (*context && !forked)
        return CUDA_SUCCESS;
    result = hl_bridge_process_init();
    if (result)
        return result;
    result = hl_bridge_context_retain(hl_bridge_context_ordinal(), context);
    if (!result)
        hl_bridge_context_set(*context);
    return result;
}
