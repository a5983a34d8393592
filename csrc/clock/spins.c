/* sched_yield: what spinning code calls (vLLM's shared-memory broadcast). After some of them the thread counts as
 * waiting and is given one more look before each jump. */
#include "clock_internal.h"

HL_EXPORT int sched_yield(void)
{
    if (!hl_clock_ready())
        return hl_libc_sched_yield();
    hl_clock_spin(HL_NEVER_NS);
    return 0;
}
