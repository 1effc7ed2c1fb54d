/* Forgetting: outcomes are kept until their time is over or their slots or blocks are needed.
 *
 * Producers need both, workers need blocks for results. First go outcomes that have been read, then the
 * oldest; one that a living participant waits for and nobody has read is kept.
 */
#include "layout.h"

/* Frees the block of the outcome that ref names, for the generation that ref names. */
void result_drop(tsq *q, uint32_t me, uint32_t slot_index, uint64_t ref) {
    uint32_t where = ref_where(ref);
    if (where != WHERE_NONE && where < WHERE_CODES)
        block_free(q, me, ROLE_RESULT, slot_index, ref_gen(ref), where - 1);
}

/* Forgets the outcome in `word` and frees its slot. 1 if it was ours to forget. The new generation
 * is announced first, so that readers notice; ref still names the old one until the block is free,
 * which is how a repair knows what was left to do. */
int slot_reclaim(tsq *q, uint32_t me, uint32_t slot_index, uint64_t word) {
    slot *s = slot_at(q, slot_index);
    uint64_t gen = tsq_gen_of(word), taken = tsq_word(TSQ_WRITING, me, 0, gen + 1), w = word;
    uint32_t block = atomic_load_explicit(&s->block, memory_order_acquire);
    if (!atomic_compare_exchange_strong(&s->word, &w, taken)) return 0;
    result_drop(q, me, slot_index, atomic_load_explicit(&s->ref, memory_order_acquire));
    if (block && tsq_state_of(word) == TSQ_DEAD) block_free(q, me, ROLE_REQUEST, slot_index, gen, block - 1);
    atomic_store_explicit(&s->ref, ref_make(0, gen + 1, WHERE_NONE), memory_order_release);
    atomic_store(&s->word, tsq_word(TSQ_FREE, me, 0, gen + 1));
    (void)ring_put(q, RING_FREE, slot_index, 0);
    return 1;
}

/* Somebody alive waits for this outcome and nobody has read it. */
static int awaited(tsq *q, const slot *s, uint64_t w) {
    if (tsq_state_of(w) != TSQ_DONE) return 0;
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
            if (valid && awaited(q, s, w)) {
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

static uint32_t dead_letters(const tsq *q) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < q->geo.slots; i++)
        n += tsq_state_of(atomic_load_explicit(&slot_at(q, i)->word, memory_order_relaxed)) == TSQ_DEAD;
    return n;
}

/* Dead letters are bounded: an eighth of the slots, the oldest out. The ring counts stale hints too, so
 * it only says when it is worth counting. */
void dead_letters_trim(tsq *q, uint32_t me) {
    uint32_t most = q->geo.slots / 8;
    if (ring_hints(q, RING_DEAD) <= most) return;
    for (uint32_t n = dead_letters(q); n > most && evict_from(q, me, RING_DEAD, TSQ_DEAD);) n--;
}

int tsq_forget(tsq *q, uint32_t me, uint32_t slot_index, uint64_t generation, int unawaited) {
    if (slot_index >= q->geo.slots) return TSQ_GONE;
    slot *s = slot_at(q, slot_index);
    uint64_t w = atomic_load_explicit(&s->word, memory_order_acquire);
    if (tsq_gen_of(w) != generation || (tsq_state_of(w) != TSQ_DONE && tsq_state_of(w) != TSQ_DEAD)) return TSQ_GONE;
    if (unawaited && awaited(q, s, w)) return TSQ_PENDING;
    return slot_reclaim(q, me, slot_index, w) ? TSQ_OK : TSQ_GONE;
}
