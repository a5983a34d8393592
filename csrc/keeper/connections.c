/* How many bytes went to other nodes and came from them, per connection, from the kernel's own counters (sock_diag).
 *
 * Why not in wrappers of send and recv: a request that waits unread in a socket while its server sleeps has arrived, but no
 * recv has seen it. The kernel counts what it has given to the network and what has arrived in order, whoever reads it.
 *
 * All sockets of the network namespace are looked through only when there may be a new one (a participant called connect(),
 * or the other end told the coordinator of one): that costs 0.4 ms with the kernel's usual table of 262,144 buckets.
 * A known socket is asked for by name, 2 to 4 µs each. A connection that another node opens is found because that node
 * reports its end, and the coordinator then asks for a search. Besides, a search is made every 0.1 s, for programs that
 * connect by a system call of their own.
 *
 * What ends a run here: a kernel without sock_diag, and more connections than the page has room for. */
#include "keeper.h"

#include "../core/sys.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* linux/tcp.h has the structures; the states stand only in netinet/tcp.h, which redefines them. */
enum { ESTABLISHED = 1, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSED, CLOSE_WAIT, LAST_ACK, LISTENING, CLOSING };

#define BUFFER_BYTES (256 << 10)
#define SEARCH_EVERY_NS (INT64_C(100) * HL_NS_PER_MS)
#define SEARCHED_STATES (~((1u << TIME_WAIT) | (1u << CLOSED) | (1u << LISTENING)))

typedef struct socket_name {
    struct inet_diag_sockid id;
    uint8_t family;
} socket_name;

typedef struct request {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
} request;

static socket_name names[HL_CONNECTIONS_MAX];
static hl_connection first[HL_CONNECTIONS_MAX], again[HL_CONNECTIONS_MAX];
static uint32_t count;
static uint32_t connects_seen;
static int64_t searched_ns; /* real */
static int netlink_fd = -1;
static char buffer[BUFFER_BYTES];

static void fatal(const char *what)
{
    fprintf(stderr, "hyperlapse-keeper: %s\n", what);
    abort();
}

static void open_netlink(void)
{
    if (netlink_fd >= 0)
        return;
    netlink_fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (netlink_fd < 0)
        fatal("this kernel has no sock_diag (CONFIG_INET_DIAG): bytes between hosts cannot be counted; run without --coordinator");
}

static void map_address(uint8_t *to, uint8_t family, const __be32 *from)
{
    memset(to, 0, HL_ADDRESS_BYTES);
    if (family == AF_INET6) {
        memcpy(to, from, HL_ADDRESS_BYTES);
        return;
    }
    to[10] = to[11] = 0xff;
    memcpy(to + 12, from, 4);
}

static bool is_own(const hl_hosts *hosts, const uint8_t *address)
{
    for (uint32_t i = 0; i < hosts->own_count; i++)
        if (!memcmp(hosts->own[i], address, HL_ADDRESS_BYTES))
            return true;
    return false;
}

static bool is_control(const hl_hosts *hosts, const uint8_t *address, uint16_t port)
{
    for (uint32_t i = 0; i < hosts->control_count; i++)
        if (hosts->control[i].port == port && !memcmp(hosts->control[i].address, address, HL_ADDRESS_BYTES))
            return true;
    return false;
}

static bool leaves_the_node(const hl_hosts *hosts, const hl_connection *c)
{
    return is_own(hosts, c->local) && hl_hosts_is_peer(hosts, c->remote) && !is_control(hosts, c->local, c->local_port) &&
           !is_control(hosts, c->remote, c->remote_port);
}

static bool peer_has_closed(uint32_t state) { return state == CLOSE_WAIT || state == LAST_ACK || state == CLOSING; }

