/* A byte that fresh device memory holds instead of 0, for tests. HYPERLAPSE_POISON=0xa5.
 *
 * Why: kernels do not run, so what they would have written is whatever was there. Nothing that an engine decides may depend
 * on it; a run with another byte shows that nothing does. */
#ifndef HL_CORE_POISON_H
#define HL_CORE_POISON_H

#include <stddef.h>

/* Lays the byte over fresh pages, if the environment names one. address and bytes: whole pages. The pages stay lazily
 * backed: all of them show the same few mebibytes until they are written. */
void hl_poison(void *address, size_t bytes);

#endif
