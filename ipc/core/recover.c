/* Repair after a death, and the slow audit.
 *
 * The caller holds the dead participant's lock byte, so its death is proven and nobody else becomes
 * this participant meanwhile. Everything is CAS on what the dead one left, idempotent, and may be
 * begun again by the next one if the repairer dies too. Order: its marks as a sleeper go first (a wake
 * that is given to the dead is lost), then its slots, then blocks that outlived their message.
 */
#include <stdlib.h>
#include <string.h>

#include "layout.h"

typedef struct {
    tsq *q;
    uint32_t dead, me;
    uint64_t cause, now_ns;
    int explained;
    uint8_t *lane, *freed, *done;
    tsq_repair *list;
    uint32_t n;
    uint64_t *wake;
} repair;

static int hinted(const uint8_t *set, uint32_t i) { return (set[i / 8] >> (i % 8)) & 1; }

static int change(repair *r, uint32_t i, uint64_t from, uint64_t to) {
    return atomic_compare_exchange_strong(&slot_at(r->q, i)->word, &from, to);
}

static void note(repair *r, uint32_t i, uint32_t kind, uint64_t word) {
    tsq_repair item = {.slot = i, .kind = kind, .word = word};
    r->list[r->n++] = item;
}

static void redeliver(repair *r, uint32_t i, uint64_t w, unsigned attempt) {
    unsigned state = waits_until_due(r->q, i, r->now_ns) ? TSQ_DELAYED : TSQ_READY;
    uint64_t to = tsq_word(state, r->me, attempt, tsq_gen_of(w));
    if (!change(r, i, w, to)) return;
    if (state == TSQ_READY) hint_slot(r->q, RING_AGAIN, i, tsq_gen_of(w), TSQ_READY);
    note(r, i, TSQ_REDELIVERED, to);
}

/* Ends a message without a result of its own: the reference says why, the death record by what. */
static void conclude(repair *r, uint32_t i, uint64_t w, unsigned state, uint32_t where) {
    slot *s = slot_at(r->q, i);
    uint64_t to = tsq_word(state, r->me, tsq_attempt_of(w), tsq_gen_of(w));
    uint64_t old = atomic_load_explicit(&s->ref, memory_order_acquire);
    atomic_store_explicit(&s->death, r->cause, memory_order_release);
    atomic_store_explicit(&s->done_ns, r->now_ns, memory_order_release);
    atomic_store_explicit(&s->ref, ref_make(tsq_attempt_of(w), tsq_gen_of(w), where), memory_order_release);
    if (!change(r, i, w, to)) return;
    if (ref_gen(old) == (uint32_t)tsq_gen_of(w)) result_drop(r->q, r->me, i, old);
    notify_watchers(r->q, i, r->wake);
    hint_slot(r->q, state == TSQ_DEAD ? RING_DEAD : RING_DONE, i, tsq_gen_of(w), state);
    note(r, i,
         state == TSQ_DEAD          ? TSQ_DEAD_LETTERED
         : where == WHERE_TIMED_OUT ? TSQ_TIMED_OUT
                                    : TSQ_RESULT_LOST,
         to);
}

static void repair_running(repair *r, uint32_t i, uint64_t w) {
    slot *s = slot_at(r->q, i);
    unsigned attempt = tsq_attempt_of(w);
    uint32_t limit = atomic_load_explicit(&s->max_deliveries, memory_order_relaxed);
    if (!limit) limit = atomic_load_explicit(tsq_max_deliveries(r->q), memory_order_relaxed);
    if (is_overdue(r->q, i, w)) conclude(r, i, w, TSQ_DONE, WHERE_TIMED_OUT);
    else if (r->explained) {
        /* The start does not count, so a reference of it must not stand in the way of later ends. */
        unsigned before = attempt ? attempt - 1 : 0;
        atomic_store_explicit(&s->ref, ref_make(before, tsq_gen_of(w), WHERE_NONE), memory_order_release);
        redeliver(r, i, w, before);
    }
    else if (attempt >= limit) conclude(r, i, w, TSQ_DEAD, WHERE_DEATH);
    else redeliver(r, i, w, attempt);
}

