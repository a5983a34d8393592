/* See board.h. The wait goes through the clock: a rank that waits for another one is a waiting participant, not one
 * that sleeps outside the clock's knowledge. A TCP bootstrap like NCCL's own was rejected for that. */
#include "bridge/nccl/board.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bridge/nccl/comm.h"
#include "core/clock.h"

struct board {
    _Atomic uint32_t arrived;
    hl_bridge_board_entry entries[HL_RANKS_MAX];
};

int hl_bridge_board_meet(uint64_t name, int rank, int ranks, hl_bridge_board_entry mine, hl_bridge_board_entry *entries)
{
    const char *run = getenv("HYPERLAPSE_RUN_DIR");
    struct board *board;
    char path[4096];
    int file;

    if (ranks == 1) {
        entries[0] = mine;
        return 1;
    }
    if (!run || snprintf(path, sizeof path, "%s/board-%016llx", run, (unsigned long long)name) >= (int)sizeof path)
        return 0;
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        return 0;
    if (ftruncate(file, sizeof *board)) {
        close(file);
        return 0;
    }
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (board == MAP_FAILED)
        return 0;
    board->entries[rank] = mine;
    atomic_fetch_add(&board->arrived, 1);
    hl_clock_wake_word(&board->arrived);
    for (uint32_t seen; (seen = atomic_load(&board->arrived)) < (uint32_t)ranks;)
        hl_clock_wait_word(&board->arrived, seen, HL_NEVER_NS, HL_WAIT_RENDEZVOUS);
    for (int i = 0; i < ranks; i++)
        entries[i] = board->entries[i];
    munmap(board, sizeof *board);
    return 1;
}
