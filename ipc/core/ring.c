/* Helpable rings of hints.
 *
 * A cell holds lap:32 | generation:12 | index:20. Putting is one CAS on the cell; after it anyone
 * may move the tail. Taking is a CAS on the slot's or block's own word, done by the caller between
 * ring_peek and ring_advance; after it anyone may move the head. So there is no state in which a
 * position is taken but not filled, which is what makes queues of the ticket kind wait for the dead.
 * A hint may be stale or double: the word's CAS then fails, harmlessly.
 *
 * Orders: the cell CAS of ring_put and the cell load of ring_peek are seq_cst, because they are one
 * half of the sleep/wake handshake (publish, then read the sleepers; announce sleep, then look).
 * Head and tail are acquire/release: they only say where to look, the lap in the cell decides.
 */
#include "layout.h"

#define INDEX_BITS 20u
#define INDEX_MASK ((UINT32_C(1) << INDEX_BITS) - 1)

static uint32_t lap_of(const tsq *q, unsigned r, uint64_t pos) {
    return (uint32_t)(pos / q->at.ring_size[r] + 1);
}

static int help(tsq_au64 *end, uint64_t pos) {
    return atomic_compare_exchange_strong_explicit(end, &pos, pos + 1, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

/* TSQ_OK, or TSQ_FULL when every cell is hinted. */
int ring_put(tsq *q, unsigned r, uint32_t index, uint64_t gen) {
    ring_ends *e = ring_at(q, r);
    uint64_t n = q->at.ring_size[r];
    for (;;) {
        uint64_t tail = atomic_load_explicit(&e->tail, memory_order_acquire);
        uint64_t head = atomic_load_explicit(&e->head, memory_order_acquire);
        if ((int64_t)(tail - head) >= (int64_t)n) {
            if (atomic_load_explicit(&e->tail, memory_order_acquire) == tail) return TSQ_FULL;
            continue;
        }
        tsq_au64 *cell = ring_cell(q, r, tail);
        uint64_t v = atomic_load_explicit(cell, memory_order_acquire);
        uint32_t lap = lap_of(q, r, tail), seen = (uint32_t)(v >> 32);
        if (seen == lap) {
            (void)help(&e->tail, tail);
            continue;
        }
        if (seen != lap - 1) {
            /* The tail moved on, or the cell is damaged: nobody would ever fill it again. */
            if (atomic_load_explicit(&e->tail, memory_order_acquire) == tail) return TSQ_FULL;
            continue;
        }
        uint64_t hint = ((uint64_t)lap << 32) | ((gen & 0xfffu) << INDEX_BITS) | (index & INDEX_MASK);
        if (atomic_compare_exchange_strong(cell, &v, hint)) {
            (void)help(&e->tail, tail);
            return TSQ_OK;
        }
    }
}

/* 1 and the hint at the head, or 0 when the ring is empty. */
int ring_peek(tsq *q, unsigned r, uint64_t *pos, uint32_t *index, uint32_t *gen12) {
    ring_ends *e = ring_at(q, r);
    for (;;) {
        uint64_t head = atomic_load_explicit(&e->head, memory_order_acquire);
        uint64_t v = atomic_load(ring_cell(q, r, head));
        if ((uint32_t)(v >> 32) != lap_of(q, r, head)) {
            if (atomic_load_explicit(&e->head, memory_order_acquire) != head) continue;
            return 0;
        }
        uint64_t tail = atomic_load_explicit(&e->tail, memory_order_acquire);
        if (tail == head) { /* whoever put the hint has not moved the tail yet */
            (void)help(&e->tail, tail);
            continue;
        }
        *pos = head;
        *index = (uint32_t)v & INDEX_MASK;
        *gen12 = (uint32_t)(v >> INDEX_BITS) & 0xfffu;
        return 1;
    }
}

/* 1 if this caller moved the head: of all who saw the hint it is the one that removed it. */
int ring_advance(tsq *q, unsigned r, uint64_t pos) { return help(&ring_at(q, r)->head, pos); }

/* About how many hints the ring holds, stale ones included. */
uint32_t ring_hints(const tsq *q, unsigned r) {
    const ring_ends *e = ring_at(q, r);
    uint64_t head = atomic_load_explicit(&e->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&e->tail, memory_order_acquire);
    int64_t d = (int64_t)(tail - head);
    if (d <= 0) return 0;
    return d > (int64_t)q->at.ring_size[r] ? (uint32_t)q->at.ring_size[r] : (uint32_t)d;
}

/* A hint of an earlier message in the slot; RING_FREE and the rings of blocks do not tell. */
static int is_stale(const tsq *q, unsigned r, uint32_t index, uint64_t hint) {
    if (r == RING_FREE || r >= RING_BLOCK) return 0;
    uint64_t w = atomic_load_explicit(&slot_at(q, index)->word, memory_order_acquire);
    return (tsq_gen_of(w) & 0xfffu) != (hint >> INDEX_BITS & 0xfffu);
}

/* Sets the bit of every index below n that is hinted now: one pass, for repairs. */
void ring_mark_hinted(const tsq *q, unsigned r, uint8_t *set, uint32_t n) {
    const ring_ends *e = ring_at(q, r);
    uint64_t size = q->at.ring_size[r];
    uint64_t pos = atomic_load_explicit(&e->head, memory_order_acquire), end = pos + size;
    for (; pos != end; pos++) {
        uint64_t v = atomic_load_explicit(ring_cell(q, r, pos), memory_order_acquire);
        uint32_t i = (uint32_t)v & INDEX_MASK;
        if ((uint32_t)(v >> 32) != lap_of(q, r, pos)) break;
        if (i < n && !is_stale(q, r, i, v)) set[i / 8] |= (uint8_t)(1u << (i % 8));
    }
}

/* Hints a slot; a ring full of stale hints loses its oldest ones first. Bounded: should all hints be
 * valid, some of them doubly, the audit hints this slot. */
void hint_slot(tsq *q, unsigned r, uint32_t index, uint64_t gen, unsigned state) {
    for (uint64_t tries = q->at.ring_size[r]; tries && ring_put(q, r, index, gen); tries--) {
        uint64_t pos;
        uint32_t k, gen12;
        if (!ring_peek(q, r, &pos, &k, &gen12)) continue; /* emptied meanwhile */
        if (!ring_advance(q, r, pos) || k >= q->geo.slots) continue;
        uint64_t w = atomic_load_explicit(&slot_at(q, k)->word, memory_order_acquire);
        if (tsq_state_of(w) == state && (tsq_gen_of(w) & 0xfffu) == gen12) (void)ring_put(q, r, k, tsq_gen_of(w));
    }
}

/* Hints a READY slot in its lane. The lane's bit comes before the hint (both seq_cst): who is about to
 * sleep and does not see the bit did not see the hint either, and is seen by who put it. */
void hint_ready(tsq *q, uint32_t index, uint64_t gen) {
    uint32_t lane = atomic_load_explicit(&slot_at(q, index)->lane, memory_order_relaxed);
    if (lane >= TSQ_LANES) lane = 0; /* damaged */
    tsq_au32 *used = &head_of(q)->lanes_used;
    if (!(atomic_load(used) >> lane & 1)) atomic_fetch_or(used, UINT32_C(1) << lane);
    hint_slot(q, RING_LANE + lane, index, gen, TSQ_READY);
}

void mark_hinted_ready(const tsq *q, uint8_t *set) {
    ring_mark_hinted(q, RING_AGAIN, set, q->geo.slots);
    for (unsigned lane = 0; lane < TSQ_LANES; lane++) ring_mark_hinted(q, RING_LANE + lane, set, q->geo.slots);
}