static void repair_writing(repair *r, uint32_t i, uint64_t w) {
    uint64_t ref = atomic_load_explicit(&slot_at(r->q, i)->ref, memory_order_acquire);
    /* It died while it took over a slot whose outcome was to be forgotten. */
    if (ref_gen(ref) != (uint32_t)tsq_gen_of(w)) result_drop(r->q, r->me, i, ref);
    sending_failed(r->q, i, tsq_gen_of(w));
    if (change(r, i, w, tsq_word(TSQ_FREE, r->me, 0, tsq_gen_of(w)))) (void)ring_put(r->q, RING_FREE, i, 0);
}

static void repair_slot(repair *r, uint32_t i, uint64_t w) {
    switch (tsq_state_of(w)) {
    case TSQ_FREE:
        if (!hinted(r->freed, i)) (void)ring_put(r->q, RING_FREE, i, 0);
        break;
    case TSQ_WRITING: repair_writing(r, i, w); break;
    case TSQ_READY:
        if (!hinted(r->lane, i)) hint_ready(r->q, i, tsq_gen_of(w));
        break;
    case TSQ_DELAYED: break; /* in no ring: what is due is looked for after every repair */
    case TSQ_LEASED: redeliver(r, i, w, tsq_attempt_of(w)); break;
    case TSQ_RUNNING: repair_running(r, i, w); break;
    case TSQ_ACKED: conclude(r, i, w, TSQ_DONE, is_overdue(r->q, i, w) ? WHERE_TIMED_OUT : WHERE_LOST); break;
    case TSQ_DONE:
    case TSQ_DEAD:
        notify_watchers(r->q, i, r->wake);
        if (!hinted(r->done, i))
            (void)ring_put(r->q, tsq_state_of(w) == TSQ_DEAD ? RING_DEAD : RING_DONE, i, tsq_gen_of(w));
        break;
    default: break; /* not a state of this protocol: damaged, left as it is */
    }
}

static int allocate(repair *r) {
    size_t set = r->q->geo.slots / 8 + 1;
    r->lane = calloc(set, 1);
    r->freed = calloc(set, 1);
    r->done = calloc(set, 1);
    r->list = calloc(r->q->geo.slots, sizeof *r->list);
    return r->lane && r->freed && r->done && r->list;
}

int tsq_recover(tsq *q, uint32_t dead, uint32_t me, uint64_t cause, uint64_t now_ns,
                tsq_repair **repairs, uint32_t *n, uint64_t wake[TSQ_WAKE_WORDS]) {
    if (!dead || dead >= q->geo.participants) return TSQ_BAD_ARGUMENT;
    repair r = {.q = q, .dead = dead, .me = me, .cause = cause, .now_ns = now_ns, .wake = wake};
    r.explained = (int)atomic_load_explicit(&participant_at(q, dead)->explained, memory_order_acquire);
    int rc = TSQ_NO_MEMORY;
    *repairs = NULL;
    *n = 0;
    if (allocate(&r)) {
        uint64_t mask = ~(UINT64_C(1) << (dead % 64));
        atomic_fetch_and(&bitmap(q, q->at.sleeping)[dead / 64], mask);
        atomic_fetch_and(&bitmap(q, q->at.empty)[dead / 64], mask);
        tsq_step_out(q, dead);
        mark_hinted_ready(q, r.lane);
        ring_mark_hinted(q, RING_FREE, r.freed, q->geo.slots);
        ring_mark_hinted(q, RING_DONE, r.done, q->geo.slots);
        ring_mark_hinted(q, RING_DEAD, r.done, q->geo.slots);
        for (uint32_t i = 0; i < q->geo.slots; i++) {
            uint64_t w = atomic_load(&slot_at(q, i)->word);
            if (tsq_owner_of(w) == dead) repair_slot(&r, i, w);
            else if (tsq_state_of(w) == TSQ_READY && !hinted(r.lane, i)) hint_ready(q, i, tsq_gen_of(w));
        }
        /* It may have died between a commit and its announcement, or over a look at what is due. */
        (void)announce_due(q, 0);
        dead_letters_trim(q, me);
        rc = blocks_sweep(q, dead, me);
        *repairs = r.list;
        *n = r.n;
        r.list = NULL;
        /* A wake that the dead one had promised, or had been given, is passed on to everybody. */
        for (uint32_t p = 1; p < q->geo.participants; p++)
            if (p != dead && participant_live(q, p)) wake[p / 64] |= UINT64_C(1) << (p % 64);
    }
    free(r.lane);
    free(r.freed);
    free(r.done);
    free(r.list);
    return rc;
}

