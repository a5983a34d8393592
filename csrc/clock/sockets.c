/* TCP_NODELAY on every TCP connection. Nagle with delayed acknowledgements parks the second of two small writes for up to
 * 40 ms of real time in the kernel while every thread sleeps: the clock galloped from 3.8 s to 99.7 s there. */
#include "clock_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

static void no_delay(int fd)
{
    int saved = errno, one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on what is not TCP, as it should */
    errno = saved;
}

/* A server beyond this host answers in real time, while the virtual clock may jump over any timeout: counted. */
static bool beyond_this_host(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24) != 127;
    const struct in6_addr *six = &((const struct sockaddr_in6 *)address)->sin6_addr;
    return !IN6_IS_ADDR_LOOPBACK(six) && !(IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
}

/* A node that shares this clock: its bytes are counted, and the time-keeper is told that there is a socket to find. */
static bool to_another_node(const struct sockaddr *address)
{
    hl_hosts *hosts = &hl_page_get()->hosts;
    if (!atomic_load(&hosts->shared))
        return false;
    atomic_fetch_add(&hosts->connects, 1);
    uint8_t mapped[HL_ADDRESS_BYTES] = {[10] = 0xff, [11] = 0xff};
    if (address->sa_family == AF_INET)
        memcpy(mapped + 12, &((const struct sockaddr_in *)address)->sin_addr, 4);
    else
        memcpy(mapped, &((const struct sockaddr_in6 *)address)->sin6_addr, sizeof mapped);
    return hl_hosts_is_peer(hosts, mapped);
}

HL_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    if (hl_clock_ready() && address && (address->sa_family == AF_INET || address->sa_family == AF_INET6)) {
        int type = 0;
        socklen_t size = sizeof type;
        no_delay(fd);
        if (!to_another_node(address) && beyond_this_host(address) && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM)
            hl_report_event("outside-connection", "connect to another host");
    }
    return hl_libc_connect(fd, address, length);
}

HL_EXPORT int accept(int fd, struct sockaddr *restrict address, socklen_t *restrict length)
{
    bool active = hl_clock_ready();
    int connection = hl_libc_accept(fd, address, length);
    if (connection >= 0 && active)
        no_delay(connection);
    return connection;
}

HL_EXPORT int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict length, int flags)
{
    bool active = hl_clock_ready();
    int connection = hl_libc_accept4(fd, address, length, flags);
    if (connection >= 0 && active)
        no_delay(connection);
    return connection;
}
