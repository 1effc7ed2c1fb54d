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
            /* Through the hint of an earlier message it would jump the line. */
            if (tsq_state_of(w) == TSQ_READY && (tsq_gen_of(w) & 0xfffu) == gen12) {
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

/* Every CREDIT-th claim begins at a lane in turn instead of the highest, so that of 80 claims each lane
 * gets at least one while it has messages. */
#define CREDIT 8u

int tsq_claim_new(tsq *q, uint32_t me, tsq_lease *out) {
    uint32_t used = atomic_load(&head_of(q)->lanes_used) & ((1u << TSQ_LANES) - 1), first = TSQ_LANES;
    if (used & (used - 1)) {
        uint32_t turn = atomic_fetch_add_explicit(&head_of(q)->turns, 1, memory_order_relaxed);
        if (turn % CREDIT == CREDIT - 1) first = turn / CREDIT % TSQ_LANES;
        if (first < TSQ_LANES && !claim_from(q, me, RING_LANE + first, out)) return TSQ_OK;
    }
    for (uint32_t lane = TSQ_LANES; lane-- > 0;)
        if ((used >> lane & 1) && lane != first && !claim_from(q, me, RING_LANE + lane, out)) return TSQ_OK;
    return TSQ_EMPTY;
}

int tsq_take(tsq *q, uint32_t me, uint32_t slot_index, uint64_t generation, tsq_lease *out) {
    if (slot_index >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    uint64_t w = atomic_load_explicit(&slot_at(q, slot_index)->word, memory_order_acquire);
    while (tsq_gen_of(w) == generation && (tsq_state_of(w) == TSQ_READY || tsq_state_of(w) == TSQ_DELAYED)) {
        out->slot = slot_index;
        out->word = tsq_word(TSQ_LEASED, me, tsq_attempt_of(w), generation);
        if (atomic_compare_exchange_strong(&slot_at(q, slot_index)->word, &w, out->word)) return TSQ_OK;
    }
    return TSQ_FENCED;
}

uint32_t tsq_format_of(tsq *q, const tsq_lease *lease) {
    return atomic_load_explicit(&slot_at(q, lease->slot)->format, memory_order_acquire) & 0xffu;
}

uint64_t tsq_expiry_of(tsq *q, const tsq_lease *lease) {
    return atomic_load_explicit(&slot_at(q, lease->slot)->expires_ns, memory_order_acquire);
}

int tsq_read_request(tsq *q, const tsq_lease *lease, char *id, uint32_t *id_len, void *payload,
                     uint64_t room, uint64_t *len) {
    if (lease->slot >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    slot *s = slot_at(q, lease->slot);
    uint32_t n = atomic_load_explicit(&s->id_len, memory_order_acquire);
    uint32_t block = atomic_load_explicit(&s->block, memory_order_acquire);
    uint64_t size = atomic_load_explicit(&s->len, memory_order_acquire);
    uint64_t padded = (n + 7u) & ~UINT64_C(7);
    int damaged = n > TSQ_MAX_ID || size > block_max(q) + q->geo.inline_size ||
                  (!block && padded + size > q->geo.inline_size);
    if (!damaged) {
        *len = size;
        if (size > room) return TSQ_TOO_LARGE;
        copy_out(id, s->data, n);
        *id_len = n;
        if (block) damaged = block_read(q, block - 1, size, payload) != TSQ_OK;
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
    if (lease->slot < q->geo.slots) forget_overdue(q, lease->slot, to);
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

/* The request's block is freed by whoever concluded; a repair does it for one that died here. */
static void drop_request(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t block) {
    if (block) block_free(q, me, ROLE_REQUEST, lease->slot, tsq_gen_of(lease->word), block - 1);
}

static int write_result(tsq *q, uint32_t me, const tsq_lease *lease, const void *data, uint64_t len,
                        uint32_t format, uint32_t *where) {
    holder h = {.owner = me,
                .role = ROLE_RESULT,
                .slot = lease->slot,
                .attempt = tsq_attempt_of(lease->word),
                .gen = tsq_gen_of(lease->word)};
    uint32_t number;
    int rc;
    while ((rc = block_write(q, &h, data, len, format, &number)) == TSQ_FULL)
        if (!make_room(q, me)) return TSQ_FULL;
    if (!rc) *where = number + 1;
    return rc;
}

/* Writes data into a block and ends the lease with it. */
static int conclude_with(tsq *q, uint32_t me, const tsq_lease *lease, unsigned state, const void *data,
                         uint64_t len, uint32_t format, uint64_t now_ns) {
    uint32_t where;
    int rc = write_result(q, me, lease, data, len, format, &where);
    if (rc) return rc;
    rc = conclude(q, lease, state, where, now_ns);
    if (rc) block_free(q, me, ROLE_RESULT, lease->slot, tsq_gen_of(lease->word), where - 1);
    return rc;
}

static int may_end(const tsq *q, const tsq_lease *lease) {
    unsigned state = tsq_state_of(lease->word);
    return lease->slot < q->geo.slots && (state == TSQ_LEASED || state == TSQ_RUNNING || state == TSQ_ACKED);
}

int tsq_complete(tsq *q, uint32_t me, const tsq_lease *lease, const void *result, uint64_t len,
                 uint32_t format, uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]) {
    if (!may_end(q, lease) || tsq_state_of(lease->word) == TSQ_LEASED) return TSQ_BAD_ARGUMENT;
    uint32_t block = atomic_load_explicit(&slot_at(q, lease->slot)->block, memory_order_relaxed);
    int rc = conclude_with(q, me, lease, TSQ_DONE, result, len, format, now_ns);
    if (rc) return rc;
    notify_watchers(q, lease->slot, wake);
    drop_request(q, me, lease, block);
    hint_slot(q, RING_DONE, lease->slot, tsq_gen_of(lease->word), TSQ_DONE);
    tsq_call_next(q, wake);
    return TSQ_OK;
}

/* Ends a lease without a result here: the slot is free at once, or waiters learn how it ended. After
 * NO_RESULT the id may come again. */
int tsq_finish(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t how, uint64_t now_ns,
               uint64_t wake[TSQ_WAKE_WORDS]) {
    uint32_t where = how == TSQ_OUTCOME_NO_RESULT   ? WHERE_NO_RESULT
                     : how == TSQ_OUTCOME_EXPIRED   ? WHERE_EXPIRED
                     : how == TSQ_OUTCOME_DISCARDED ? WHERE_DISCARDED
                                                    : WHERE_NONE;
    int before_start = how == TSQ_OUTCOME_EXPIRED || how == TSQ_OUTCOME_DISCARDED;
    if (!may_end(q, lease) || (where == WHERE_NONE && how != TSQ_FORGET)) return TSQ_BAD_ARGUMENT;
    if (tsq_state_of(lease->word) == TSQ_LEASED && !before_start) return TSQ_BAD_ARGUMENT;
    uint32_t block = atomic_load_explicit(&slot_at(q, lease->slot)->block, memory_order_relaxed);
    int rc = where ? conclude(q, lease, TSQ_DONE, where, now_ns)
                   : move(q, lease, with_state(lease->word, TSQ_FREE, 0));
    if (rc) return rc;
    notify_watchers(q, lease->slot, wake);
    drop_request(q, me, lease, block);
    if (where) hint_slot(q, RING_DONE, lease->slot, tsq_gen_of(lease->word), TSQ_DONE);
    else (void)ring_put(q, RING_FREE, lease->slot, 0);
    tsq_call_next(q, wake);
    return TSQ_OK;
}

/* Keeps the message as a dead letter. detail: why, for people and for the waiting client. */
int tsq_dead_letter(tsq *q, uint32_t me, const tsq_lease *lease, const void *detail, uint64_t len,
                    uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]) {
    if (!may_end(q, lease)) return TSQ_BAD_ARGUMENT;
    int rc = conclude_with(q, me, lease, TSQ_DEAD, detail, len, 0, now_ns);
    if (rc) return rc;
    notify_watchers(q, lease->slot, wake);
    hint_slot(q, RING_DEAD, lease->slot, tsq_gen_of(lease->word), TSQ_DEAD);
    dead_letters_trim(q, me);
    tsq_call_next(q, wake);
    return TSQ_OK;
}

/* Gives the message back; a start that has begun is not counted. */
int tsq_release(tsq *q, uint32_t me, const tsq_lease *lease, uint64_t now_ns, tsq_call *call) {
    unsigned state = tsq_state_of(lease->word), attempt = tsq_attempt_of(lease->word);
    call->sleeper = call->due = 0;
    if (!may_end(q, lease) || state == TSQ_ACKED) return TSQ_BAD_ARGUMENT;
    int delayed = waits_until_due(q, lease->slot, now_ns);
    uint64_t expires = tsq_expiry_of(q, lease);
    uint64_t due = atomic_load_explicit(&slot_at(q, lease->slot)->due_ns, memory_order_relaxed);
    uint64_t at = !delayed || (expires && expires < due) ? expires : due;
    int rc = move(q, lease, with_state(lease->word, delayed ? TSQ_DELAYED : TSQ_READY,
                                       state == TSQ_RUNNING ? attempt - 1 : attempt));
    if (rc) return rc;
    if (at) call->due = (uint32_t)announce_due(q, at);
    if (delayed) return TSQ_OK;
    hint_slot(q, RING_AGAIN, lease->slot, tsq_gen_of(lease->word), TSQ_READY);
    call->sleeper = tsq_pick_sleeper(q, me, 0);
    return TSQ_OK;
}
