/* The node agent's side of hosts.h. */
#include "hosts.h"

#include <errno.h>
#include <string.h>

#include "export.h"
#include "page.h"
#include "sys.h"

HL_EXPORT int hl_hosts_share(hl_page *page, const uint8_t *own, uint32_t own_count, const uint8_t *peers, uint32_t peer_count,
                             const hl_endpoint *control, uint32_t control_count)
{
    hl_hosts *hosts = &page->hosts;
    if (own_count > HL_ADDRESSES_MAX || peer_count > HL_ADDRESSES_MAX || control_count > HL_ADDRESSES_MAX)
        return -ENOSPC;
    memcpy(hosts->own, own, (size_t)own_count * HL_ADDRESS_BYTES);
    memcpy(hosts->peers, peers, (size_t)peer_count * HL_ADDRESS_BYTES);
    memcpy(hosts->control, control, control_count * sizeof *control);
    hosts->own_count = own_count;
    hosts->peer_count = peer_count;
    hosts->control_count = control_count;
    atomic_store(&hosts->search, 1);
    atomic_store(&hosts->shared, 1);
    return 0;
}

HL_EXPORT bool hl_hosts_shared(const hl_page *page) { return atomic_load(&page->hosts.shared); }

HL_EXPORT bool hl_hosts_wait(hl_page *page, uint64_t *reported, uint64_t *withdrawn, int timeout_ms, hl_report *report,
                             hl_connection *connections)
{
    hl_hosts *hosts = &page->hosts;
    uint32_t seen = atomic_load(&hosts->word);
    for (int look = 0; look < 2; look++) {
        uint64_t number = atomic_load(&hosts->reported), back = atomic_load(&hosts->withdrawn);
        if (number != *reported) {
            /* Not written again before its answer, which the caller gives after this. */
            *reported = number;
            *report = hosts->report;
            memcpy(connections, hosts->connections, report->connections * sizeof *connections);
            return true;
        }
        if (back != *withdrawn) {
            *withdrawn = back;
            return true;
        }
        if (look == 0)
            hl_sys_futex_wait(&hosts->word, seen, timeout_ms * HL_NS_PER_MS);
    }
    return false;
}

HL_EXPORT void hl_hosts_poke(hl_page *page)
{
    atomic_fetch_add(&page->hosts.word, 1);
    hl_sys_futex_wake(&page->hosts.word, 1);
}

HL_EXPORT void hl_hosts_answer(hl_page *page, uint64_t number, int64_t instant_ns, bool search, bool ask_world)
{
    hl_hosts *hosts = &page->hosts;
    atomic_store(&hosts->instant_ns, instant_ns);
    if (search)
        atomic_store(&hosts->search, 1);
    if (ask_world)
        atomic_store(&hosts->ask_world, 1);
    atomic_store(&hosts->answered, number);
    hl_page_kick(page);
}

HL_EXPORT bool hl_hosts_is_peer(const hl_hosts *hosts, const uint8_t *address)
{
    for (uint32_t i = 0; i < hosts->peer_count; i++)
        if (!memcmp(hosts->peers[i], address, HL_ADDRESS_BYTES))
            return true;
    return false;
}
