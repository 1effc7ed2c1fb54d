#include "scenarios.h"

#include <string.h>

char result[LARGEST], payload[LARGEST];
tsq_message message;

/* ---- operations: what the victim does. They report each call that came back. ---- */

static void came_back(int rc) {
    said->rc = rc;
    said->returned++;
}

static void op_put(void) { came_back(tsq_put(&Q, VICTIM, &message, &said->lease, &said->wake)); }

static void op_claim(void) {
    came_back(tsq_claim(&Q, VICTIM, &said->lease));
    if (!said->rc)
        came_back(tsq_read_request(&Q, &said->lease, said->id, &said->id_len, said->data, sizeof said->data, &said->len));
}

static void op_sleep_and_claim(void) {
    tsq_sleep(&Q, VICTIM, 1);
    op_claim();
    tsq_wake_up(&Q, VICTIM);
    tsq_set_empty(&Q, VICTIM, 0);
}

static void op_start(void) { came_back(tsq_start(&Q, &track[0].lease)); }
static void op_ack(void) { came_back(tsq_ack(&Q, &track[0].lease)); }

static void op_complete(void) {
    came_back(tsq_complete(&Q, VICTIM, &track[0].lease, result, track[0].result_len, NOW, said->wakes));
}

static void op_whole(void) {
    came_back(tsq_start(&Q, &track[0].lease));
    if (!said->rc) came_back(tsq_ack(&Q, &track[0].lease));
    if (!said->rc) op_complete();
}

static void op_finish_keep(void) { came_back(tsq_finish(&Q, VICTIM, &track[0].lease, 1, NOW, said->wakes)); }
static void op_finish_drop(void) { came_back(tsq_finish(&Q, VICTIM, &track[0].lease, 0, NOW, said->wakes)); }
static void op_release(void) { came_back(tsq_release(&Q, VICTIM, &track[0].lease, &said->wake)); }

static void op_dead_letter(void) {
    came_back(tsq_dead_letter(&Q, VICTIM, &track[0].lease, result, track[0].result_len, NOW, said->wakes));
}

static void op_read(void) {
    uint32_t slot;
    uint64_t gen;
    if (tsq_find(&Q, track[0].id, (uint32_t)strlen(track[0].id), &slot, &gen)) return;
    came_back(tsq_get_outcome(&Q, slot, gen, &said->outcome, said->data, sizeof said->data));
}

static void op_expire(void) {
    uint32_t expired, hinted;
    came_back(tsq_audit(&Q, VICTIM, 10 * NOW, NOW, NOW, &expired, &hinted));
}

static void op_recover(void) {
    tsq_repair *list;
    uint32_t n;
    came_back(tsq_recover(&Q, REPAIRER, VICTIM, TSQ_DEATH(TSQ_CAUSE_SIGNAL, 9, 0, 1), NOW, &list, &n, said->wakes));
}

/* ---- preparations ---- */

static void plan_put(uint64_t len) { (void)tracked_message(tracked_plan(len, 60), &message, payload); }
static void put_inline(void) { plan_put(INLINE); }
static void put_block(void) { plan_put(ONE_BLOCK); }
static void put_table(void) { plan_put(TABLE); }

/* No free slot: the put has to forget an outcome, whose result is a table of blocks. */
static void put_evicts(void) {
    outcomes(2, TABLE);
    outcomes(SLOTS - 2, 10);
    plan_put(INLINE);
}

/* No free block: as above, for a payload of many blocks. */
static void put_evicts_blocks(void) {
    outcomes(LARGE_BLOCKS / 2 / 4, TABLE); /* the other half is left to results */
    plan_put(TABLE);
}

/* The oldest outcomes are waited for: they stay, younger ones go. */
static void put_spares_awaited(void) {
    for (int i = 0; i < 3; i++) {
        tracked *t = tracked_put(INLINE, i ? TABLE : 20, 1);
        lease_by(OTHER, t);
        start_by(t);
        complete_by(OTHER, t);
    }
    outcomes(SLOTS - 3, 10);
    plan_put(INLINE);
}

