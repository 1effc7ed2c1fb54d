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

/* Sets the bit of every index below n that is hinted now: one pass, for repairs. */
void ring_mark_hinted(const tsq *q, unsigned r, uint8_t *set, uint32_t n) {
    const ring_ends *e = ring_at(q, r);
    uint64_t size = q->at.ring_size[r];
    uint64_t pos = atomic_load_explicit(&e->head, memory_order_acquire), end = pos + size;
    for (; pos != end; pos++) {
        uint64_t v = atomic_load_explicit(ring_cell(q, r, pos), memory_order_acquire);
        uint32_t i = (uint32_t)v & INDEX_MASK;
        if ((uint32_t)(v >> 32) != lap_of(q, r, pos)) break;
        if (i < n) set[i / 8] |= (uint8_t)(1u << (i % 8));
    }
}
