/* Starting programs: a child must not lose the clock because its parent scrubbed the environment
 * (subprocess.run(env={}) does). What makes a process part of the run is put back before exec.
 *
 * Registration is not done here: the time-keeper finds every descendant by itself (csrc/keeper/census.c). */
#include "clock_internal.h"

#include <alloca.h>
#include <errno.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static const char *const kept_names[] = {"LD_PRELOAD=", "LD_LIBRARY_PATH=", "HYPERLAPSE_RUN_DIR=", NULL};
static char kept_values[3][8192];

/* What this process was started with, saved before the program can change it. */
__attribute__((constructor)) static void save_kept(void)
{
    for (int i = 0; kept_names[i]; i++) {
        char name[32];
        size_t length = strlen(kept_names[i]) - 1;
        memcpy(name, kept_names[i], length);
        name[length] = 0;
        const char *value = getenv(name);
        if (value && strlen(value) + length + 2 > sizeof kept_values[i])
            hl_report_warning("%s is longer than %d bytes: a child with an emptied environment will not be on the virtual clock",
                              name, (int)sizeof kept_values[i]);
        if (value && strlen(value) + length + 2 <= sizeof kept_values[i]) {
            memcpy(kept_values[i], kept_names[i], length + 1);
            strcpy(kept_values[i] + length + 1, value);
        }
    }
}

static int find(char *const *environment, const char *name)
{
    size_t length = strlen(name);
    for (int i = 0; environment && environment[i]; i++)
        if (!strncmp(environment[i], name, length))
            return i;
    return -1;
}

/* A program's own value is kept, but for LD_PRELOAD (jemalloc's and tcmalloc's start scripts set it): one that lacks ours
 * would start a program beside the clock. */
static bool has(char *const *environment, int name)
{
    int at = find(environment, kept_names[name]);
    return at >= 0 && (name != 0 || strstr(environment[at], "libhyperlapse_clock.so"));
}

static bool complete(char *const *environment)
{
    for (int i = 0; kept_names[i]; i++)
        if (kept_values[i][0] && !has(environment, i))
            return false;
    return true;
}

static size_t count_of(char *const *environment)
{
    size_t count = 0;
    while (environment && environment[count])
        count++;
    return count;
}

/* On the caller's stack: a vfork child must not allocate. */
#define COMPLETED(environment) \
    (!hl_clock_ready() || complete(environment) \
         ? (environment) \
         : fill(alloca((count_of(environment) + 4) * sizeof(char *)), alloca(preload_bytes(environment)), environment))

static size_t preload_bytes(char *const *environment)
{
    int at = find(environment, kept_names[0]);
    return strlen(kept_values[0]) + 2 + (at >= 0 ? strlen(environment[at]) : 0);
}

static char *const *fill(char **to, char *preload, char *const *environment)
{
    size_t count = count_of(environment);
    if (count)
        memcpy(to, environment, count * sizeof *to);
    for (int i = 0; kept_names[i]; i++) {
        if (!kept_values[i][0] || has(environment, i))
            continue;
        int at = find(environment, kept_names[i]);
        if (at < 0) {
            to[count++] = kept_values[i];
            continue;
        }
        strcpy(preload, kept_values[0]); /* ours first, then the program's */
        strcat(preload, ":");
        strcat(preload, environment[at] + strlen(kept_names[0]));
        to[at] = preload;
    }
    to[count] = NULL;
    return to;
}

HL_EXPORT int execve(const char *path, char *const arguments[], char *const environment[])
{
    return hl_clock_ready() ? hl_libc_execve(path, arguments, (char *const *)COMPLETED(environment))
                            : hl_libc_execve(path, arguments, environment);
}

HL_EXPORT int execv(const char *path, char *const arguments[]) { return execve(path, arguments, environ); }

HL_EXPORT int execvpe(const char *file, char *const arguments[], char *const environment[])
{
    return hl_clock_ready() ? hl_libc_execvpe(file, arguments, (char *const *)COMPLETED(environment))
                            : hl_libc_execvpe(file, arguments, environment);
}

HL_EXPORT int execvp(const char *file, char *const arguments[]) { return execvpe(file, arguments, environ); }

HL_EXPORT int posix_spawn(pid_t *restrict pid, const char *restrict path, const posix_spawn_file_actions_t *actions,
                          const posix_spawnattr_t *restrict attributes, char *const arguments[restrict],
                          char *const environment[restrict])
{
    hl_clock_ready();
    return hl_libc_posix_spawn(pid, path, actions, attributes, arguments,
                               (char *const *)COMPLETED(environment));
}

HL_EXPORT int posix_spawnp(pid_t *restrict pid, const char *restrict file, const posix_spawn_file_actions_t *actions,
                           const posix_spawnattr_t *restrict attributes, char *const arguments[restrict],
                           char *const environment[restrict])
{
    hl_clock_ready();
    return hl_libc_posix_spawnp(pid, file, actions, attributes, arguments,
                                (char *const *)COMPLETED(environment));
}