static void ready(void) { (void)tracked_put(TABLE, TABLE, 1); }
static void ready_inline(void) { (void)tracked_put(INLINE, 30, 1); }

static void leased(void) {
    ready();
    lease_by(VICTIM, &track[0]);
    fill(result, track[0].result_len, track[0].result_seed);
}

static void running(void) {
    leased();
    start_by(&track[0]);
}

static void running_one_block(void) {
    (void)tracked_put(ONE_BLOCK, 50, 1);
    lease_by(VICTIM, &track[0]);
    start_by(&track[0]);
    fill(result, track[0].result_len, track[0].result_seed);
}

static void acked(void) {
    running();
    if (tsq_ack(&Q, &track[0].lease)) fail("ack");
}

/* No free block: the result has to push an older one out. */
static void running_no_block(void) {
    running();
    outcomes((LARGE_BLOCKS - 4) / 4, TABLE);
}

/* As many dead letters as are kept, so that the oldest has to go. */
static void running_dead_full(void) {
    for (unsigned i = 0; i < SLOTS / 8; i++) {
        char reason[] = "why";
        uint64_t wake[TSQ_WAKE_WORDS] = {0};
        tracked *t = tracked_put(i ? INLINE : TABLE, 30, 0);
        lease_by(OTHER, t);
        start_by(t);
        if (tsq_dead_letter(&Q, OTHER, &t->lease, reason, sizeof reason, NOW, wake)) fail("dead letter");
    }
    tracked_count = 0;
    running();
}

static void ended(void) {
    (void)tracked_put(TABLE, TABLE, 0);
    lease_by(OTHER, &track[0]);
    start_by(&track[0]);
    complete_by(OTHER, &track[0]);
}

static void ended_of_all_kinds(void) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    outcomes(2, TABLE);
    outcomes(2, 40);
    tracked *t = tracked_put(TABLE, 10, 0);
    lease_by(OTHER, t);
    start_by(t);
    if (tsq_dead_letter(&Q, OTHER, &t->lease, "why", 3, NOW, wake)) fail("dead letter");
    t = tracked_put(INLINE, 10, 0);
    lease_by(OTHER, t);
    start_by(t);
    if (tsq_finish(&Q, OTHER, &t->lease, 1, NOW, wake)) fail("finish");
    tracked_count = 0;
    (void)tracked_put(TABLE, TABLE, 0); /* READY, but no hint: its producer is stopped */
    if (tsq_claim(&Q, OTHER, &lease)) fail("claim");
    atomic_store(&slot_at(&Q, lease.slot)->word, tsq_word(TSQ_READY, PRODUCER, 0, tsq_gen_of(lease.word)));
    now_ns = 10 * NOW; /* what ends from now on is not old */
}

static void set_word(const tracked *t, unsigned state, unsigned attempt, uint64_t generations) {
    uint64_t gen = tsq_gen_of(t->lease.word) + generations;
    atomic_store(&slot_at(&Q, t->lease.slot)->word, tsq_word(state, REPAIRER, attempt, gen));
}

/* Removes the oldest hint of a ring: its putter died before it hinted. */
static uint32_t unhint(unsigned ring) {
    uint64_t pos;
    uint32_t i, gen12;
    if (!ring_peek(&Q, ring, &pos, &i, &gen12)) fail("ring %u has no hint to take away", ring);
    ring_advance(&Q, ring, pos);
    return i;
}

static void result_blocks_of(const tracked *t) {
    uint32_t first;
    holder h = {.owner = REPAIRER,
                .role = ROLE_RESULT,
                .slot = t->lease.slot,
                .attempt = tsq_attempt_of(t->lease.word),
                .gen = tsq_gen_of(t->lease.word)};
    if (extent_write(&Q, &h, result, TABLE, &first)) fail("no block for a result");
}

