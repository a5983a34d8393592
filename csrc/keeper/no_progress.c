/* The report when nobody can go on, or when something keeps the clock from moving: who waits for what, until when. */
#include "keeper.h"

#include "../core/segment.h"
#include "../core/timeline.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void read_line(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    text[count > 0 ? count : 0] = 0;
    char *end = strchr(text, '\n');
    if (end)
        *end = 0;
}

static const hl_slot *slot_of(const keeper *k, const keeper_thread *thread)
{
    for (int i = 0; i < atomic_load(&k->page->slots_used); i++) {
        const hl_slot *slot = &k->page->slots[i];
        if (atomic_load(&slot->tid) == thread->tid && atomic_load(&slot->pid) == thread->pid)
            return slot;
    }
    return NULL;
}

static void print_thread(const keeper *k, FILE *out, const keeper_thread *thread)
{
    char path[96], name[32], call[128], stat[256];
    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", thread->pid, thread->tid);
    read_line(path, name, sizeof name);
    snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", thread->pid, thread->tid);
    read_line(path, call, sizeof call);
    call[strcspn(call, " ")] = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", thread->pid, thread->tid);
    read_line(path, stat, sizeof stat);
    const char *end = strrchr(stat, ')');
    const hl_slot *slot = slot_of(k, thread);
    fprintf(out, "  pid %-7d tid %-7d %-16s kernel state %c  system call %-8s ", thread->pid, thread->tid, name,
            end && end[1] ? end[2] : '?', *call ? call : "?");
    if (!slot)
        fprintf(out, "never waited on the virtual clock\n");
    else if (atomic_load(&slot->state) == HL_SLOT_UNWRAPPED)
        fprintf(out, "blocks in a call that hyperlapse does not know\n");
    else if (atomic_load(&slot->state) == HL_SLOT_RUNNING)
        fprintf(out, "runs\n");
    else {
        int64_t deadline_ns = atomic_load(&slot->deadline_ns);
        fprintf(out, "%s", hl_clock_reason_text(atomic_load(&slot->reason)));
        if (deadline_ns == HL_NEVER_NS)
            fprintf(out, ", without a deadline\n");
        else
            fprintf(out, " until %+.6f s from now%s\n", (double)(deadline_ns - hl_page_now_ns(k->page)) / 1e9,
                    atomic_load(&slot->lazy) ? " (background timer)" : "");
    }
}

void keeper_no_progress_report(keeper *k, FILE *out, const char *why)
{
    fprintf(out, "hyperlapse: no progress: %s\n", why);
    fprintf(out, "hyperlapse: virtual clock at %.6f s, %lld launches without a price, %d processes on real time\n",
            (double)hl_page_now_ns(k->page) / 1e9, (long long)keeper_holds(k), k->external_count);
    for (int m = 0; m < k->member_count; m++) {
        char path[64], name[32];
        snprintf(path, sizeof path, "/proc/%d/comm", k->members[m].pid);
        read_line(path, name, sizeof name);
        fprintf(out, " process %d (%s)%s\n", k->members[m].pid, name,
                k->members[m].external ? ": not on the virtual clock (static program, or started without the shim)" : "");
        for (int i = 0; i < k->thread_count; i++)
            if (k->threads[i].pid == k->members[m].pid)
                print_thread(k, out, &k->threads[i]);
    }
    if (hl_segment_open(k->run_dir) == 0) {
        static char streams[16384];
        hl_timeline_describe(streams, sizeof streams);
        fprintf(out, "%s", streams);
    }
    fflush(out);
}
