/* Deadlines: the earliest one, and waking those whose instant has come. */
#include "keeper.h"

#include "../core/price.h"
#include "../core/sys.h"

#include <signal.h>

/* A wake-up may be lost when it falls between a thread's last look at the clock and its kernel wait. */
#define REPEAT_AFTER_NS HL_NS_PER_MS
#define SPINNER_LOOK_LIMIT_NS (INT64_C(4) * HL_NS_PER_MS)

int64_t keeper_earliest_deadline_ns(const keeper *k, bool lazy_too, hl_slot **slot)
{
    int64_t earliest_ns = HL_NEVER_NS;
    for (int i = 0; i < atomic_load(&k->page->slots_used); i++) {
        hl_slot *candidate = &k->page->slots[i];
        int64_t deadline_ns = atomic_load(&candidate->deadline_ns);
        if (!atomic_load(&candidate->pid) || deadline_ns >= earliest_ns || (!lazy_too && atomic_load(&candidate->lazy)))
            continue;
        earliest_ns = deadline_ns;
        *slot = candidate;
    }
    return earliest_ns;
}

int64_t keeper_holds(const keeper *k)
{
    int64_t holds = 0;
    for (int i = 0; i < HL_PROCESSES_MAX; i++)
        if (atomic_load(&k->page->processes[i].pid))
            holds += atomic_load(&k->page->processes[i].holds);
    int64_t outstanding = (int64_t)hl_price_outstanding();
    return holds > outstanding ? holds : outstanding;
}

static void wake(hl_page *page, hl_slot *slot)
{
    int64_t now_ns = hl_clock_real_ns(), before_ns = atomic_load(&slot->woken_real_ns);
    if (before_ns && now_ns - before_ns < REPEAT_AFTER_NS)
        return;
    if (before_ns)
        atomic_fetch_add(&page->signals_repeated, 1);
    atomic_store(&slot->woken_real_ns, now_ns);
    atomic_fetch_add(&slot->word, 1);
    switch (atomic_load(&slot->wake)) {
    case HL_WAKE_SIGNAL: {
        int32_t pid = atomic_load(&slot->pid), tid = atomic_load(&slot->tid);
        if (pid && tid)
            hl_sys_tgkill(pid, tid, SIGRTMAX - HL_WAKE_SIGNAL_FROM_MAX);
        break;
    }
    case HL_WAKE_CONDITION: {
        int32_t pid = atomic_load(&slot->pid);
        atomic_store(&slot->broadcast_due, 1);
        for (int i = 0; i < HL_PROCESSES_MAX; i++)
            if (atomic_load(&page->processes[i].pid) == pid) {
                atomic_fetch_add(&page->processes[i].broadcast, 1);
                hl_sys_futex_wake(&page->processes[i].broadcast, 1);
                break;
            }
        break;
    }
    default: hl_sys_futex_wake(&slot->word, 1);
    }
}

void keeper_wake_due(keeper *k)
{
    int64_t now_ns = hl_page_now_ns(k->page);
    for (int i = 0; i < atomic_load(&k->page->slots_used); i++) {
        hl_slot *slot = &k->page->slots[i];
        if (atomic_load(&slot->pid) && atomic_load(&slot->deadline_ns) <= now_ns) {
            if (atomic_load(&slot->lazy) && !atomic_load(&slot->woken_real_ns))
                atomic_fetch_add(&k->page->lazy_fires, 1);
            wake(k->page, slot);
        }
    }
}

/* After a change of mode the kernel timeouts that waiters sleep on are those of the old mode. */
void keeper_wake_all(keeper *k)
{
    for (int i = 0; i < atomic_load(&k->page->slots_used); i++) {
        hl_slot *slot = &k->page->slots[i];
        if (atomic_load(&slot->pid) && atomic_load(&slot->deadline_ns) != HL_NEVER_NS) {
            atomic_store(&slot->woken_real_ns, 0);
            wake(k->page, slot);
            atomic_store(&slot->woken_real_ns, 0);
        }
    }
}

bool keeper_kick_spinners(keeper *k)
{
    static uint32_t parks[HL_SLOTS_MAX];
    static bool kicked[HL_SLOTS_MAX];
    hl_page *page = k->page;
    int used = atomic_load(&page->slots_used);
    uint64_t activity = atomic_load(&page->activity), count = 0;
    for (int i = 0; i < used; i++) {
        hl_slot *slot = &page->slots[i];
        kicked[i] = atomic_load(&slot->pid) && atomic_load(&slot->wake) == HL_WAKE_SPIN &&
                    atomic_load(&slot->state) != HL_SLOT_RUNNING;
        if (!kicked[i])
            continue;
        count++;
        parks[i] = atomic_load(&slot->parks);
    }
    if (!count)
        return true;
    for (int i = 0; i < used; i++)
        if (kicked[i]) {
            atomic_fetch_add(&page->slots[i].word, 1);
            hl_sys_futex_wake(&page->slots[i].word, 1);
            atomic_fetch_add(&page->spinner_kicks, 1);
        }
    int64_t give_up_ns = hl_clock_real_ns() + SPINNER_LOOK_LIMIT_NS;
    for (bool all = false; !all;) {
        all = true;
        for (int i = 0; i < used; i++)
            all &= !kicked[i] || !atomic_load(&page->slots[i].pid) || atomic_load(&page->slots[i].parks) != parks[i];
        if (!all && hl_clock_real_ns() > give_up_ns)
            return false; /* it found something and is at work */
        hl_sys_yield();
    }
    /* Each looked once and parked again (one leave and one enter), nobody else did anything, and all sleep again. More
     * activity than that may be one spinner feeding another: look again before any jump. */
    int64_t settle_ns = hl_clock_real_ns() + SPINNER_LOOK_LIMIT_NS;
    while (hl_clock_real_ns() < settle_ns) {
        if (keeper_prove_quiet(k)) /* a look may have launched something */
            return !k->holds && atomic_load(&page->activity) - activity == 2 * count;
    }
    return false;
}
