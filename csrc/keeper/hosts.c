/* Several hosts share one virtual instant: instead of jumping, a node reports that all of it sleeps and waits until the
 * coordinator, who knows every node, says which instant it is.
 *
 * Rule. What has arrived from other nodes is counted before the proof, what was sent to them after it. So a report never
 * claims a byte whose reader may still run, and never misses one that its node had sent when it slept. When for every
 * connection the one end's sent bytes are the other end's received ones, no node has been woken since its report
 * by another: the first one to be would have to have been woken by bytes that its report did not count, but their
 * sender's did. One round of reports is thus enough, and the coordinator needs no second one (coordinator/agreement.py).
 *
 * The kernel gives a socket's counters under the lock that also covers the waking of its reader: bytes that the first
 * reading saw have made their reader runnable before the proof looks.
 *
 * While a report stands the clock is held: see csrc/core/hosts.h. Who reads it then was woken from outside of the run (or by
 * a node that has its answer already, in which case ours is on its way): the report is taken back, and the answer to that,
 * or the one that was on its way, lets the reader go on. */
#include "keeper.h"

#include "../core/sys.h"

#define LOOK_NS (INT64_C(50) * HL_NS_PER_MS)

static void hold(hl_page *page) { atomic_store(&page->mode, HL_MODE_HELD); }

static void let_go(hl_page *page)
{
    uint32_t held = HL_MODE_HELD;
    if (atomic_compare_exchange_strong(&page->mode, &held, HL_MODE_FROZEN))
        hl_sys_futex_wake(&page->mode, INT32_MAX);
}

static void tell_agent(hl_hosts *hosts)
{
    atomic_fetch_add(&hosts->word, 1);
    hl_sys_futex_wake(&hosts->word, 1);
}

static bool all_sleep(keeper *k) { return keeper_prove_quiet(k) && !k->holds && !k->external_count; }

void keeper_before_proof(keeper *k) { keeper_connections_read(k, atomic_exchange(&k->page->hosts.search, 0)); }

/* False: somebody runs. */
static bool prove_and_hold(keeper *k, uint32_t reads)
{
    hl_page *page = k->page;
    if (!keeper_kick_spinners(k))
        return false;
    uint64_t activity = atomic_load(&page->activity);
    hold(page);
    /* Once more: whoever ran until now may have read the clock, and whoever runs from here cannot. A reader that found it
     * held sleeps, too, which no proof can tell from others: it is counted. */
    bool quiet = all_sleep(k) && atomic_load(&page->activity) == activity && atomic_load(&page->hosts.reads) == reads &&
                 keeper_connections_read_again(k);
    if (!quiet)
        let_go(page);
    return quiet;
}

static uint64_t publish(keeper *k)
{
    hl_hosts *hosts = &k->page->hosts;
    hl_slot *slot = NULL;
    uint64_t number = atomic_load(&hosts->reported) + 1;
    hosts->report = (hl_report){
        .number = number,
        .deadline_ns = keeper_earliest_deadline_ns(k, false, &slot),
        .background_ns = keeper_earliest_deadline_ns(k, true, &slot),
        .answerable = atomic_exchange(&hosts->ask_world, 0) && keeper_waits_for_the_world(k),
        .connections = keeper_connections_copy(hosts->connections),
    };
    atomic_fetch_add(&hosts->reports, 1);
    atomic_store(&hosts->reported, number);
    tell_agent(hosts);
    return number;
}

/* False: the loop has something else to do. */
static bool wait_for_answer(keeper *k, uint64_t number, uint32_t reads)
{
    hl_page *page = k->page;
    hl_hosts *hosts = &page->hosts;
    bool answered = false, called = false;
    atomic_store(&page->keeper_sleeps, 1);
    while (!answered && !called) {
        uint32_t seen = atomic_load(&page->keeper_word);
        answered = atomic_load(&hosts->answered) == number;
        called = keeper_is_called(k);
        if (answered || called)
            break;
        if (atomic_load(&hosts->reads) != reads && atomic_load(&hosts->withdrawn) != number) {
            atomic_fetch_add(&hosts->withdrawals, 1);
            atomic_store(&hosts->withdrawn, number);
            tell_agent(hosts);
        }
        hl_sys_futex_wait(&page->keeper_word, seen, LOOK_NS);
    }
    atomic_store(&page->keeper_sleeps, 0);
    return answered;
}

static void jump_to(hl_page *page, int64_t instant_ns)
{
    for (int i = 0; i < atomic_load(&page->slots_used); i++)
        if (atomic_load(&page->slots[i].pid) && atomic_load(&page->slots[i].deadline_ns) == instant_ns)
            atomic_fetch_add(&page->slots[i].jumps, 1);
    atomic_store(&page->now_ns, instant_ns);
    atomic_fetch_add(&page->jumps, 1);
}

bool keeper_agree(keeper *k)
{
    hl_page *page = k->page;
    hl_hosts *hosts = &page->hosts;
    uint32_t reads = atomic_load(&hosts->reads);
    int64_t began_ns = hl_clock_real_ns();
    if (!prove_and_hold(k, reads))
        return false;
    bool answered = wait_for_answer(k, publish(k), reads);
    int64_t instant_ns = answered ? atomic_load(&hosts->instant_ns) : -1;
    if (instant_ns >= 0) /* before the clock is let go: who waits for it reads the new instant */
        jump_to(page, instant_ns);
    else
        atomic_fetch_add(&hosts->looks, 1);
    let_go(page);
    if (instant_ns < 0)
        return false;
    keeper_wake_due(k);
    atomic_fetch_add(&page->trigger_to_wake_ns_total, (uint64_t)(hl_clock_real_ns() - began_ns));
    return true;
}
