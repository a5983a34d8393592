/* TCP_NODELAY on every TCP connection. Nagle with delayed acknowledgements parks the second of two small writes for up to
 * 40 ms of real time in the kernel while every thread sleeps: the clock galloped from 3.8 s to 99.7 s there. */
#include "clock_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

static void no_delay(int fd)
{
    int saved = errno, one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on what is not TCP, as it should */
    errno = saved;
}

HL_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    if (hl_clock_ready() && address && (address->sa_family == AF_INET || address->sa_family == AF_INET6))
        no_delay(fd);
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
