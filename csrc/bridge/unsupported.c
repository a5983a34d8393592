/* An unsupported call: one line that names it, then the end.
 *
 * Why: a run that goes on after a call that did nothing measures something else. It must never return success. The
 * policies `warn` (each call once) and `error` (a result code, silently counted) are for bring-up; both mark the run's
 * report. Rejected: a log file, which nobody reads when the program dies three frames later. */
#include "bridge/stub.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/export.h"
#include "core/report.h"

enum policy { ABORT, WARN, ERROR };

static enum policy policy_of_environment(void)
{
    const char *text = getenv("HYPERLAPSE_UNSUPPORTED");

    if (!text || !*text || !strcmp(text, "abort"))
        return ABORT;
    if (!strcmp(text, "warn"))
        return WARN;
    if (!strcmp(text, "error"))
        return ERROR;
    hl_report_fatal("HYPERLAPSE_UNSUPPORTED=%s: choose abort, warn or error", text);
}

/* A name is warned about once; a bounded table of name pointers (they are literals) is enough for bring-up. */
static bool first_time(const char *name)
{
    static _Atomic(const char *) seen[256];

    for (unsigned i = 0; i < sizeof seen / sizeof *seen; i++) {
        const char *empty = NULL;
        if (atomic_compare_exchange_strong(&seen[i], &empty, name))
            return true;
        if (!strcmp(empty, name))
            return false;
    }
    return false;
}

static long refuse(const char *name, const char *library, const char *what, const void *caller, long result)
{
    enum policy policy = policy_of_environment();
    Dl_info from = {0};

    hl_report_event("unsupported-call", name);
    if (policy == ERROR || (policy == WARN && !first_time(name)))
        return result;
    const char *module = "unknown code";
    uint64_t offset = (uintptr_t)caller;
    if (caller && dladdr(caller, &from) && from.dli_fname) {
        module = from.dli_fname;
        offset -= (uintptr_t)from.dli_fbase;
    }
    if (policy == WARN) {
        hl_report_warning("%s%s of %s is not supported (called from %s+0x%lx); answered with error %ld", name, what,
                          library, module, (unsigned long)offset, result);
        return result;
    }
    hl_report_fatal("%s%s of %s is not supported (called from %s+0x%lx). Please report it; "
                    "HYPERLAPSE_UNSUPPORTED=error answers with error %ld instead",
                    name, what, library, module, (unsigned long)offset, result);
}

HL_EXPORT long hl_bridge_unsupported(const char *name, const char *library, const void *caller, long result)
{
    return refuse(name, library, "", caller, result);
}

HL_EXPORT long hl_bridge_unsupported_part(const char *name, const char *library, const char *part, long value,
                                          const void *caller, long result)
{
    char what[200], digits[24];
    size_t length = strnlen(part, 160), at = sizeof digits;
    bool negative = value < 0;
    unsigned long rest = negative ? 0ul - (unsigned long)value : (unsigned long)value;

    digits[--at] = 0;
    do
        digits[--at] = (char)('0' + rest % 10);
    while (rest /= 10);
    if (negative)
        digits[--at] = '-';
    memcpy(what, " with ", 6);
    memcpy(what + 6, part, length);
    what[6 + length] = ' ';
    memcpy(what + 7 + length, digits + at, sizeof digits - at);
    return refuse(name, library, what, caller, result);
}