/* The kernel's answer for one socket. False: one without counters, which has nothing left to give or to take. */
static bool read_socket(struct nlmsghdr *header, hl_connection *c, socket_name *name)
{
    struct inet_diag_msg *message = NLMSG_DATA(header);
    struct tcp_info info = {0};
    bool counted = false;
    int length = (int)header->nlmsg_len - (int)NLMSG_LENGTH(sizeof *message);
    for (struct rtattr *a = (struct rtattr *)(message + 1); RTA_OK(a, length); a = RTA_NEXT(a, length))
        if (a->rta_type == INET_DIAG_INFO) {
            memcpy(&info, RTA_DATA(a), RTA_PAYLOAD(a) < sizeof info ? RTA_PAYLOAD(a) : sizeof info);
            counted = true;
        }
    if (message->idiag_state != SYN_RECV && (!counted || ((1u << message->idiag_state) & SEARCHED_STATES) == 0))
        return false;
    *name = (socket_name){.id = message->id, .family = message->idiag_family};
    memset(c, 0, sizeof *c);
    map_address(c->local, message->idiag_family, message->id.idiag_src);
    map_address(c->remote, message->idiag_family, message->id.idiag_dst);
    c->local_port = ntohs(message->id.idiag_sport);
    c->remote_port = ntohs(message->id.idiag_dport);
    c->state = message->idiag_state;
    c->unsent_bytes = info.tcpi_notsent_bytes;
    c->unread_bytes = message->idiag_rqueue;
    c->sent_bytes = info.tcpi_bytes_sent - info.tcpi_bytes_retrans;
    /* The peer's end of stream counts as one byte here, but not among those that it sends. */
    c->received_bytes = info.tcpi_bytes_received - (peer_has_closed(c->state) ? 1 : 0);
    c->unacknowledged_bytes = peer_has_closed(c->state) ? message->idiag_wqueue : 0;
    return true;
}

static ssize_t receive(void)
{
    for (;;) {
        ssize_t got = recv(netlink_fd, buffer, sizeof buffer, 0);
        if (got > 0)
            return got;
        if (got < 0 && errno != EINTR)
            fatal("cannot read the kernel's counters of TCP connections (sock_diag)");
    }
}

static request request_for(uint8_t family, uint16_t flags, uint32_t sequence)
{
    return (request){
        .header = {.nlmsg_len = sizeof(request), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | flags,
                   .nlmsg_seq = sequence},
        .body = {.sdiag_family = family, .sdiag_protocol = IPPROTO_TCP, .idiag_ext = 1 << (INET_DIAG_INFO - 1),
                 .idiag_states = SEARCHED_STATES},
    };
}

static void send_request(const request *r)
{
    if (send(netlink_fd, r, sizeof *r, 0) != sizeof *r)
        fatal("cannot ask for the kernel's counters of TCP connections (sock_diag)");
}

static void search_family(const hl_hosts *hosts, uint8_t family)
{
    request r = request_for(family, NLM_F_DUMP, 0);
    send_request(&r);
    for (;;) {
        ssize_t got = receive();
        for (struct nlmsghdr *h = (struct nlmsghdr *)buffer; NLMSG_OK(h, (size_t)got); h = NLMSG_NEXT(h, got)) {
            if (h->nlmsg_type == NLMSG_DONE)
                return;
            if (h->nlmsg_type == NLMSG_ERROR) {
                if (family == AF_INET6) /* a kernel without IPv6 */
                    return;
                fatal("this kernel does not list TCP connections (CONFIG_INET_TCP_DIAG): run without --coordinator");
            }
            hl_connection c;
            socket_name name;
            if (!read_socket(h, &c, &name) || !leaves_the_node(hosts, &c))
                continue;
            if (count == HL_CONNECTIONS_MAX)
                fatal("more than 1,024 connections to other nodes: use fewer");
            first[count] = c;
            names[count++] = name;
        }
    }
}

/* The socket's counters now. False: it is gone. */
static bool ask(const socket_name *name, hl_connection *c)
{
    request r = request_for(name->family, 0, 1);
    socket_name same;
    r.body.id = name->id;
    send_request(&r);
    receive();
    struct nlmsghdr *h = (struct nlmsghdr *)buffer;
    return h->nlmsg_type != NLMSG_ERROR && read_socket(h, c, &same);
}

void keeper_connections_read(keeper *k, bool search)
{
    hl_hosts *hosts = &k->page->hosts;
    open_netlink();
    uint32_t connects = atomic_load(&hosts->connects), kept = 0;
    int64_t now_ns = hl_clock_real_ns();
    if (search || connects != connects_seen || now_ns - searched_ns > SEARCH_EVERY_NS) {
        searched_ns = now_ns;
        count = 0;
        connects_seen = connects;
        search_family(hosts, AF_INET);
        search_family(hosts, AF_INET6);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        if (ask(&names[i], &first[kept]))
            names[kept++] = names[i];
    count = kept;
}

bool keeper_connections_read_again(keeper *k)
{
    if (atomic_load(&k->page->hosts.connects) != connects_seen)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (!ask(&names[i], &again[i]) || again[i].state != first[i].state)
            return false;
    return true;
}

uint32_t keeper_connections_copy(hl_connection *connections)
{
    for (uint32_t i = 0; i < count; i++) {
        connections[i] = again[i];
        connections[i].received_bytes = first[i].received_bytes;
    }
    return count;
}
