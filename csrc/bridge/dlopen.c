/* Sends a dlopen of an NVIDIA library by path to ours.
 *
 * Why: our libraries carry the real sonames, so links and dlopen by soname find them. A path does not: ctypes and
 * torch's fallback open ".../nvidia/cublas/lib/libcublas.so.13", and that file is the real one. This library is
 * preloaded, and it needs all the others, so that one entry in LD_PRELOAD brings them.
 *
 * It must end in a jump: libc looks for the library along the RPATH of whoever called dlopen, which it knows by the
 * return address. A call from here would make every dlopen of the program search our RPATH instead. Rejected:
 * rtld-audit, which slows down every symbol binding of the process and does not survive a scrubbed environment better
 * than a preload. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "bridge/stub.h"
#include "core/report.h"

/* Sonames of this build; HL_SONAMES comes from CMake: "libcudart.so.13", ... */
static const char *const sonames[] = {HL_SONAMES};

/* Names without a version that programs open as well. */
static const char *const unversioned[] = {"libcuda.so", "libnvidia-ml.so", "libnccl.so"};

enum { PATH_BYTES = 512, SONAME_MAX = 32 };

static char paths[sizeof sonames / sizeof *sonames][PATH_BYTES];

__attribute__((visibility("hidden"))) void *(*hl_bridge_dlopen_real)(const char *, int);
__attribute__((visibility("hidden"))) const char *hl_bridge_dlopen_target(const char *file);

/* A later file of the same library has digits after the soname: libcudart.so.13.0.96. */
static bool is_named(const char *name, const char *soname)
{
    size_t length = strlen(soname);

    return !strncmp(name, soname, length) && (!name[length] || name[length] == '.');
}

const char *hl_bridge_dlopen_target(const char *file)
{
    const char *name;

    if (!file)
        return file;
    name = strrchr(file, '/');
    name = name ? name + 1 : file;
    if (strncmp(name, "lib", 3))
        return file;
    for (size_t i = 0; i < sizeof sonames / sizeof *sonames; i++) {
        bool ours = is_named(name, sonames[i]);
        for (size_t u = 0; u < sizeof unversioned / sizeof *unversioned && !ours; u++)
            ours = !strcmp(name, unversioned[u]) && !strncmp(sonames[i], unversioned[u], strlen(unversioned[u]));
        if (ours && paths[i][0])
            return paths[i];
    }
    /* libcuda.so.580.95.05: the driver's file is named after the driver */
    if (!strncmp(name, "libcuda.so.", 11))
        return hl_bridge_dlopen_target("libcuda.so.1");
    if (!strncmp(name, "libnvidia-ml.so.", 16))
        return hl_bridge_dlopen_target("libnvidia-ml.so.1");
    return file;
}

__attribute__((constructor)) static void find_libraries(void)
{
    Dl_info here;
    const char *slash;

    hl_bridge_dlopen_real = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    if (!hl_bridge_dlopen_real)
        hl_report_fatal("libc has no dlopen; is this glibc 2.34 or later?");
    if (!dladdr((void *)find_libraries, &here) || !(slash = strrchr(here.dli_fname, '/')))
        return;
    size_t folder = (size_t)(slash - here.dli_fname) + 1;
    for (size_t i = 0; i < sizeof sonames / sizeof *sonames; i++) {
        if (folder + SONAME_MAX > PATH_BYTES)
            continue;
        memcpy(paths[i], here.dli_fname, folder);
        strncpy(paths[i] + folder, sonames[i], SONAME_MAX - 1);
        if (access(paths[i], R_OK))
            paths[i][0] = 0;
    }
}

/* dlopen(file, mode): the arguments are kept over hl_bridge_dlopen_target, then control is handed on with the caller's
 * return address in place. Before our constructor ran there is nothing to hand on to: the first use resolves it. */
__asm__(".text\n"
        ".globl dlopen\n"
        ".type dlopen, @function\n"
        "dlopen:\n"
        "    endbr64\n"
        "    subq $24, %rsp\n"
        "    movl %esi, 8(%rsp)\n"
        "    movq %rdi, 16(%rsp)\n"
        "    cmpq $0, hl_bridge_dlopen_real(%rip)\n"
        "    jne 1f\n"
        "    call hl_bridge_dlopen_start\n"
        "    movq 16(%rsp), %rdi\n"
        "1:  call hl_bridge_dlopen_target\n"
        "    movq %rax, %rdi\n"
        "    movl 8(%rsp), %esi\n"
        "    addq $24, %rsp\n"
        "    jmp *hl_bridge_dlopen_real(%rip)\n"
        ".size dlopen, . - dlopen\n");

__attribute__((visibility("hidden"), used)) void hl_bridge_dlopen_start(void) { find_libraries(); }
