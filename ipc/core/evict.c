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
 * The hint goes last, so that a producer that dies here leaves no outcome without one. */
static int evict_from(tsq *q, uint32_t me, unsigned r) {
    uint64_t pos;
    uint32_t i, gen12;
    /* Bounded: a ring full of awaited outcomes must not keep the producer here. */
    for (uint32_t tries = ring_hints(q, r); tries && ring_peek(q, r, &pos, &i, &gen12); tries--) {
        int forgot = 0;
        if (i < q->geo.slots) {
            slot *s = slot_at(q, i);
            uint64_t w = atomic_load_explicit(&s->word, memory_order_acquire);
            if (tsq_state_of(w) == TSQ_DONE && (tsq_gen_of(w) & 0xfffu) == gen12) {
                if (r == RING_DONE && awaited(q, s, w)) (void)ring_put(q, r, i, tsq_gen_of(w));
                else forgot = slot_reclaim(q, me, i, w);
            }
        }
        ring_advance(q, r, pos);
        if (forgot) return 1;
    }
    return 0;
}

/* Makes room by forgetting an outcome: those already read first, then the oldest. */
int make_room(tsq *q, uint32_t me) { return evict_from(q, me, RING_READ) || evict_from(q, me, RING_DONE); }
