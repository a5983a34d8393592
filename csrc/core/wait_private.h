/* Between page.c and wait.c only. */
#ifndef HL_CORE_WAIT_PRIVATE_H
#define HL_CORE_WAIT_PRIVATE_H

/* After fork: the child's thread has no slot yet; the parent's stays the parent's. */
void hl_wait_forget_thread(void);

#endif
