/* A board: a small file of the run where the ranks of a communicator meet when it is made. */
#ifndef HL_BRIDGE_NCCL_BOARD_H
#define HL_BRIDGE_NCCL_BOARD_H

#include <stdint.h>

typedef struct hl_bridge_board_entry {
    int32_t color, key;
} hl_bridge_board_entry;

/* Writes this rank's entry and waits until every rank has written its own; then fills entries[0..ranks). False: the
 * file cannot be made. Every rank must call it with the same name. */
int hl_bridge_board_meet(uint64_t name, int rank, int ranks, hl_bridge_board_entry mine,
                         hl_bridge_board_entry *entries);

#endif
