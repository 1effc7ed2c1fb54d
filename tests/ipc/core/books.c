#include <stdlib.h>
#include <string.h>

#include "world.h"

static const tsq_outcome *outcome_of(const tracked *t, char *data) {
    static tsq_outcome outcome;
    int rc = tsq_get_outcome(&Q, t->lease.slot, tsq_gen_of(t->lease.word), &outcome, data, LARGEST);
    if (rc) fail("%s has no outcome: %d", t->id, rc);
    return &outcome;
}

static int find_tracked(tracked *t) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        char id[TSQ_MAX_ID];
        uint32_t id_len;
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        if (tsq_state_of(w) < TSQ_READY) continue;
        if (tsq_id_of(&Q, i, tsq_gen_of(w), id, &id_len) || tracked_by_id(id, id_len) != t) continue;
        t->lease = (tsq_lease){.slot = i, .word = w};
        return 1;
    }
    return 0;
}

static ending ending_of(const tracked *t) {
    uint64_t w = t->lease.word;
    uint32_t where = ref_where(atomic_load(&slot_at(&Q, t->lease.slot)->ref));
    uint32_t limit = t->max_deliveries ? t->max_deliveries : 3;
    /* Nobody waits for it to become due if its time is over before. */
    int late = t->expires && (t->expires <= now_ns || t->expires < t->due);
    int overdue = atomic_load(&slot_at(&Q, t->lease.slot)->overdue) ==
                  tsq_word(TSQ_RUNNING, tsq_owner_of(w), tsq_attempt_of(w), tsq_gen_of(w));
    int counts = !atomic_load(&participant_at(&Q, tsq_owner_of(w))->explained);
    switch (tsq_state_of(w)) {
    case TSQ_RUNNING:
        if (overdue) return TIMED_OUT;
        return counts && tsq_attempt_of(w) >= limit ? DEAD_LETTER : late ? EXPIRED : TO_BE_DELIVERED;
    case TSQ_ACKED: return overdue ? TIMED_OUT : LOST;
    case TSQ_DONE:
        return where == WHERE_NO_RESULT   ? WITHOUT_RESULT
               : where == WHERE_LOST      ? LOST
               : where == WHERE_EXPIRED   ? EXPIRED
               : where == WHERE_DISCARDED ? DISCARDED
               : where == WHERE_TIMED_OUT ? TIMED_OUT
                                          : WITH_RESULT;
    case TSQ_DEAD: return DEAD_LETTER;
    default: return late ? EXPIRED : TO_BE_DELIVERED;
    }
}

void observe(void) {
    for (unsigned i = 0; i < tracked_count; i++)
        track[i].expected = find_tracked(&track[i]) ? ending_of(&track[i]) : NOT_THERE;
}

void watch_all(void) {
    observe();
    for (unsigned i = 0; i < tracked_count; i++) {
        if (track[i].expected != TO_BE_DELIVERED || track[i].watched) continue;
        tsq_watch(&Q, WATCHER, track[i].lease.slot);
        track[i].watched = 1;
    }
}

