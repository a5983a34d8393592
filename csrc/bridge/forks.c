/* Which work of a capture its origin has waited for; see forks.h. */
#include "bridge/forks.h"

#include <stdlib.h>

enum { MEMBERS = 64 }; /* the core ends the program beyond as many streams in one capture */

struct row { /* for each member: how many of its operations come before */
    uint32_t work[MEMBERS];
};

struct member {
    hl_stream line; /* never that of a later stream, unlike the handle */
    uint32_t device;
    bool blocking;
    struct row after; /* with its own operations: those it has */
};

struct hl_bridge_forks {
    struct member member[MEMBERS]; /* [0]: the origin */
    uint32_t members, marks, marks_room;
    struct row *mark;
};

static struct member *member_of(hl_bridge_forks *forks, const hl_bridge_stream *stream)
{
    for (uint32_t i = 0; i < forks->members; i++)
        if (forks->member[i].line == stream->line)
            return &forks->member[i];
    if (forks->members == MEMBERS)
        return NULL;
    struct member *member = &forks->member[forks->members++];
    member->line = stream->line;
    member->device = stream->device;
    member->blocking = !(stream->flags & CU_STREAM_NON_BLOCKING);
    return member;
}

hl_bridge_forks *hl_bridge_forks_new(const hl_bridge_stream *origin)
{
    hl_bridge_forks *forks = calloc(1, sizeof *forks);

    if (forks)
        member_of(forks, origin);
    return forks;
}

void hl_bridge_forks_free(hl_bridge_forks *forks)
{
    if (forks)
        free(forks->mark);
    free(forks);
}

bool hl_bridge_forks_work(hl_bridge_forks *forks, const hl_bridge_stream *stream)
{
    struct member *member = member_of(forks, stream);

    if (member)
        member->after.work[member - forks->member]++;
    return member;
}

bool hl_bridge_forks_record(hl_bridge_forks *forks, const hl_bridge_stream *stream, uint32_t *mark)
{
    struct member *member = member_of(forks, stream);

    if (!member)
        return false;
    if (forks->marks == forks->marks_room) {
        uint32_t room = forks->marks_room ? forks->marks_room * 2 : 8;
        struct row *grown = realloc(forks->mark, room * sizeof *grown);
        if (!grown)
            return false;
        forks->mark = grown;
        forks->marks_room = room;
    }
    forks->mark[forks->marks] = member->after;
    *mark = forks->marks++;
    return true;
}

bool hl_bridge_forks_wait(hl_bridge_forks *forks, const hl_bridge_stream *stream, uint32_t mark)
{
    struct member *member = member_of(forks, stream);

    if (!member || mark >= forks->marks)
        return false;
    for (uint32_t i = 0; i < MEMBERS; i++)
        if (member->after.work[i] < forks->mark[mark].work[i])
            member->after.work[i] = forks->mark[mark].work[i];
    return true;
}

bool hl_bridge_forks_joined(const hl_bridge_forks *forks)
{
    for (uint32_t i = 1; i < forks->members; i++)
        if (forks->member[0].after.work[i] < forks->member[i].after.work[i])
            return false;
    return true;
}

bool hl_bridge_forks_blocking(const hl_bridge_forks *forks, uint32_t device)
{
    for (uint32_t i = 0; i < forks->members; i++)
        if (forks->member[i].blocking && forks->member[i].device == device)
            return true;
    return false;
}