/* Everything that a participant can leave behind, all at once; here REPAIRER is the one that died. */
static void left_behind(void) {
    tracked *t;
    uint32_t told[64];
    /* Ended: told nobody, and not hinted for eviction. */
    t = tracked_put(TABLE, TABLE, 1);
    lease_by(REPAIRER, t);
    start_by(t);
    complete_by(REPAIRER, t);
    (void)tsq_completions(&Q, WATCHER, told, 64);
    while (ring_hints(&Q, RING_DONE)) (void)unhint(RING_DONE);
    /* Leased; running for the first and for the last time; running with a result that was not committed. */
    lease_by(REPAIRER, tracked_put(INLINE, 10, 1));
    lease_by(REPAIRER, t = tracked_put(ONE_BLOCK, 10, 1));
    start_by(t);
    t = tracked_plan(TABLE, 10);
    t->max_deliveries = 1;
    t->watched = 1;
    (void)tracked_message(t, &message, payload);
    if (tsq_put(&Q, PRODUCER, &message, &t->lease, &said->wake)) fail("put");
    tsq_watch(&Q, WATCHER, t->lease.slot);
    lease_by(REPAIRER, t);
    start_by(t);
    result_blocks_of(t);
    lease_by(REPAIRER, t = tracked_put(ONE_BLOCK, 10, 1));
    start_by(t);
    result_blocks_of(t);
    /* Acknowledged, with and without a result on its way. */
    for (int i = 0; i < 2; i++) {
        lease_by(REPAIRER, t = tracked_put(TABLE, 10, 1));
        start_by(t);
        if (tsq_ack(&Q, &t->lease)) fail("ack");
        if (i) result_blocks_of(t);
    }
    /* Committed and not hinted. */
    t = tracked_put(TABLE, 10, 0);
    (void)unhint(RING_LANE);
    set_word(t, TSQ_READY, 0, 0);
    /* Not committed. */
    t = tracked_put(TABLE, 10, 0);
    (void)unhint(RING_LANE);
    set_word(t, TSQ_WRITING, 0, 0);
    /* An outcome half forgotten. */
    t = tracked_put(INLINE, TABLE, 0);
    lease_by(OTHER, t);
    start_by(t);
    complete_by(OTHER, t);
    set_word(t, TSQ_WRITING, 0, 1);
    /* A slot and a block of each class freed and not hinted. */
    uint32_t free = unhint(RING_FREE);
    uint64_t gen = tsq_gen_of(atomic_load(&slot_at(&Q, free)->word));
    atomic_store(&slot_at(&Q, free)->word, tsq_word(TSQ_FREE, REPAIRER, 0, gen));
    for (uint32_t c = 0; c < 2; c++)
        atomic_store(bitmap(&Q, Q.at.block_words[c]) + unhint(RING_BLOCK + c), (uint64_t)REPAIRER << 50);
    tsq_sleep(&Q, REPAIRER, 1);
}

const scenario scenarios[SCENARIOS] = {
    {"put", PUTTING, put_inline, op_put},
    {"put-block", PUTTING, put_block, op_put},
    {"put-table", PUTTING, put_table, op_put},
    {"put-evicting", PUTTING, put_evicts, op_put},
    {"put-evicting-blocks", PUTTING, put_evicts_blocks, op_put},
    {"put-sparing-awaited", PUTTING, put_spares_awaited, op_put},
    {"claim", CLAIMING, ready_inline, op_claim},
    {"claim-table", CLAIMING, ready, op_claim},
    {"sleep-claim", CLAIMING, ready_inline, op_sleep_and_claim},
    {"start", STARTING, leased, op_start},
    {"ack", ENDING, running, op_ack},
    {"complete", COMPLETING, running_one_block, op_complete},
    {"complete-table", COMPLETING, running, op_complete},
    {"complete-acked", COMPLETING, acked, op_complete},
    {"complete-evicting", COMPLETING, running_no_block, op_complete},
    {"start-ack-complete", ENDING, leased, op_whole},
    {"finish-keep", ENDING, running, op_finish_keep},
    {"finish-drop", ENDING, running, op_finish_drop},
    {"release-leased", ENDING, leased, op_release},
    {"release", ENDING, running, op_release},
    {"dead-letter", ENDING, running, op_dead_letter},
    {"dead-letter-trimming", ENDING, running_dead_full, op_dead_letter},
    {"read", READING, ended, op_read},
    {"expire", EXPIRING, ended_of_all_kinds, op_expire},
    {"recover", RECOVERING, left_behind, op_recover},
};
