/* See shared_memory.h. */
#include "shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "export.h"

_Static_assert(HL_DEVICES_MAX <= 16, "a device fits the low four bits of an identity");

#define PAGE_BYTES ((size_t)4096)
#define PAGES_AT_ONCE 512
#define PAGE_PRESENT (UINT64_C(1) << 63) /* Documentation/admin-guide/mm/pagemap.rst */
#define PAGE_SWAPPED (UINT64_C(1) << 62)

/* "<run directory>/memory-": what all their names begin with. */
static bool prefix_of(char *path, size_t room)
{
    const char *run_dir = getenv("HYPERLAPSE_RUN_DIR");
    return run_dir && snprintf(path, room, "%s/memory-", run_dir) < (int)room - 16;
}

static bool path_of(uint64_t identity, char *path, size_t room)
{
    if (!prefix_of(path, room))
        return false;
    size_t length = strlen(path);
    snprintf(path + length, room - length, "%016lx", (unsigned long)identity);
    return true;
}

/* A process number may come again in a run: the file system decides which identities are free. */
static int make(uint32_t device, size_t bytes, uint64_t *identity)
{
    static _Atomic uint32_t made;
    char path[4096];
    for (;;) {
        *identity = (uint64_t)getpid() << 32 | (atomic_fetch_add(&made, 1) << 4 & UINT32_MAX) | device;
        if (!path_of(*identity, path, sizeof path))
            return -ENOENT;
        int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (file < 0 && errno == EEXIST)
            continue;
        if (file < 0)
            return -errno;
        if (!ftruncate(file, (off_t)bytes))
            return file;
        int error = -errno;
        close(file);
        unlink(path);
        return error;
    }
}

static bool zero(const char *page)
{
    return !page[0] && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

/* Only pages that the process has touched: the file stays as sparse as the memory was. */
static int copy_pages(int file, const char *at, size_t bytes)
{
    uint64_t entries[PAGES_AT_ONCE];
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), error = 0;
    if (map < 0)
        return -errno;
    for (size_t page = 0, pages = bytes / PAGE_BYTES; page < pages && !error;) {
        size_t many = pages - page < PAGES_AT_ONCE ? pages - page : PAGES_AT_ONCE;
        ssize_t read_bytes = pread(map, entries, many * sizeof *entries,
                                   (off_t)(((uintptr_t)at / PAGE_BYTES + page) * sizeof *entries));
        if (read_bytes != (ssize_t)(many * sizeof *entries))
            error = read_bytes < 0 ? -errno : -EIO;
        for (size_t i = 0; i < many && !error; i++) {
            const char *from = at + (page + i) * PAGE_BYTES;
            if (!(entries[i] & (PAGE_PRESENT | PAGE_SWAPPED)) || zero(from))
                continue;
            if (pwrite(file, from, PAGE_BYTES, (off_t)((page + i) * PAGE_BYTES)) != (ssize_t)PAGE_BYTES)
                error = errno ? -errno : -ENOSPC;
        }
        page += many;
    }
    close(map);
    return error;
}

HL_EXPORT int hl_shared_memory_map_file(int file, void *at, size_t bytes)
{
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
        return -errno;
    madvise(at, bytes, MADV_DONTDUMP);
    return 0;
}

HL_EXPORT int hl_shared_memory_file(uint32_t device, size_t bytes, uint64_t *identity)
{
    int file = make(device, bytes, identity);
    if (file >= 0)
        hl_shared_memory_unlink(*identity);
    return file;
}

/* The kernel tells the name that the file was made with. */
HL_EXPORT int hl_shared_memory_describe(int file, size_t *bytes, uint64_t *identity)
{
    char link[64], path[4096], prefix[4096], *end;
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return errno == ENOENT ? -EINVAL : -errno;
    path[length] = 0;
    if (!prefix_of(prefix, sizeof prefix) || strncmp(path, prefix, strlen(prefix)) || fstat(file, &status))
        return -EINVAL;
    *identity = strtoul(path + strlen(prefix), &end, 16);
    if (!*identity || (*end && strcmp(end, " (deleted)")))
        return -EINVAL;
    *bytes = (size_t)status.st_size;
    return 0;
}

int hl_shared_memory_move(uint32_t device, void *at, size_t bytes, uint64_t *identity)
{
    int file = make(device, bytes, identity);
    if (file < 0)
        return file;
    int error = copy_pages(file, at, bytes);
    if (!error)
        error = hl_shared_memory_map_file(file, at, bytes);
    close(file);
    if (error)
        hl_shared_memory_unlink(*identity);
    return error;
}

int hl_shared_memory_map(uint64_t identity, void *at, size_t bytes)
{
    char path[4096];
    if (!path_of(identity, path, sizeof path))
        return -ENOENT;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return -errno;
    int error = hl_shared_memory_map_file(file, at, bytes);
    close(file);
    return error;
}

void hl_shared_memory_unlink(uint64_t identity)
{
    char path[4096];
    if (path_of(identity, path, sizeof path))
        unlink(path);
}
