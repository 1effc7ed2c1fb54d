/* Leases: claiming a message, starting it, and the ways in which a lease ends.
 *
 * Every step is one CAS from the exact word that the lease holder last wrote, so a holder whose lease
 * was taken away (fenced) changes nothing any more, however late it comes.
 */
#include "layout.h"

static int move(tsq *q, const tsq_lease *lease, uint64_t to) {
    uint64_t w = lease->word;
    if (lease->slot >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    return atomic_compare_exchange_strong(&slot_at(q, lease->slot)->word, &w, to) ? TSQ_OK : TSQ_FENCED;
}

static uint64_t with_state(uint64_t w, unsigned state, unsigned attempt) {
    return tsq_word(state, tsq_owner_of(w), attempt, tsq_gen_of(w));
}

static int claim_from(tsq *q, uint32_t me, unsigned r, tsq_lease *out) {
    uint64_t pos;
    uint32_t i, gen12;
    while (ring_peek(q, r, &pos, &i, &gen12)) {
        if (i < q->geo.slots) {
            uint64_t w = atomic_load_explicit(&slot_at(q, i)->word, memory_order_acquire);
            if (tsq_state_of(w) == TSQ_READY) {
                uint64_t mine = tsq_word(TSQ_LEASED, me, tsq_attempt_of(w), tsq_gen_of(w));
                if (!atomic_compare_exchange_strong(&slot_at(q, i)->word, &w, mine)) continue;
                (void)ring_advance(q, r, pos);
                out->slot = i;
                out->word = mine;
                return TSQ_OK;
            }
        }
        (void)ring_advance(q, r, pos);
    }
    return TSQ_EMPTY;
}

int tsq_claim(tsq *q, uint32_t me, tsq_lease *out) {
    if (!claim_from(q, me, RING_AGAIN, out)) return TSQ_OK;
    return tsq_claim_new(q, me, out);
}

int tsq_claim_new(tsq *q, uint32_t me, tsq_lease *out) { return claim_from(q, me, RING_LANE, out); }

int tsq_read_request(tsq *q, const tsq_lease *lease, char *id, uint32_t *id_len, void *payload,
                     uint64_t room, uint64_t *len) {
    if (lease->slot >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    slot *s = slot_at(q, lease->slot);
    uint32_t n = atomic_load_explicit(&s->id_len, memory_order_acquire);
    uint32_t first = atomic_load_explicit(&s->extent, memory_order_acquire);
    uint64_t size = atomic_load_explicit(&s->len, memory_order_acquire);
    uint64_t padded = (n + 7u) & ~UINT64_C(7);
    int damaged = n > TSQ_MAX_ID || size > extent_max(q, ROLE_REQUEST) + q->geo.inline_size ||
                  (!first && padded + size > q->geo.inline_size);
    if (!damaged) {
        *len = size;
        if (size > room) return TSQ_TOO_LARGE;
        copy_out(id, s->data, n);
        *id_len = n;
        if (first) damaged = extent_read(q, first - 1, size, payload) != TSQ_OK;
        else copy_out(payload, s->data + padded / 8, size);
    }
    /* Contents that do not fit together are damage only while the lease is held; else the slot is
     * being used again. */
    if (atomic_load_explicit(&s->word, memory_order_acquire) != lease->word) return TSQ_FENCED;
    return damaged ? TSQ_GONE : TSQ_OK;
}

int tsq_start(tsq *q, tsq_lease *lease) {
    if (tsq_state_of(lease->word) != TSQ_LEASED) return TSQ_BAD_ARGUMENT;
    unsigned attempt = tsq_attempt_of(lease->word);
    uint64_t to = with_state(lease->word, TSQ_RUNNING, attempt < 255 ? attempt + 1 : 255);
    int rc = move(q, lease, to);
    if (!rc) lease->word = to;
    return rc;
}

int tsq_ack(tsq *q, tsq_lease *lease) {
    if (tsq_state_of(lease->word) != TSQ_RUNNING) return TSQ_BAD_ARGUMENT;
    uint64_t to = with_state(lease->word, TSQ_ACKED, tsq_attempt_of(lease->word));
    int rc = move(q, lease, to);
    if (!rc) lease->word = to;
    return rc;
}

/* Publishes where the outcome is, before the word says that there is one. A reference of a later
 * attempt or generation is never overwritten: a fenced holder that comes late cannot spoil it. */
static int refer(tsq *q, const tsq_lease *lease, uint32_t where) {
    tsq_au64 *ref = &slot_at(q, lease->slot)->ref;
    uint64_t mine = ref_make(tsq_attempt_of(lease->word), tsq_gen_of(lease->word), where);
    uint64_t seen = atomic_load_explicit(ref, memory_order_acquire);
    do {
        if (ref_gen(seen) != ref_gen(mine) || ref_attempt(seen) > ref_attempt(mine)) return TSQ_FENCED;
    } while (!atomic_compare_exchange_strong(ref, &seen, mine));
    return TSQ_OK;
}

/* The one step that ends a lease with an outcome. */
static int conclude(tsq *q, const tsq_lease *lease, unsigned state, uint32_t where, uint64_t now_ns) {
    int rc = refer(q, lease, where);
    if (rc) return rc;
    atomic_store_explicit(&slot_at(q, lease->slot)->done_ns, now_ns, memory_order_relaxed);
    return move(q, lease, with_state(lease->word, state, tsq_attempt_of(lease->word)));
}

/* The request's blocks are freed by whoever concluded; a repair does it for one that died here. */
static void drop_request(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t extent) {
    if (extent) extent_free(q, me, ROLE_REQUEST, lease->slot, tsq_gen_of(lease->word), extent - 1);
}

/* Hints an outcome for eviction; a ring full of stale hints loses its oldest one first. Bounded: should
 * all hints be valid, some of them doubly, the audit hints this outcome. */
static void hint_outcome(tsq *q, unsigned r, uint32_t i, uint64_t gen, unsigned state) {
    for (uint64_t tries = q->at.ring_size[r]; tries && ring_put(q, r, i, gen); tries--) {
        uint64_t pos;
        uint32_t k, gen12;
        if (!ring_peek(q, r, &pos, &k, &gen12)) return;
        if (!ring_advance(q, r, pos) || k >= q->geo.slots) continue;
        uint64_t w = atomic_load_explicit(&slot_at(q, k)->word, memory_order_acquire);
        if (tsq_state_of(w) == state && (tsq_gen_of(w) & 0xfffu) == gen12) (void)ring_put(q, r, k, tsq_gen_of(w));
    }
}

static int write_result(tsq *q, uint32_t me, const tsq_lease *lease, const void *data, uint64_t len,
                        uint32_t *where) {
    holder h = {.owner = me,
                .role = ROLE_RESULT,
                .slot = lease->slot,
                .attempt = tsq_attempt_of(lease->word),
                .gen = tsq_gen_of(lease->word)};
    uint32_t first;
    int rc;
    while ((rc = extent_write(q, &h, data, len, &first)) == TSQ_FULL)
        if (!make_room(q, me)) return TSQ_FULL;
    if (!rc) *where = first + 1;
    return rc;
}

static void drop_result(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t where) {
    extent_free(q, me, ROLE_RESULT, lease->slot, tsq_gen_of(lease->word), where - 1);
}

int tsq_complete(tsq *q, uint32_t me, const tsq_lease *lease, const void *result, uint64_t len,
                 uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]) {
    unsigned state = tsq_state_of(lease->word);
    if ((state != TSQ_RUNNING && state != TSQ_ACKED) || lease->slot >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    uint32_t where, extent = atomic_load_explicit(&slot_at(q, lease->slot)->extent, memory_order_relaxed);
    int rc = write_result(q, me, lease, result, len, &where);
    if (rc) return rc;
    rc = conclude(q, lease, TSQ_DONE, where, now_ns);
    if (rc) {
        drop_result(q, me, lease, where);
        return rc;
    }
    notify_watchers(q, lease->slot, wake);
    drop_request(q, me, lease, extent);
    hint_outcome(q, RING_DONE, lease->slot, tsq_gen_of(lease->word), TSQ_DONE);
    return TSQ_OK;
}

/* Ends a lease whose result, if any, is kept elsewhere. keep: waiters learn that it ended without a
 * result and that the id may come again; else the slot is free at once. */
int tsq_finish(tsq *q, uint32_t me, const tsq_lease *lease, int keep, uint64_t now_ns,
               uint64_t wake[TSQ_WAKE_WORDS]) {
    unsigned state = tsq_state_of(lease->word);
    if ((state != TSQ_RUNNING && state != TSQ_ACKED) || lease->slot >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    uint32_t extent = atomic_load_explicit(&slot_at(q, lease->slot)->extent, memory_order_relaxed);
    int rc = keep ? conclude(q, lease, TSQ_DONE, WHERE_NO_RESULT, now_ns)
                  : move(q, lease, with_state(lease->word, TSQ_FREE, 0));
    if (rc) return rc;
    notify_watchers(q, lease->slot, wake);
    drop_request(q, me, lease, extent);
    if (keep) hint_outcome(q, RING_DONE, lease->slot, tsq_gen_of(lease->word), TSQ_DONE);
    else (void)ring_put(q, RING_FREE, lease->slot, 0);
    return TSQ_OK;
}

/* Keeps the message as a dead letter. detail: why, for people and for the waiting client. */
int tsq_dead_letter(tsq *q, uint32_t me, const tsq_lease *lease, const void *detail, uint64_t len,
                    uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]) {
    uint32_t where;
    if (lease->slot >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    int rc = write_result(q, me, lease, detail, len, &where);
    if (rc) return rc;
    rc = conclude(q, lease, TSQ_DEAD, where, now_ns);
    if (rc) {
        drop_result(q, me, lease, where);
        return rc;
    }
    notify_watchers(q, lease->slot, wake);
    hint_outcome(q, RING_DEAD, lease->slot, tsq_gen_of(lease->word), TSQ_DEAD);
    dead_letters_trim(q, me);
    return TSQ_OK;
}

/* Gives the message back; a start that has begun is not counted. */
int tsq_release(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t *wake) {
    unsigned state = tsq_state_of(lease->word), attempt = tsq_attempt_of(lease->word);
    *wake = 0;
    if (state != TSQ_LEASED && state != TSQ_RUNNING) return TSQ_BAD_ARGUMENT;
    int rc = move(q, lease, with_state(lease->word, TSQ_READY, state == TSQ_RUNNING ? attempt - 1 : attempt));
    if (rc) return rc;
    (void)ring_put(q, RING_AGAIN, lease->slot, tsq_gen_of(lease->word));
    *wake = tsq_pick_sleeper(q, me, 0);
    return TSQ_OK;
}
