/* See collective.h.
 *
 * The group is known by its peers' memory: what a rank exported and the others opened has the same identity in all of
 * them (core/ledger.h), though each has it at another address. Ranks launch the collectives of a group in the same
 * order, or the card would hang too: a counter tells them apart. */
#include "bridge/collective.h"

#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bridge/memory.h"
#include "core/report.h"

#define RULES_FILE "collective-kernels" /* of the run directory; written by shim/collective_kernels.py, one rule a line */

enum { RANKS_MAX = 64, GROUPS_MAX = 1024 };

struct integer { /* an argument of the kernel */
    int argument, bytes;
};

struct rule {
    struct rule *next;
    regex_t name;     /* its group, where it has one, is the number of ranks */
    char operation[64];
    int peers;        /* the argument with the peers' pointers */
    bool by_value;    /* they are in it; else it points to them, on the device */
    struct integer ranks, size; /* ranks.argument -1: in the name */
    int64_t unit_bytes;
};

struct group {
    uint64_t name, sequence;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rule *rules;
static struct group groups[GROUPS_MAX];
static const struct rule none; /* what a kernel has that no rule is for */

static struct rule *parse(char *line)
{
    struct rule *rule = calloc(1, sizeof *rule);
    char place;
    char *tab = strchr(line, '\t');

    if (!rule || !tab)
        hl_report_fatal("%s of the run has a line that is no rule: %s", RULES_FILE, line);
    *tab = 0;
    if (regcomp(&rule->name, line, REG_EXTENDED) ||
        sscanf(tab + 1, "%63s %d %c %d %d %d %d %ld", rule->operation, &rule->peers, &place, &rule->ranks.argument,
               &rule->ranks.bytes, &rule->size.argument, &rule->size.bytes, &rule->unit_bytes) != 8)
        hl_report_fatal("%s of the run has a line that is no rule: %s", RULES_FILE, line);
    rule->by_value = place == 'v';
    return rule;
}

/* A run without the file has no such kernels. */
static void load(void)
{
    const char *run_dir = getenv("HYPERLAPSE_RUN_DIR");
    char path[4096], *line = NULL;
    size_t room = 0;
    struct rule **last = &rules;

    if (!run_dir || snprintf(path, sizeof path, "%s/" RULES_FILE, run_dir) >= (int)sizeof path)
        return;
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    while (getline(&line, &room, file) > 0) {
        *last = parse(line);
        last = &(*last)->next;
    }
    free(line);
    fclose(file);
}

static const struct rule *rule_of(hl_bridge_kernel *kernel)
{
    const struct rule *rule = kernel->collective;

    if (rule)
        return rule == &none ? NULL : rule;
    pthread_once(&once, load);
    for (rule = rules; rule && regexec(&rule->name, kernel->name, 0, NULL, 0); rule = rule->next)
        ;
    kernel->collective = rule ? rule : &none;
    return rule;
}

static int64_t integer_of(const struct integer *which, void *const *arguments)
{
    const void *at = arguments[which->argument];

    return which->bytes == 8 ? *(const int64_t *)at : *(const int32_t *)at;
}

static int64_t ranks_of(const struct rule *rule, const hl_bridge_kernel *kernel, void *const *arguments)
{
    regmatch_t found[2];

    if (rule->ranks.argument >= 0)
        return integer_of(&rule->ranks, arguments);
    if (regexec(&rule->name, kernel->name, 2, found, 0) || found[1].rm_so < 0)
        return 0;
    return strtol(kernel->name + found[1].rm_so, NULL, 10);
}

/* FNV-1a over the peers' identities; 0: one of them is nobody's that this run knows. */
static uint64_t group_of(const void *const *peers, int64_t ranks)
{
    uint64_t name = UINT64_C(14695981039346656037);

    for (int64_t i = 0; i < ranks; i++) {
        hl_memory memory;
        hl_bridge_memory_of(peers[i], &memory);
        if (!memory.identity)
            return 0;
        uint64_t part[2] = {memory.identity, (uintptr_t)peers[i] - memory.base};
        for (size_t byte = 0; byte < sizeof part; byte++)
            name = (name ^ ((const unsigned char *)part)[byte]) * UINT64_C(1099511628211);
    }
    return name ? name : 1;
}

static uint64_t next_of(uint64_t name)
{
    uint64_t sequence = 0;
    struct group *group = groups;

    pthread_mutex_lock(&lock);
    while (group < groups + GROUPS_MAX && group->name && group->name != name)
        group++;
    if (group == groups + GROUPS_MAX)
        hl_report_fatal("kernels of this process meet their peers in more than %d groups: please report this", GROUPS_MAX);
    group->name = name;
    sequence = group->sequence++;
    pthread_mutex_unlock(&lock);
    return sequence;
}

bool hl_bridge_collective_launch(hl_bridge_kernel *kernel, void *const *arguments, hl_bridge_stream *stream)
{
    const struct rule *rule = rule_of(kernel);

    if (!rule)
        return false;
    int64_t ranks = arguments ? ranks_of(rule, kernel, arguments) : 0;
    uint64_t group = 0;
    if (ranks > 0 && ranks <= RANKS_MAX) {
        const void *at = arguments[rule->peers];
        group = group_of(rule->by_value ? at : *(const void *const *const *)at, ranks);
    }
    if (!group) {
        hl_report_event("collective-kernel", kernel->name);
        return false;
    }
    hl_launch launch = {.kind = HL_LAUNCH_COLLECTIVE,
                        .device = stream->device,
                        .name = rule->operation,
                        .arg = {integer_of(&rule->size, arguments) * rule->unit_bytes, ranks}};
    hl_timeline_rendezvous(stream->line, group, next_of(group), (uint32_t)ranks, &launch);
    return true;
}
