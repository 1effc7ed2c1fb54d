/* Time: messages that are not due yet, and messages whose time is over.
 *
 * Both wait in their slots, in no ring. The custodian finds them by their words and sleeps until the
 * earliest of their times. `next_due` tells it of new ones: who commits such a message lowers it. The
 * custodian takes the value away, then looks at every slot, then lowers it to what it found, and says
 * in `planned` until when it will sleep. A producer rings it if it plans to sleep longer; whether others
 * have announced something earlier is no reason not to, since they may be stopped before they ring.
 * Lowering and reading the plan on one side, storing the plan and reading `next_due` again on the other,
 * are seq_cst, so one of the two sees the other; as are commit and lowering, and taking away and looking.
 * A producer that dies in between is repaired, which looks as well. Several may run this at a time.
 */
#include "layout.h"

/* 1 if the custodian plans to sleep longer: it has to be rung. */
int announce_due(tsq *q, uint64_t at_ns) {
    uint64_t seen = atomic_load(tsq_next_due(q));
    while (at_ns < seen && !atomic_compare_exchange_strong(tsq_next_due(q), &seen, at_ns)) {
    }
    return at_ns < atomic_load(&head_of(q)->planned);
}

/* 1 if something earlier has been announced meanwhile: plan again. */
int tsq_plan_due(tsq *q, uint64_t at_ns) {
    atomic_store(&head_of(q)->planned, at_ns);
    return atomic_load(tsq_next_due(q)) < at_ns;
}

/* A message that was taken before it was due, to be ended, and is given back. */
int waits_until_due(const tsq *q, uint32_t slot_index, uint64_t now_ns) {
    return atomic_load_explicit(&slot_at(q, slot_index)->due_ns, memory_order_relaxed) > now_ns;
}

static void wake_one(tsq *q, uint32_t me, uint64_t wake[TSQ_WAKE_WORDS]) {
    uint32_t p = tsq_pick_sleeper(q, me, 0);
    if (p) wake[p / 64] |= UINT64_C(1) << (p % 64);
}

/* DELAYED becomes READY, in the name of who does it: should it die before the hint, its repair hints. */
static int make_ready(tsq *q, uint32_t me, uint32_t i, uint64_t w) {
    uint64_t to = tsq_word(TSQ_READY, me, tsq_attempt_of(w), tsq_gen_of(w));
    if (!atomic_compare_exchange_strong(&slot_at(q, i)->word, &w, to)) return 0;
    hint_ready(q, i, tsq_gen_of(to));
    return 1;
}

static int expire(tsq *q, uint32_t me, uint32_t i, uint64_t w, uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]) {
    tsq_lease lease;
    if (tsq_take(q, me, i, tsq_gen_of(w), &lease)) return 0;
    if (!tsq_finish(q, me, &lease, TSQ_OUTCOME_EXPIRED, now_ns, wake)) return 1;
    tsq_call call; /* not ended: whatever the reason, it must not stay with us */
    (void)tsq_release(q, me, &lease, now_ns, &call);
    return 0;
}

void tsq_run_due(tsq *q, uint32_t me, uint64_t now_ns, uint64_t *next_ns, uint32_t *moved, uint32_t *expired,
                 uint64_t wake[TSQ_WAKE_WORDS]) {
    uint64_t next = UINT64_MAX;
    *moved = *expired = 0;
    atomic_exchange(tsq_next_due(q), UINT64_MAX);
    for (uint32_t i = 0; i < q->geo.slots; i++) {
        slot *s = slot_at(q, i);
        uint64_t w = atomic_load(&s->word);
        unsigned state = tsq_state_of(w);
        if (state != TSQ_READY && state != TSQ_DELAYED) continue;
        uint64_t due = atomic_load_explicit(&s->due_ns, memory_order_acquire);
        uint64_t expires = atomic_load_explicit(&s->expires_ns, memory_order_acquire);
        /* Changed since: claimed, or another message by now, which announces itself. */
        if (atomic_load_explicit(&s->word, memory_order_acquire) != w) continue;
        if (expires && expires <= now_ns) {
            *expired += (uint32_t)expire(q, me, i, w, now_ns, wake);
            continue;
        }
        if (expires && expires < next) next = expires;
        if (state == TSQ_READY) continue;
        if (due > now_ns) {
            if (due < next) next = due;
        } else if (make_ready(q, me, i, w)) {
            ++*moved;
            wake_one(q, me, wake);
        }
    }
    if (next != UINT64_MAX) (void)announce_due(q, next);
    *next_ns = next;
}
