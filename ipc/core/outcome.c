/* Outcomes: finding a message by its id, reading how it ended, telling those who wait.
 *
 * Readers hold nothing. They copy and then check the slot word again; whoever reuses the slot or its
 * blocks has changed the word before.
 */
#include <string.h>

#include "layout.h"

/* Rings everybody who watches the slot: sets the slot's bit in each watcher's completion bitmap, and
 * the watcher's bit in wake. The watch word is read after the word that ends the message was written
 * (both seq_cst); a watcher sets its bit and then reads the word. So one of the two sees the other. */
void notify_watchers(tsq *q, uint32_t slot_index, uint64_t wake[TSQ_WAKE_WORDS]) {
    uint64_t watch = atomic_load(&slot_at(q, slot_index)->watch);
    if (!watch) return;
    for (uint32_t p = 1; p < q->geo.participants; p++) {
        if (!((watch >> (p % 64)) & 1) || !participant_live(q, p)) continue;
        atomic_fetch_or(&completions_of(q, p)[slot_index / 64], UINT64_C(1) << (slot_index % 64));
        wake[p / 64] |= UINT64_C(1) << (p % 64);
    }
}

void tsq_watch(tsq *q, uint32_t me, uint32_t slot_index) {
    if (slot_index < q->geo.slots) atomic_fetch_or(&slot_at(q, slot_index)->watch, UINT64_C(1) << (me % 64));
}

/* Another participant may share the bit; if it waits for the same message it loses its ring and has to
 * look by itself. */
void tsq_unwatch(tsq *q, uint32_t me, uint32_t slot_index) {
    if (slot_index < q->geo.slots) atomic_fetch_and(&slot_at(q, slot_index)->watch, ~(UINT64_C(1) << (me % 64)));
}

int tsq_has_completions(tsq *q, uint32_t me) {
    uint64_t any = 0;
    for (uint32_t w = 0; w < q->geo.slots / 64; w++)
        any |= atomic_load_explicit(&completions_of(q, me)[w], memory_order_acquire);
    return any != 0;
}

uint32_t tsq_completions(tsq *q, uint32_t me, uint32_t *slots, uint32_t n) {
    tsq_au64 *bits = completions_of(q, me);
    uint32_t found = 0;
    for (uint32_t w = 0; w < q->geo.slots / 64 && found + 64 <= n; w++) {
        if (!atomic_load_explicit(&bits[w], memory_order_acquire)) continue;
        uint64_t v = atomic_exchange(&bits[w], 0);
        for (; v; v &= v - 1) slots[found++] = w * 64 + (uint32_t)__builtin_ctzll(v);
    }
    return found;
}

/* FNV-1a with a final mix, so that ids which differ in their last character differ everywhere. */
uint64_t tsq_hash(const void *id, uint32_t id_len) {
    const unsigned char *p = id;
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (uint32_t i = 0; i < id_len; i++) h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h ^ (h >> 32);
}

static int id_matches(const slot *s, const void *id, uint32_t id_len) {
    char seen[TSQ_MAX_ID + 8];
    if (atomic_load_explicit(&s->id_len, memory_order_acquire) != id_len) return 0;
    copy_out(seen, s->data, id_len);
    return memcmp(seen, id, id_len) == 0;
}

/* The newest message with this id; one that ended without a result only if there is no other. */
int tsq_find(tsq *q, const void *id, uint32_t id_len, uint32_t *slot_out, uint64_t *generation) {
    uint64_t best = 0, hash = tsq_hash(id, id_len);
    int found = 0, found_real = 0;
    if (!id_len || id_len > TSQ_MAX_ID) return TSQ_GONE;
    for (uint32_t i = 0; i < q->geo.slots; i++) {
        if (atomic_load_explicit(&hashes(q)[i], memory_order_relaxed) != hash) continue;
        slot *s = slot_at(q, i);
        uint64_t w = atomic_load_explicit(&s->word, memory_order_acquire);
        if (!in_use(tsq_state_of(w)) || !id_matches(s, id, id_len)) continue;
        uint64_t created = atomic_load_explicit(&s->created_ns, memory_order_acquire);
        uint64_t ref = atomic_load_explicit(&s->ref, memory_order_acquire);
        uint64_t again = atomic_load_explicit(&s->word, memory_order_acquire);
        if (tsq_gen_of(again) != tsq_gen_of(w)) continue;
        int real = !(tsq_state_of(w) == TSQ_DONE && ref_where(ref) == WHERE_NO_RESULT);
        if (found && (found_real > real || (found_real == real && created < best))) continue;
        found = 1;
        found_real = real;
        best = created;
        *slot_out = i;
        *generation = tsq_gen_of(w);
    }
    return found ? TSQ_OK : TSQ_GONE;
}