static void verify_one(const tracked *t, const uint32_t *told, uint32_t n) {
    char data[LARGEST];
    int to_deliver = t->expected == TO_BE_DELIVERED;
    if (t->delivered != to_deliver)
        fail("%s was delivered %d times after the stop, expected %d", t->id, t->delivered, to_deliver);
    if (t->expected == NOT_THERE) {
        uint32_t slot;
        uint64_t gen;
        if (!tsq_find(&Q, t->id, (uint32_t)strlen(t->id), &slot, &gen)) fail("%s is there again", t->id);
    } else {
        const tsq_outcome *o = outcome_of(t, data);
        static const uint32_t kinds[] = {[TO_BE_DELIVERED] = TSQ_OUTCOME_RESULT,
                                         [WITH_RESULT] = TSQ_OUTCOME_RESULT,
                                         [WITHOUT_RESULT] = TSQ_OUTCOME_NO_RESULT,
                                         [LOST] = TSQ_OUTCOME_LOST,
                                         [DEAD_LETTER] = TSQ_OUTCOME_DEAD,
                                         [EXPIRED] = TSQ_OUTCOME_EXPIRED,
                                         [DISCARDED] = TSQ_OUTCOME_DISCARDED,
                                         [TIMED_OUT] = TSQ_OUTCOME_TIMED_OUT};
        uint64_t len = to_deliver ? (uint64_t)OTHERS_LEN : t->result_len;
        if (o->kind != kinds[t->expected]) fail("%s ended as %u, expected %u", t->id, o->kind, kinds[t->expected]);
        if (o->kind == TSQ_OUTCOME_RESULT &&
            (o->len != len || o->format != ((to_deliver ? (uint32_t)OTHERS_RESULT : t->result_seed) & 0xff) ||
             !filled(data, len, to_deliver ? (uint32_t)OTHERS_RESULT : t->result_seed)))
            fail("%s has a wrong result", t->id);
    }
    if (!t->watched || t->expected == NOT_THERE) return; /* a slot used again tells nobody: waiters look themselves */
    for (uint32_t i = 0; i < n; i++)
        if (told[i] == t->lease.slot) return;
    fail("%s ended and its watcher was not told", t->id);
}

void outcomes_held(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        uint32_t where = ref_where(atomic_load(&slot_at(&Q, i)->ref)), c = 0, b = where - 1;
        if (tsq_state_of(w) != TSQ_DONE || where == WHERE_NONE || where >= WHERE_CODES) continue;
        for (; c < Q.geo.classes && b >= Q.geo.block[c].count; c++) b -= Q.geo.block[c].count;
        if (c == Q.geo.classes) fail("the outcome in slot %u refers to no block", i);
        uint64_t held = atomic_load(bitmap(&Q, Q.at.block_words[c]) + b);
        if (!(held >> 63)) fail("the outcome in slot %u lies in a block that is free", i);
    }
}

void outcomes_intact(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        char id[TSQ_MAX_ID + 1], data[LARGEST];
        uint32_t id_len;
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        tsq_outcome o;
        if (tsq_state_of(w) != TSQ_DONE || tsq_id_of(&Q, i, tsq_gen_of(w), id, &id_len)) continue;
        id[id_len] = 0;
        if (id_len != 8 || tracked_by_id(id, id_len)) continue; /* what is tracked is verified for itself */
        int rc = tsq_get_outcome(&Q, i, tsq_gen_of(w), &o, data, sizeof data);
        if (rc) fail("the outcome of filler %s cannot be read: %d", id, rc);
        if (o.kind == TSQ_OUTCOME_RESULT && !filled(data, o.len, (uint32_t)strtoul(id, NULL, 10) + 1))
            fail("filler %s has the result of another", id);
    }
}

void verify_once(const tracked *t) {
    char data[LARGEST];
    if (t->delivered > 1) fail("%s is delivered %d times", t->id, t->delivered);
    const tsq_outcome *o = outcome_of(t, data);
    if (o->kind != TSQ_OUTCOME_RESULT) return;
    if ((o->len != t->result_len || !filled(data, o->len, t->result_seed)) &&
        (o->len != OTHERS_LEN || !filled(data, o->len, OTHERS_RESULT)))
        fail("%s has a wrong result", t->id);
}

void verify(void) {
    uint32_t told[1024], n = tsq_completions(&Q, WATCHER, told, 1024);
    for (unsigned i = 0; i < tracked_count; i++) verify_one(&track[i], told, n);
}

void announced(void) {
    uint64_t next = atomic_load(tsq_next_due(&Q));
    for (uint32_t i = 0; i < SLOTS; i++) {
        slot *s = slot_at(&Q, i);
        unsigned state = tsq_state_of(atomic_load(&s->word));
        uint64_t due = atomic_load(&s->due_ns), expires = atomic_load(&s->expires_ns);
        if (state == TSQ_DELAYED && due < next) fail("nobody will look at slot %u when it is due", i);
        if ((state == TSQ_READY || state == TSQ_DELAYED) && expires && expires < next)
            fail("nobody will look at slot %u when its time is over", i);
    }
}

