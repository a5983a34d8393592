/* Finding libc's own functions, and who calls us. */
#include "clock_internal.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <string.h>

#define DEFINE(result, name, arguments) result(*hl_libc_##name) arguments;
LIBC_FUNCTIONS(DEFINE)
#undef DEFINE

int (*hl_libc_sem_clockwait)(sem_t *, clockid_t, const struct timespec *);
int (*hl_libc_cond_wait)(pthread_cond_t *, pthread_mutex_t *);
int (*hl_libc_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int (*hl_libc_cond_clockwait)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
int (*hl_libc_cond_broadcast)(pthread_cond_t *);
int (*hl_libc_posix_spawn)(pid_t *, const char *, const void *, const void *, char *const[], char *const[]);
int (*hl_libc_posix_spawnp)(pid_t *, const char *, const void *, const void *, char *const[], char *const[]);
int (*hl_libc_setitimer)(int, const void *, void *);
int (*hl_libc_getitimer)(int, void *);

/* glibc 2.35; without it background timers make jumps of their own, which costs speed only. */
static int (*find_object)(void *, struct dl_find_object *);
static uintptr_t interpreter_from, interpreter_to;
static _Atomic bool resolved;

static void resolve(void)
{
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    if (!libc)
        hl_report_fatal("libc.so.6 is not loaded: hyperlapse needs glibc");
#define FIND(result, name, arguments) \
    hl_libc_##name = (result(*) arguments)dlsym(libc, #name); \
    if (!hl_libc_##name) \
        hl_report_fatal("this libc has no %s: hyperlapse needs glibc 2.34 or newer", #name);
    LIBC_FUNCTIONS(FIND)
#undef FIND
    hl_libc_sem_clockwait = (__typeof__(hl_libc_sem_clockwait))dlsym(libc, "sem_clockwait");
    hl_libc_cond_clockwait = (__typeof__(hl_libc_cond_clockwait))dlsym(libc, "pthread_cond_clockwait");
    hl_libc_posix_spawn = (__typeof__(hl_libc_posix_spawn))dlsym(libc, "posix_spawn");
    hl_libc_posix_spawnp = (__typeof__(hl_libc_posix_spawnp))dlsym(libc, "posix_spawnp");
    find_object = (__typeof__(find_object))dlsym(libc, "_dl_find_object");
    hl_libc_setitimer = (__typeof__(hl_libc_setitimer))dlsym(libc, "setitimer");
    hl_libc_getitimer = (__typeof__(hl_libc_getitimer))dlsym(libc, "getitimer");
    /* The versions before 2.3.2 are of another layout: mixing them corrupts the condition variable. */
    hl_libc_cond_wait = (__typeof__(hl_libc_cond_wait))dlvsym(libc, "pthread_cond_wait", "GLIBC_2.3.2");
    hl_libc_cond_timedwait = (__typeof__(hl_libc_cond_timedwait))dlvsym(libc, "pthread_cond_timedwait", "GLIBC_2.3.2");
    hl_libc_cond_broadcast = (__typeof__(hl_libc_cond_broadcast))dlvsym(libc, "pthread_cond_broadcast", "GLIBC_2.3.2");
    if (!hl_libc_sem_clockwait || !hl_libc_cond_clockwait || !hl_libc_cond_wait || !hl_libc_cond_timedwait ||
        !hl_libc_cond_broadcast)
        hl_report_fatal("this glibc lacks sem_clockwait or pthread_cond_clockwait: hyperlapse needs glibc 2.34 or newer");
    atomic_store(&resolved, true);
}

bool hl_clock_ready(void)
{
    if (!atomic_load_explicit(&resolved, memory_order_acquire))
        resolve();
    return hl_clock_active();
}

static int find_interpreter(struct dl_phdr_info *info, size_t size, void *inside)
{
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, to = from + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X) && (uintptr_t)inside >= from &&
            (uintptr_t)inside < to) {
            interpreter_from = from;
            interpreter_to = to;
            return 1;
        }
    }
    return 0;
}

__attribute__((constructor)) static void start(void)
{
    hl_clock_ready();
    void *inside = dlsym(RTLD_DEFAULT, "PyEval_AcquireThread");
    if (inside)
        dl_iterate_phdr(find_interpreter, inside);
}

bool hl_clock_is_interpreter(void *return_address)
{
    return (uintptr_t)return_address >= interpreter_from && (uintptr_t)return_address < interpreter_to;
}

bool hl_clock_is_background(void *return_address)
{
    static __thread void *last_address;
    static __thread bool last_answer;
    if (return_address == last_address)
        return last_answer;
    /* Not dladdr: it takes the loader's lock, and a wait inside a library's constructor would wait for that for ever. */
    struct dl_find_object found;
    last_answer = find_object && find_object(return_address, &found) == 0 && found.dlfo_link_map->l_name &&
                  strstr(found.dlfo_link_map->l_name, "/libtorch");
    last_address = return_address;
    return last_answer;
}

struct timespec hl_clock_real_abstime(int64_t deadline_ns)
{
    int64_t left_ns = hl_wait_kernel_timeout_ns(deadline_ns);
    return hl_sys_timespec(left_ns < 0 ? HL_NEVER_NS / 2 : hl_clock_real_ns() + left_ns);
}

int64_t hl_clock_deadline_of(clockid_t clock_id, const struct timespec *absolute)
{
    int64_t ns = absolute->tv_sec < 0 ? 0 : hl_sys_ns(absolute);
    if (clock_id == CLOCK_REALTIME)
        ns -= hl_page_realtime_offset_ns();
    if (ns >= HL_NEVER_NS / 4)
        return HL_NEVER_NS;
    return ns + HL_WAIT_KERNEL_LATENESS_NS;
}
