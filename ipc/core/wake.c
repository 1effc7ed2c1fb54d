/* Who sleeps, who is empty, whom to ring.
 *
 * Two bitmaps over the participants. `sleeping`: the worker is about to block, or blocks, on its
 * doorbell; whoever clears the bit has to ring it. `empty`: the worker runs nothing; only itself (or
 * a repair after its death, or a worker it left waiting) clears it. Producers prefer sleepers that are
 * empty, and a worker that runs something leaves the last tasks to the empty ones.
 *
 * The handshake: the producer publishes a hint, then reads `sleeping`; the worker sets its bit in
 * `sleeping`, then looks for hints. All four are seq_cst operations, so one of the two sees the other.
 * The same holds for `armed` and whatever is published before tsq_disarm.
 */
#include "layout.h"

void tsq_sleep(tsq *q, uint32_t me, int is_empty) {
    tsq_set_empty(q, me, is_empty);
    atomic_fetch_or(&bitmap(q, q->at.sleeping)[me / 64], UINT64_C(1) << (me % 64));
}

void tsq_wake_up(tsq *q, uint32_t me) {
    atomic_fetch_and(&bitmap(q, q->at.sleeping)[me / 64], ~(UINT64_C(1) << (me % 64)));
}

void tsq_set_empty(tsq *q, uint32_t me, int is_empty) {
    tsq_au64 *word = &bitmap(q, q->at.empty)[me / 64];
    uint64_t bit = UINT64_C(1) << (me % 64);
    int is_set = (atomic_load(word) & bit) != 0;
    if (is_empty && !is_set) atomic_fetch_or(word, bit);
    if (!is_empty && is_set) atomic_fetch_and(word, ~bit);
}

/* Takes one bit out of `sleeping`; its owner has to be rung. 0: nobody sleeps. */
static uint32_t take_sleeper(tsq *q, uint32_t me, int empty_only) {
    uint32_t words = q->geo.participants / 64;
    for (uint32_t k = 0; k < words; k++) {
        uint32_t w = (me / 64 + k) % words;
        for (;;) {
            uint64_t sleeping = atomic_load(&bitmap(q, q->at.sleeping)[w]);
            if (empty_only) sleeping &= atomic_load(&bitmap(q, q->at.empty)[w]);
            if (!sleeping) break;
            /* Rotating start: the number of messages so far spreads the wakes over the workers. */
            uint32_t turn = (uint32_t)(atomic_load_explicit(&ring_at(q, RING_FREE)->head, memory_order_relaxed) % 64);
            uint64_t later = sleeping & ~((UINT64_C(1) << turn) - 1);
            uint32_t b = (uint32_t)__builtin_ctzll(later ? later : sleeping);
            uint64_t bit = UINT64_C(1) << b;
            if (atomic_fetch_and(&bitmap(q, q->at.sleeping)[w], ~bit) & bit) return w * 64 + b;
        }
    }
    return 0;
}

uint32_t tsq_pick_sleeper(tsq *q, uint32_t me, int empty_only) {
    uint32_t p = take_sleeper(q, me, 1);
    if (!p && !empty_only) p = take_sleeper(q, me, 0);
    return p;
}

/* A ring that counts nothing is looked into: who put the hint may stand still before moving the tail. */
static uint32_t hints_or_one(tsq *q, unsigned r) {
    uint64_t pos;
    uint32_t index, gen12, n = ring_hints(q, r);
    return n ? n : (uint32_t)ring_peek(q, r, &pos, &index, &gen12);
}

uint32_t tsq_ready_hints(tsq *q) {
    uint32_t used = atomic_load(&head_of(q)->lanes_used), n = hints_or_one(q, RING_AGAIN);
    for (uint32_t lane = 0; lane < TSQ_LANES; lane++)
        if (used >> lane & 1) n += hints_or_one(q, RING_LANE + lane);
    return n;
}

uint32_t tsq_empty_others(tsq *q, uint32_t me) {
    uint32_t n = 0;
    for (uint32_t w = 0; w < q->geo.participants / 64; w++) {
        uint64_t v = atomic_load(&bitmap(q, q->at.empty)[w]);
        if (w == me / 64) v &= ~(UINT64_C(1) << (me % 64));
        n += (uint32_t)__builtin_popcountll(v);
    }
    return n;
}

/* Workers that are marked empty and awake were rung and did not come: stopped, or slow. They mark
 * themselves again when they next look for work. */
void tsq_ignore_unanswering(tsq *q, uint32_t me) {
    for (uint32_t w = 0; w < q->geo.participants / 64; w++) {
        uint64_t keep = atomic_load(&bitmap(q, q->at.sleeping)[w]);
        if (w == me / 64) keep |= UINT64_C(1) << (me % 64);
        atomic_fetch_and(&bitmap(q, q->at.empty)[w], keep);
    }
}

void tsq_arm(tsq *q, uint32_t me) { atomic_store(&participant_at(q, me)->armed, 1); }

int tsq_disarm(tsq *q, uint32_t index) {
    if (!index || index >= q->geo.participants) return 0;
    return atomic_exchange(&participant_at(q, index)->armed, 0) == 1;
}