void line_served(void) {
    for (uint32_t p = 1; p < PARTICIPANTS; p++)
        if (tsq_is_waiting(&Q, p)) fail("%u stands in line for room that is there", p);
}

static void all_hinted(unsigned ring, uint32_t count, const char *what) {
    uint8_t set[256 / 8 + 1] = {0};
    ring_mark_hinted(&Q, ring, set, count);
    for (uint32_t i = 0; i < count; i++)
        if (!((set[i / 8] >> (i % 8)) & 1)) fail("%s %u is free and nothing hints it: leaked", what, i);
}

/* Takes every block of a class, each exactly once, and gives them back. */
static void all_blocks_once(uint32_t c) {
    uint8_t seen[256] = {0};
    uint32_t number[256], extra, count = Q.geo.block[c].count, size = Q.geo.block[c].size;
    char data[LARGEST] = {0};
    holder h = {.owner = OTHER, .role = ROLE_RESULT, .slot = 0, .attempt = 1, .gen = 0xabcdef};
    for (uint32_t i = 0; i < count; i++) {
        if (block_write(&Q, &h, data, size, 0, &number[i]))
            fail("only %u of %u blocks of class %u can be had", i, count, c);
        if (seen[number[i]]++) fail("block %u of class %u is given out twice", number[i], c);
    }
    if (c == Q.geo.classes - 1 && !block_write(&Q, &h, data, size, 0, &extra)) fail("there are too many blocks");
    for (uint32_t i = 0; i < count; i++) block_free(&Q, OTHER, ROLE_RESULT, 0, 0xabcdef, number[i]);
}

void forget_outcomes(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        unsigned state = tsq_state_of(w);
        if (state == TSQ_DONE || state == TSQ_DEAD) (void)slot_reclaim(&Q, OTHER, i, w);
    }
}

void all_accounted_for(void) {
    tsq_call call;
    tsq_counts n;
    uint8_t seen[SLOTS] = {0};
    forget_outcomes();
    tsq_count(&Q, &n);
    if (n.free != SLOTS)
        fail("slots leaked: of %u free %u, writing %u, ready %u, delayed %u, leased %u, running %u, acked %u, done %u, "
             "dead %u",
             (unsigned)SLOTS, n.free, n.writing, n.ready, n.delayed, n.leased, n.running, n.acked, n.done, n.dead);
    for (uint32_t c = 0; c < Q.geo.classes; c++)
        for (uint32_t i = 0; i < Q.geo.block[c].count; i++) {
            uint64_t w = atomic_load(bitmap(&Q, Q.at.block_words[c]) + i);
            if (w >> 63) fail("block %u of class %u leaked: its word is %016llx", i, c, (unsigned long long)w);
        }
    all_hinted(RING_FREE, SLOTS, "slot");
    for (uint32_t c = 0; c < Q.geo.classes; c++) all_hinted(RING_BLOCK + c, Q.geo.block[c].count, "block");
    for (uint32_t c = 0; c < Q.geo.classes; c++) all_blocks_once(c);
    tsq_lease lease;
    tsq_message m = {.id = "x", .id_len = 1, .payload = "", .len = 0, .privileged = 1, .now_ns = now_ns};
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (tsq_put(&Q, PRODUCER, &m, &lease, &call)) fail("only %u of %u slots can be had", i, (unsigned)SLOTS);
        if (seen[lease.slot]++) fail("slot %u is given out twice", lease.slot);
    }
    if (tsq_put(&Q, PRODUCER, &m, &lease, &call) != TSQ_FULL) fail("there are too many slots");
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (tsq_claim(&Q, OTHER, &lease)) fail("only %u of %u messages can be claimed", i, (unsigned)SLOTS);
        if (seen[lease.slot]++ != 1) fail("slot %u is claimed twice", lease.slot);
    }
    if (tsq_claim(&Q, OTHER, &lease) != TSQ_EMPTY) fail("a message was claimed that nobody put");
}
