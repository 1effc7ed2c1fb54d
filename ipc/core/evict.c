/* Making room: outcomes are kept until their slots or blocks are needed.
 *
 * Producers need both, workers need blocks for results. First go outcomes that have been read, then the
 * oldest; one that a living participant waits for and nobody has read is kept.
 */
#include "layout.h"

/* Somebody alive waits for this outcome and nobody has read it. */
static int awaited(tsq *q, const slot *s, uint64_t w) {
    if (atomic_load_explicit(&s->read_gen, memory_order_acquire) == (uint32_t)tsq_gen_of(w) + 1) return 0;
    uint64_t watch = atomic_load(&s->watch);
    if (!watch) return 0;
    for (uint32_t p = 1; p < q->geo.participants; p++)
        if ((watch >> (p % 64)) & 1 && participant_live(q, p)) return 1;
    return 0;
}

/* Forgets the oldest outcome of the ring. Awaited ones go to the end of the ring. 1: forgot one.
 * The hint of a forgotten one goes last, so that a producer that dies here leaves no outcome without
 * one. An awaited one is put back only by the one that took its hint away: hints would multiply until
 * the ring has no room, where several make room at once. */
static int evict_from(tsq *q, uint32_t me, unsigned r, unsigned state) {
    uint64_t pos;
    uint32_t i, gen12;
    /* Bounded: a ring full of awaited outcomes must not keep the producer here. */
    for (uint32_t tries = ring_hints(q, r); tries && ring_peek(q, r, &pos, &i, &gen12); tries--) {
        int forgot = 0;
        if (i < q->geo.slots) {
            slot *s = slot_at(q, i);
            uint64_t w = atomic_load_explicit(&s->word, memory_order_acquire);
            int valid = tsq_state_of(w) == state && (tsq_gen_of(w) & 0xfffu) == gen12;
            if (valid && state == TSQ_DONE && awaited(q, s, w)) {
                if (ring_advance(q, r, pos)) (void)ring_put(q, RING_DONE, i, tsq_gen_of(w));
                continue;
            }
            forgot = valid && slot_reclaim(q, me, i, w);
        }
        (void)ring_advance(q, r, pos);
        if (forgot) return 1;
    }
    return 0;
}

/* Makes room: outcomes already read first, then the oldest, then the oldest dead letter, whose request
 * may hold more blocks than the limit on their number keeps free. */
int make_room(tsq *q, uint32_t me) {
    return evict_from(q, me, RING_READ, TSQ_DONE) || evict_from(q, me, RING_DONE, TSQ_DONE) ||
           evict_from(q, me, RING_DEAD, TSQ_DEAD);
}
