/* Back-pressure: producers in line for room.
 *
 * A producer that finds no room sets its bit in `waiting`, hints itself in a ring, tries once more and
 * blocks. Who makes room (a lease ends, an outcome is read) takes the first in line out and has it
 * rung. Setting the bit and trying, and making room and reading the bits, are seq_cst: one of the two
 * sees the other. The bit is the truth, the ring only the order. A producer that was called and does
 * not come, because it is stopped, costs the others nothing but that call: every further piece of room
 * calls the next, and who is in line looks again by itself once a second.
 *
 * Calls begin at a low-water mark, so that a full queue does not wake a producer for every message; or
 * when nothing is left to be claimed, because then nothing further would lead to the mark.
 */
#include "layout.h"

/* Free slots that are kept for messages that are sent again by workers. */
uint32_t room_kept(const tsq *q) { return q->geo.slots / 64; }

static tsq_au64 *waiting_word(const tsq *q, uint32_t p) { return &bitmap(q, q->at.waiting)[p / 64]; }

void tsq_queue_up(tsq *q, uint32_t me) {
    uint64_t bit = UINT64_C(1) << (me % 64);
    if (!(atomic_fetch_or(waiting_word(q, me), bit) & bit)) (void)ring_put(q, RING_ROOM, me, 0);
}

void tsq_step_out(tsq *q, uint32_t me) { atomic_fetch_and(waiting_word(q, me), ~(UINT64_C(1) << (me % 64))); }

int tsq_is_waiting(tsq *q, uint32_t me) { return (int)(atomic_load(waiting_word(q, me)) >> (me % 64) & 1); }

static int anybody(const tsq *q) {
    uint64_t any = 0;
    for (uint32_t w = 0; w < q->geo.participants / 64; w++) any |= atomic_load(&bitmap(q, q->at.waiting)[w]);
    return any != 0;
}

static int enough_room(tsq *q) {
    uint32_t room = ring_hints(q, RING_FREE) + ring_hints(q, RING_DONE) + ring_hints(q, RING_READ);
    return room >= room_kept(q) + q->geo.slots / 32 || !tsq_ready_hints(q);
}

static int call(tsq *q, uint32_t p, uint64_t wake[TSQ_WAKE_WORDS]) {
    uint64_t bit = UINT64_C(1) << (p % 64);
    if (!(atomic_fetch_and(waiting_word(q, p), ~bit) & bit) || !participant_live(q, p)) return 0;
    wake[p / 64] |= bit;
    return 1;
}

void tsq_call_next(tsq *q, uint64_t wake[TSQ_WAKE_WORDS]) {
    if (!anybody(q) || !enough_room(q)) return;
    uint64_t pos;
    uint32_t p, unused;
    while (ring_peek(q, RING_ROOM, &pos, &p, &unused))
        if (ring_advance(q, RING_ROOM, pos) && p && p < q->geo.participants && call(q, p, wake)) return;
    /* In line and not in the ring: it was between the two, or the ring was full of those who left. */
    for (uint32_t i = 1; i < q->geo.participants; i++)
        if (tsq_is_waiting(q, i) && call(q, i, wake)) return;
}
