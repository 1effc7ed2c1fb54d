/* Putting a message: take a slot, fill it, commit it with one store, hint it, name a worker to wake.
 *
 * A producer that dies before the commit leaves WRITING, which repair frees; after it, READY, which
 * repair hints. Nothing else is visible to others.
 */
#include "layout.h"

/* Takes a free slot into WRITING(me), a new generation. TSQ_OK or TSQ_FULL. */
static int take_free(tsq *q, uint32_t me, uint32_t *index, uint64_t *word) {
    uint64_t pos;
    uint32_t i, gen12;
    while (ring_peek(q, RING_FREE, &pos, &i, &gen12)) {
        if (i < q->geo.slots) {
            slot *s = slot_at(q, i);
            uint64_t w = atomic_load_explicit(&s->word, memory_order_acquire);
            if (tsq_state_of(w) == TSQ_FREE) {
                uint64_t mine = tsq_word(TSQ_WRITING, me, 0, tsq_gen_of(w) + 1);
                if (!atomic_compare_exchange_strong(&s->word, &w, mine)) continue;
                (void)ring_advance(q, RING_FREE, pos);
                *index = i;
                *word = mine;
                return TSQ_OK;
            }
        }
        (void)ring_advance(q, RING_FREE, pos);
    }
    return TSQ_FULL;
}

static void give_up(tsq *q, uint32_t me, uint32_t i, uint64_t word) {
    uint64_t w = word;
    if (atomic_compare_exchange_strong(&slot_at(q, i)->word, &w, tsq_word(TSQ_FREE, me, 0, tsq_gen_of(word))))
        (void)ring_put(q, RING_FREE, i, 0);
}

/* Id and payload inline if they fit, else the payload in blocks. */
static int write_payload(tsq *q, uint32_t me, uint32_t i, uint64_t word, const tsq_message *m) {
    slot *s = slot_at(q, i);
    uint64_t id_room = (m->id_len + 7u) & ~UINT64_C(7);
    copy_in(s->data, m->id, m->id_len);
    atomic_store_explicit(&s->id_len, m->id_len, memory_order_release);
    atomic_store_explicit(&s->len, m->len, memory_order_relaxed);
    uint32_t first = 0;
    if (id_room + m->len <= q->geo.inline_size) {
        copy_in(s->data + id_room / 8, m->payload, m->len);
    } else {
        holder h = {.owner = me, .role = ROLE_REQUEST, .slot = i, .attempt = 0, .gen = tsq_gen_of(word)};
        int rc;
        while ((rc = extent_write(q, &h, m->payload, m->len, &first)) == TSQ_FULL)
            if (!make_room(q, me)) return TSQ_FULL;
        if (rc) return rc;
        first += 1;
    }
    atomic_store_explicit(&s->extent, first, memory_order_relaxed);
    return TSQ_OK;
}

int tsq_put(tsq *q, uint32_t me, const tsq_message *m, tsq_lease *out, uint32_t *wake) {
    uint32_t i;
    uint64_t w;
    *wake = 0;
    if (!m->id_len || m->id_len > TSQ_MAX_ID) return TSQ_BAD_ARGUMENT;
    if (((m->id_len + 7u) & ~UINT64_C(7)) + m->len > q->geo.inline_size && m->len > extent_max(q, ROLE_REQUEST))
        return TSQ_TOO_LARGE;
    while (take_free(q, me, &i, &w))
        if (!make_room(q, me)) return TSQ_FULL;
    slot *s = slot_at(q, i);
    /* Released, where somebody without a lease may read: who sees these sees the new generation too. */
    atomic_store_explicit(&s->ref, ref_make(0, tsq_gen_of(w), WHERE_NONE), memory_order_release);
    atomic_store_explicit(&s->watch, 0, memory_order_relaxed);
    atomic_store_explicit(&s->death, 0, memory_order_release);
    atomic_store_explicit(&s->created_ns, m->now_ns, memory_order_release);
    atomic_store_explicit(&s->done_ns, 0, memory_order_release);
    atomic_store_explicit(&s->max_deliveries, m->max_deliveries, memory_order_relaxed);
    int rc = write_payload(q, me, i, w, m);
    if (rc) {
        give_up(q, me, i, w);
        return rc;
    }
    atomic_store_explicit(&hashes(q)[i], tsq_hash(m->id, m->id_len), memory_order_relaxed);
    /* The commit: only the owner moves WRITING on, so a store will do; releasing what was written. */
    uint64_t ready = tsq_word(TSQ_READY, me, 0, tsq_gen_of(w));
    atomic_store(&s->word, ready);
    (void)ring_put(q, RING_LANE, i, tsq_gen_of(w));
    *wake = tsq_pick_sleeper(q, me, 0);
    out->slot = i;
    out->word = ready;
    return TSQ_OK;
}
