/* What a launch is, and what it costs.
 *
 * The price table lives in the shared GPU segment. A launch whose key is in it is priced at once, in C. A miss is
 * queued for the pricing service (a process that is no participant), the clock is held, and the launch stays
 * unresolved on its stream until the answer comes. Nothing here guesses a duration. */
#ifndef HL_CORE_PRICE_H
#define HL_CORE_PRICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum hl_coverage {          /* where a duration comes from; worst last */
    HL_COVERAGE_MEASURED = 0,
    HL_COVERAGE_INTERPOLATED,
    HL_COVERAGE_EXTRAPOLATED,
    HL_COVERAGE_ANALYTICAL,
    HL_COVERAGE_UNKNOWN,
    HL_COVERAGES
} hl_coverage;

typedef enum hl_launch_kind {
    HL_LAUNCH_KERNEL = 1,  /* name = kernel; arg: grid x,y,z, block x,y,z, dynamic shared memory bytes */
    HL_LAUNCH_GEMM,        /* name = "a_type,b_type,d_type,compute"; arg: m, n, k, batch, transa, transb (row-major m x k times k x n) */
    HL_LAUNCH_COPY,        /* name = "h2d" | "d2h" | "d2d" | "p2p"; arg: bytes. Priced in C from the device facts. */
    HL_LAUNCH_MEMSET,      /* arg: bytes. Priced in C from the device facts. */
    HL_LAUNCH_COLLECTIVE,  /* name = "all_reduce,bf16"...; arg: bytes, ranks */
    HL_LAUNCH_STEP         /* one whole engine step; name = model key; priced from the annotation alone */
} hl_launch_kind;

/* What of the annotation a kernel's duration depends on; answered by the pricing service, kept by name. */
enum { HL_DEPENDS_TOKENS = 1u, HL_DEPENDS_BATCH = 2u };

#define HL_LAUNCH_ARGS 8
#define HL_ANNOTATION_TEXT_MAX 16384

typedef struct hl_launch {
    uint32_t kind;                 /* hl_launch_kind */
    uint32_t device;
    const char *name;              /* NUL-terminated, lives as long as the process */
    int64_t arg[HL_LAUNCH_ARGS];   /* unused ones are 0 */
} hl_launch;

typedef struct hl_price {
    int64_t duration_ns;
    uint32_t coverage;             /* hl_coverage of the least certain part */
    uint32_t depends;              /* HL_DEPENDS_* bits */
    /* the same duration split by coverage, so that a step of several operators is reported honestly */
    int64_t coverage_ns[HL_COVERAGES];
} hl_price;

/* The batch composition of the launches that this thread makes from now on, set by an integration. text: the grammar
 * of docs/batch-composition.md; tokens: (padded) tokens of the step. text NULL ends it. Errors: -E2BIG. */
int hl_annotate(const char *text, size_t length, uint32_t tokens);

/* Looks a launch up under the calling thread's annotation. False: unpriced. */
bool hl_price_find(const hl_launch *launch, hl_price *price);

/* Launches of the run whose price has not come. The time-keeper reads it beside the processes' holds: it outlives a
 * process that asked for a price which others wait for too. 0 without a segment. */
uint64_t hl_price_outstanding(void);

/* --- pricing service only (bound from Python) --- */

typedef struct hl_price_request {
    uint32_t index;                /* give back to hl_price_answer */
    uint32_t kind, device;
    int32_t pid;
    uint32_t tokens;
    uint32_t annotation_length;
    int64_t arg[HL_LAUNCH_ARGS];
    char name[1024];
    char annotation[HL_ANNOTATION_TEXT_MAX];
} hl_price_request;

/* Takes the oldest unanswered request; waits (real time) up to timeout_ms for one. False: none came. */
bool hl_price_take(hl_price_request *request, int timeout_ms);

/* Answers it: writes the table, resolves every operation that waited for it, gives the clock's hold back. */
void hl_price_answer(uint32_t index, const hl_price *price);

/* The process that prices from now on (0: nobody). What a service before it took and did not answer is queued again. */
void hl_price_serve(int32_t pid);

typedef struct hl_price_totals {
    uint64_t requests, answers;      /* their difference is outstanding */
    uint64_t unknown_answers;
    uint64_t evictions;              /* of the price table; asked for again when needed */
    uint64_t lasting_evictions;      /* of which would have been used again */
    uint32_t names;                  /* kernels of which it is known what they depend on */
    int32_t service_pid;
} hl_price_totals;
void hl_price_statistics(hl_price_totals *totals);

#endif
