/* Putting a message: take a slot, fill it, commit it with one store, hint it, name a worker to wake.
 *
 * A producer that dies before the commit leaves WRITING, which repair frees; after it, READY, which
 * repair hints, or DELAYED, which repair announces. Nothing else is visible to others.
 */
#include "layout.h"

/* Takes a free slot into WRITING(me), a new generation. TSQ_OK or TSQ_FULL. */
static int take_free(tsq *q, uint32_t me, int privileged, uint32_t *index, uint64_t *word) {
    uint64_t pos;
    uint32_t i, gen12;
    if (!privileged && ring_hints(q, RING_FREE) <= room_kept(q)) return TSQ_FULL;
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

void tsq_give_up(tsq *q, uint32_t me, const tsq_lease *lease) {
    uint64_t w = lease->word;
    uint32_t block = atomic_load_explicit(&slot_at(q, lease->slot)->block, memory_order_relaxed);
    if (block) block_free(q, me, ROLE_REQUEST, lease->slot, tsq_gen_of(w), block - 1);
    if (atomic_compare_exchange_strong(&slot_at(q, lease->slot)->word, &w, tsq_word(TSQ_FREE, me, 0, tsq_gen_of(w))))
        (void)ring_put(q, RING_FREE, lease->slot, 0);
}

/* Id and payload inline if they fit, else the payload in a block. */
static int write_payload(tsq *q, uint32_t me, uint32_t i, uint64_t word, const tsq_message *m) {
    slot *s = slot_at(q, i);
    uint64_t id_room = (m->id_len + 7u) & ~UINT64_C(7);
    copy_in(s->data, m->id, m->id_len);
    atomic_store_explicit(&s->id_len, m->id_len, memory_order_release);
    atomic_store_explicit(&s->len, m->len, memory_order_relaxed);
    if (id_room + m->len <= q->geo.inline_size) {
        copy_in(s->data + id_room / 8, m->payload, m->len);
        return TSQ_OK;
    }
    holder h = {.owner = me, .role = ROLE_REQUEST, .slot = i, .attempt = 0, .gen = tsq_gen_of(word)};
    uint32_t number;
    int rc;
    while ((rc = block_write(q, &h, m->payload, m->len, 0, &number)) == TSQ_FULL)
        if (!make_room(q, me)) return TSQ_FULL;
    if (!rc) atomic_store_explicit(&s->block, number + 1, memory_order_relaxed);
    return rc;
}

int tsq_fits(const tsq *q, uint32_t id_len, uint64_t len) {
    return ((id_len + 7u) & ~UINT64_C(7)) + len <= q->geo.inline_size || len <= block_max(q);
}

int tsq_reserve(tsq *q, uint32_t me, const tsq_message *m, tsq_lease *out) {
    if (!m->id_len || m->id_len > TSQ_MAX_ID || m->lane >= TSQ_LANES || m->format > 0xffu) return TSQ_BAD_ARGUMENT;
    if (!tsq_fits(q, m->id_len, m->len)) return TSQ_TOO_LARGE;
    while (take_free(q, me, (int)m->privileged, &out->slot, &out->word))
        if (!make_room(q, me)) return TSQ_FULL;
    slot *s = slot_at(q, out->slot);
    /* Released, where somebody without a lease may read: who sees these sees the new generation too. */
    atomic_store_explicit(&s->ref, ref_make(0, tsq_gen_of(out->word), WHERE_NONE), memory_order_release);
    atomic_store_explicit(&s->watch, 0, memory_order_relaxed);
    atomic_store_explicit(&s->block, 0, memory_order_relaxed);
    atomic_store_explicit(&s->lane, m->lane, memory_order_relaxed);
    atomic_store_explicit(&s->format, m->format, memory_order_release);
    atomic_store_explicit(&s->expires_ns, m->expires_ns, memory_order_release);
    atomic_store_explicit(&s->due_ns, m->due_ns, memory_order_release);
    atomic_store_explicit(&s->size, m->size, memory_order_release);
    atomic_store_explicit(&s->death, 0, memory_order_release);
    atomic_store_explicit(&s->created_ns, m->now_ns, memory_order_release);
    atomic_store_explicit(&s->done_ns, 0, memory_order_release);
    atomic_store_explicit(&s->max_deliveries, m->max_deliveries, memory_order_relaxed);
    int rc = write_payload(q, me, out->slot, out->word, m);
    if (rc) {
        tsq_give_up(q, me, out);
        return rc;
    }
    uint32_t checksum = tsq_is_checked(q) ? message_checksum(m) : 0;
    atomic_store_explicit(&s->checksum, checksum, memory_order_relaxed);
    atomic_store_explicit(&hashes(q)[out->slot], tsq_hash(m->id, m->id_len), memory_order_relaxed);
    return TSQ_OK;
}

void tsq_commit(tsq *q, uint32_t me, tsq_lease *lease, tsq_call *call) {
    slot *s = slot_at(q, lease->slot);
    uint64_t gen = tsq_gen_of(lease->word);
    uint64_t due = atomic_load_explicit(&s->due_ns, memory_order_relaxed);
    uint64_t expires = atomic_load_explicit(&s->expires_ns, memory_order_relaxed);
    uint64_t created = atomic_load_explicit(&s->created_ns, memory_order_relaxed);
    int delayed = due > created;
    call->sleeper = call->due = 0;
    /* The commit: only the owner moves WRITING on, so a store will do; releasing what was written. */
    lease->word = tsq_word(delayed ? TSQ_DELAYED : TSQ_READY, me, 0, gen);
    atomic_store(&s->word, lease->word);
    if (delayed || expires) {
        uint64_t at = !delayed || (expires && expires < due) ? expires : due;
        call->due = (uint32_t)announce_due(q, at);
    }
    if (delayed) return;
    hint_ready(q, lease->slot, gen);
    call->sleeper = tsq_pick_sleeper(q, me, 0);
}

int tsq_put(tsq *q, uint32_t me, const tsq_message *m, tsq_lease *out, tsq_call *call) {
    int rc = tsq_reserve(q, me, m, out);
    if (!rc) tsq_commit(q, me, out, call);
    return rc;
}