int tsq_id_of(tsq *q, uint32_t slot_index, uint64_t generation, char *id, uint32_t *id_len) {
    if (slot_index >= q->geo.slots) return TSQ_GONE;
    slot *s = slot_at(q, slot_index);
    uint32_t n = atomic_load_explicit(&s->id_len, memory_order_acquire);
    if (n > TSQ_MAX_ID) return TSQ_GONE;
    copy_out(id, s->data, n);
    *id_len = n;
    return tsq_gen_of(atomic_load_explicit(&s->word, memory_order_acquire)) == generation ? TSQ_OK : TSQ_GONE;
}

static uint32_t kind_of(uint64_t w, uint64_t ref) {
    if (tsq_state_of(w) == TSQ_DEAD) return TSQ_OUTCOME_DEAD;
    switch (ref_where(ref)) {
    case WHERE_NO_RESULT: return TSQ_OUTCOME_NO_RESULT;
    case WHERE_LOST: return TSQ_OUTCOME_LOST;
    case WHERE_EXPIRED: return TSQ_OUTCOME_EXPIRED;
    case WHERE_DISCARDED: return TSQ_OUTCOME_DISCARDED;
    case WHERE_TIMED_OUT: return TSQ_OUTCOME_TIMED_OUT;
    default: return TSQ_OUTCOME_RESULT;
    }
}

/* The first to read an outcome offers it for eviction before those that nobody has read. */
static void mark_read(tsq *q, slot *s, uint32_t i, uint64_t gen) {
    uint32_t mine = (uint32_t)gen + 1, seen = atomic_load_explicit(&s->read_gen, memory_order_relaxed);
    if (seen == mine || !atomic_compare_exchange_strong(&s->read_gen, &seen, mine)) return;
    (void)ring_put(q, RING_READ, i, gen); /* full: the ring of all outcomes has it too */
}

int tsq_get_outcome(tsq *q, uint32_t slot_index, uint64_t generation, tsq_outcome *out, void *data,
                    uint64_t room) {
    if (slot_index >= q->geo.slots) return TSQ_GONE;
    slot *s = slot_at(q, slot_index);
    memset(out, 0, sizeof *out);
    uint64_t w = atomic_load(&s->word);
    unsigned state = tsq_state_of(w);
    if (tsq_gen_of(w) != generation || !in_use(state)) return TSQ_GONE;
    if (state != TSQ_DONE && state != TSQ_DEAD) return TSQ_PENDING;
    uint64_t ref = atomic_load_explicit(&s->ref, memory_order_acquire);
    uint32_t where = ref_where(ref);
    out->attempts = tsq_attempt_of(w);
    out->death = atomic_load_explicit(&s->death, memory_order_acquire);
    out->done_ns = atomic_load_explicit(&s->done_ns, memory_order_acquire);
    out->kind = kind_of(w, ref);
    int rc = TSQ_OK;
    if (where != WHERE_NONE && where < WHERE_CODES) {
        rc = block_len(q, where - 1, &out->len, &out->format);
        if (!rc && out->len > room) rc = TSQ_TOO_LARGE;
        if (!rc) rc = block_read(q, where - 1, out->len, data);
    }
    if (rc == TSQ_GONE || atomic_load_explicit(&s->word, memory_order_acquire) != w) return TSQ_GONE;
    /* Who sees that there is no result goes on waiting, for a retry: that is no reason to forget it. */
    if (!rc && state == TSQ_DONE && out->kind != TSQ_OUTCOME_NO_RESULT) mark_read(q, s, slot_index, generation);
    return rc;
}

int tsq_look(tsq *q, uint32_t slot_index, tsq_view *out) {
    if (slot_index >= q->geo.slots) return TSQ_GONE;
    slot *s = slot_at(q, slot_index);
    for (;;) {
        uint64_t w = out->word = atomic_load_explicit(&s->word, memory_order_acquire);
        if (!in_use(tsq_state_of(w))) return TSQ_GONE;
        out->death = atomic_load_explicit(&s->death, memory_order_acquire);
        out->created_ns = atomic_load_explicit(&s->created_ns, memory_order_acquire);
        out->done_ns = atomic_load_explicit(&s->done_ns, memory_order_acquire);
        out->due_ns = atomic_load_explicit(&s->due_ns, memory_order_acquire);
        out->expires_ns = atomic_load_explicit(&s->expires_ns, memory_order_acquire);
        out->size = atomic_load_explicit(&s->size, memory_order_acquire);
        out->id_len = atomic_load_explicit(&s->id_len, memory_order_acquire);
        out->lane = atomic_load_explicit(&s->lane, memory_order_acquire);
        out->format = atomic_load_explicit(&s->format, memory_order_acquire) & 0xffu;
        out->max_deliveries = atomic_load_explicit(&s->max_deliveries, memory_order_acquire);
        out->kind = kind_of(w, atomic_load_explicit(&s->ref, memory_order_acquire));
        int damaged = out->id_len > TSQ_MAX_ID;
        if (!damaged) copy_out(out->id, s->data, out->id_len);
        if (atomic_load_explicit(&s->word, memory_order_acquire) == w) return damaged ? TSQ_GONE : TSQ_OK;
    }
}
