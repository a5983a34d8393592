/* Preloaded into the time-keeper alone: no descriptor is left for a folder whose path ends like FAIL_OPENDIR; where threads sleep
 * (/proc/TID/wchan) is read from the file WCHAN. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static int is_keeper(void) { return !strncmp(program_invocation_short_name, "hyperlapse-keeper", 17); }

static int ends_like(const char *path, const char *end)
{
    return end && strlen(path) >= strlen(end) && !strcmp(path + strlen(path) - strlen(end), end);
}

DIR *opendir(const char *path)
{
    DIR *(*real)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    if (!is_keeper() || !ends_like(path, getenv("FAIL_OPENDIR")))
        return real(path);
    errno = EMFILE;
    return NULL;
}

int open(const char *path, int flags, ...)
{
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return real(is_keeper() && getenv("WCHAN") && ends_like(path, "/wchan") ? getenv("WCHAN") : path, flags, mode);
}
