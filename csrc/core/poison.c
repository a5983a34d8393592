/* See poison.h.
 *
 * Filling the memory was rejected: a KV cache of 50 GiB would be backed by 50 GiB. Instead one small file that holds the
 * byte is mapped over it again and again, privately: a page is copied when it is first written. */
#include "poison.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "report.h"

/* Large enough that the mappings over a device stay far below vm.max_map_count (65,530). */
#define FILE_BYTES ((size_t)64 << 20)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int file = -1;

static int byte_of_environment(void)
{
    const char *text = getenv("HYPERLAPSE_POISON");
    char *end;

    if (!text || !*text)
        return 0;
    errno = 0;
    long byte = strtol(text, &end, 0);
    if (errno || *end || byte < 0 || byte > 255)
        hl_report_fatal("HYPERLAPSE_POISON=%s: choose a byte, 0 to 255 or 0x00 to 0xff", text);
    return (int)byte;
}

static void prepare(void)
{
    int byte = byte_of_environment();

    if (!byte) /* fresh pages hold 0 anyway */
        return;
    file = memfd_create("hyperlapse-poison", MFD_CLOEXEC);
    void *bytes = file < 0 || ftruncate(file, (off_t)FILE_BYTES)
                      ? MAP_FAILED
                      : mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED)
        hl_report_fatal("the host refuses %zu bytes for HYPERLAPSE_POISON (error %d): free some memory, or leave it out",
                        FILE_BYTES, errno);
    memset(bytes, byte, FILE_BYTES);
    munmap(bytes, FILE_BYTES);
    hl_report_event("poison", "fresh device memory holds another byte than 0 (HYPERLAPSE_POISON)");
}

void hl_poison(void *address, size_t bytes)
{
    pthread_once(&once, prepare);
    if (file < 0)
        return;
    for (size_t done = 0; done < bytes; done += FILE_BYTES) {
        size_t length = bytes - done < FILE_BYTES ? bytes - done : FILE_BYTES;
        void *at = mmap((char *)address + done, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
                        file, 0);
        if (at == MAP_FAILED)
            hl_report_fatal("HYPERLAPSE_POISON: the host refuses a mapping (error %d): raise vm.max_map_count, or leave "
                            "it out", errno);
    }
}