typedef struct {
    uint64_t *seen;
    uint8_t *lane, *freed, *ended;
} audit;

/* The words are read before the rings: what is hinted nowhere although its word has not changed since is
 * not just on its way. A second hint would do no harm either. */
static void audit_look(tsq *q, audit *a) {
    for (uint32_t i = 0; i < q->geo.slots; i++)
        a->seen[i] = atomic_load_explicit(&slot_at(q, i)->word, memory_order_acquire);
    mark_hinted_ready(q, a->lane);
    ring_mark_hinted(q, RING_FREE, a->freed, q->geo.slots);
    ring_mark_hinted(q, RING_DONE, a->ended, q->geo.slots);
    ring_mark_hinted(q, RING_DEAD, a->ended, q->geo.slots);
}

static int expired_by(const slot *s, uint64_t now_ns, uint64_t ttl_ns) {
    uint64_t since = atomic_load_explicit(&s->done_ns, memory_order_acquire);
    return ttl_ns && now_ns > since && now_ns - since > ttl_ns;
}

int tsq_audit(tsq *q, uint32_t me, uint64_t now_ns, uint64_t dead_ttl_ns, uint32_t *expired,
              uint32_t *rehinted) {
    uint64_t result_ttl_ns = atomic_load(tsq_result_ttl(q));
    size_t set = q->geo.slots / 8 + 1;
    audit a = {.seen = calloc(q->geo.slots, sizeof *a.seen), .lane = calloc(set, 1), .freed = calloc(set, 1),
               .ended = calloc(set, 1)};
    int rc = TSQ_NO_MEMORY;
    *expired = *rehinted = 0;
    if (a.seen && a.lane && a.freed && a.ended) {
        audit_look(q, &a);
        for (uint32_t i = 0; i < q->geo.slots; i++) {
            slot *s = slot_at(q, i);
            uint64_t w = a.seen[i];
            unsigned state = tsq_state_of(w);
            if (atomic_load_explicit(&s->word, memory_order_acquire) != w) continue;
            if (state == TSQ_READY && !hinted(a.lane, i)) { /* its producer is stopped before the hint */
                hint_ready(q, i, tsq_gen_of(w));
                ++*rehinted;
            } else if (state == TSQ_FREE && !hinted(a.freed, i)) {
                (void)ring_put(q, RING_FREE, i, 0);
            } else if (state == TSQ_DONE || state == TSQ_DEAD) {
                if (expired_by(s, now_ns, state == TSQ_DONE ? result_ttl_ns : dead_ttl_ns))
                    *expired += (uint32_t)slot_reclaim(q, me, i, w);
                else if (!hinted(a.ended, i)) /* who took its hint away to put it back died in between */
                    (void)ring_put(q, state == TSQ_DEAD ? RING_DEAD : RING_DONE, i, tsq_gen_of(w));
            }
        }
        rc = blocks_audit(q);
    }
    free(a.seen);
    free(a.lane);
    free(a.freed);
    free(a.ended);
    return rc;
}

void tsq_count(const tsq *q, tsq_counts *out) {
    uint32_t n[16] = {0};
    for (uint32_t i = 0; i < q->geo.slots; i++)
        n[tsq_state_of(atomic_load_explicit(&slot_at(q, i)->word, memory_order_relaxed))]++;
    out->free = n[TSQ_FREE];
    out->writing = n[TSQ_WRITING];
    out->ready = n[TSQ_READY];
    out->delayed = n[TSQ_DELAYED];
    out->leased = n[TSQ_LEASED];
    out->running = n[TSQ_RUNNING];
    out->acked = n[TSQ_ACKED];
    out->done = n[TSQ_DONE];
    out->dead = n[TSQ_DEAD];
}
