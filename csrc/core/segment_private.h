/* Between the files of the segment, the timeline and the ledger: process-local state at fork and at a new segment. */
#ifndef HL_CORE_SEGMENT_PRIVATE_H
#define HL_CORE_SEGMENT_PRIVATE_H

#include "segment.h"

/* Creates and maps the file; the caller fills it and writes the magic last. 0 or -errno. */
int hl_segment_create(const char *run_dir, hl_segment **segment);

/* This process has no owner, contexts, captures and callbacks yet. */
void hl_segment_forget(void);
void hl_segment_before_fork(void);
void hl_segment_after_fork_in_parent(void);
void hl_segment_after_fork_in_child(void);

void hl_timeline_forget(void);       /* timeline_callback.c */
void hl_graph_forget(void);          /* graph.c */
void hl_ledger_driver_forget(void); /* ledger_driver.c */
void hl_ledger_before_fork(void);    /* ledger.c */
void hl_ledger_after_fork(bool child);

/* Under the registry lock and the context's device lock: resolves or drops everything of a dead process's context. */
void hl_timeline_bury(hl_segment *segment, uint32_t context, uint32_t *kicks);
void hl_timeline_kick(hl_segment *segment, uint32_t devices);

#endif
