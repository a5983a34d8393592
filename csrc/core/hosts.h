/* What a node's time-keeper and its node agent tell each other when several hosts share one virtual instant.
 *
 * Why through the clock page: the time-keeper must not speak gRPC, and a jump must cost one wake-up on either side of the
 * agent. They take turns: the time-keeper writes a report and wakes the agent (`word`), the agent writes an answer and
 * wakes the time-keeper (hl_page_kick). While a report stands the clock is held (HL_MODE_HELD): a participant that reads
 * it waits for the answer, because the instant may just have moved on another host. Hence no participant ever sees an
 * older instant than that of a message it received, although nodes get their answers one after the other.
 *
 * Rejected: answering the nodes without a deadline first and the others after their acknowledgement, which is sound
 * without held reads and costs a second round trip per jump. */
#ifndef HL_CORE_HOSTS_H
#define HL_CORE_HOSTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define HL_ADDRESSES_MAX 256
#define HL_CONNECTIONS_MAX 1024
#define HL_ADDRESS_BYTES 16

/* One end of a TCP connection between two nodes, from the kernel's own counters. Addresses are IPv6, or IPv4 mapped. */
typedef struct hl_connection {
    uint8_t local[HL_ADDRESS_BYTES], remote[HL_ADDRESS_BYTES];
    uint16_t local_port, remote_port;
    uint32_t state;          /* TCP_ESTABLISHED, ... */
    uint32_t unsent_bytes;   /* written, but not given to the network: the peer takes no more */
    uint32_t unread_bytes;   /* arrived, but not read */
    uint64_t sent_bytes;     /* payload given to the network, each byte once */
    uint64_t received_bytes; /* payload that has arrived in order, read or not */
    uint64_t unacknowledged_bytes; /* only while the peer has closed its side: a reset may be on its way */
} hl_connection;

typedef struct hl_endpoint {
    uint8_t address[HL_ADDRESS_BYTES];
    uint32_t port;
} hl_endpoint;

typedef struct hl_report {
    uint64_t number;       /* 1, 2, ... */
    int64_t deadline_ns;   /* HL_NEVER_NS: none */
    int64_t background_ns; /* the earliest deadline of background timers */
    uint32_t answerable;   /* 1: somebody outside of the run may answer what it waits for (only when asked) */
    uint32_t connections;
} hl_report;

typedef struct hl_hosts {
    _Atomic uint32_t shared;   /* 1: other hosts share this clock */
    _Atomic uint32_t connects; /* bumped before each connect() of a participant: there is a socket to find */
    _Atomic uint32_t reads;    /* clock reads that had to wait because the clock was held */
    uint32_t own_count, peer_count, control_count;
    uint8_t own[HL_ADDRESSES_MAX][HL_ADDRESS_BYTES], peers[HL_ADDRESSES_MAX][HL_ADDRESS_BYTES];
    hl_endpoint control[HL_ADDRESSES_MAX]; /* the coordinator's: not the run's traffic */

    /* Time-keeper to agent. `withdrawn` names the report that somebody's waking up has made untrue. */
    _Atomic uint32_t word __attribute__((aligned(64)));
    _Atomic uint64_t reported, withdrawn;
    hl_report report;
    hl_connection connections[HL_CONNECTIONS_MAX];

    /* Agent to time-keeper: the answer to report `answered`. */
    _Atomic uint64_t answered __attribute__((aligned(64)));
    _Atomic int64_t instant_ns; /* the shared instant from now on; < 0: it has not moved, report again when all sleep */
    _Atomic uint32_t search;    /* with the next report: look for new connections first */
    _Atomic uint32_t ask_world; /* with the next report: say whether somebody outside may answer */

    /* Counted by the time-keeper. */
    _Atomic uint64_t reports, withdrawals, looks;
} hl_hosts;

struct hl_page;

/* Agent only. Addresses: 16 bytes each. 0, or -ENOSPC for too many. */
int hl_hosts_share(struct hl_page *page, const uint8_t *own, uint32_t own_count, const uint8_t *peers, uint32_t peer_count,
                   const hl_endpoint *control, uint32_t control_count);

/* True when other hosts share this clock. */
bool hl_hosts_shared(const struct hl_page *page);

/* Waits until the time-keeper says more than (reported, withdrawn), a poke, or the timeout. Fills in both and, for a new
 * report, what it says; connections: HL_CONNECTIONS_MAX of them. True: there is something new. */
bool hl_hosts_wait(struct hl_page *page, uint64_t *reported, uint64_t *withdrawn, int timeout_ms, hl_report *report,
                   hl_connection *connections);

/* Ends a wait of another thread of the agent. */
void hl_hosts_poke(struct hl_page *page);

/* The coordinator's answer to a report. instant_ns < 0: look again. */
void hl_hosts_answer(struct hl_page *page, uint64_t number, int64_t instant_ns, bool search, bool ask_world);

/* True when this address (16 bytes) is another node's. */
bool hl_hosts_is_peer(const hl_hosts *hosts, const uint8_t *address);

#endif
