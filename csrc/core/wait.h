/* One wait of one thread, as the libc wrappers in csrc/clock and the core's own waits use it:
 *
 *     hl_wait_enter(deadline, kind, reason, lazy);
 *     loop { block in the kernel for at most hl_wait_kernel_timeout_ns(deadline); decide }
 *     hl_wait_leave();
 *
 * Between enter and leave the thread counts as waiting. It must not take locks of ours there. */
#ifndef HL_CORE_WAIT_H
#define HL_CORE_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "page.h"

/* A kernel never returns from a timed wait exactly on time. Programs rely on it: multiprocessing.connection.wait
 * computes `remaining = deadline - now` and polls again with 0 while it is not negative, for ever on a frozen clock. So a
 * wait that stands for a kernel's expires this much after its deadline. Our own waits (devices, host time) are exact. */
#define HL_WAIT_KERNEL_LATENESS_NS 1000

/* Gives a slot back: its thread's end, or the time-keeper's for a thread that ended without it. */
void hl_wait_free_slot(hl_page *page, hl_slot *slot);

/* The calling thread's slot, made at its first wait. */
hl_slot *hl_wait_slot(void);

/* Returns the slot's word before the wait, for futex waits on it. */
uint32_t hl_wait_enter(int64_t deadline_ns, hl_wake_kind wake, hl_wait_reason reason, bool lazy);
void hl_wait_leave(void);

/* Virtual deadline of a relative kernel timeout. */
int64_t hl_wait_deadline_ns(int64_t timeout_ns);

/* True when the deadline's instant has come. */
bool hl_wait_expired(int64_t deadline_ns);

/* For how long to block in the kernel: the real remainder where the clock follows real time, else a long slice (the
 * time-keeper ends the wait). -1: for ever. */
int64_t hl_wait_kernel_timeout_ns(int64_t deadline_ns);

/* The wake signal came since hl_wait_enter (reading it clears it): an EINTR that the program must not see. */
bool hl_wait_kicked(void);

#endif
