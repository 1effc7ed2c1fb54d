/* What a participant can leave behind, all at once; here REPAIRER is the one that died. */
#include <string.h>

#include "scenarios.h"

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

static void result_block_of(const tracked *t, int published) {
    uint32_t number;
    unsigned attempt = tsq_attempt_of(t->lease.word);
    uint64_t gen = tsq_gen_of(t->lease.word);
    holder h = {.owner = REPAIRER, .role = ROLE_RESULT, .slot = t->lease.slot, .attempt = attempt, .gen = gen};
    if (block_write(&Q, &h, result, LARGE, 0, &number)) fail("no block for a result");
    if (published) atomic_store(&slot_at(&Q, t->lease.slot)->ref, ref_make(attempt, gen, number + 1));
}

tracked *running_of(uint64_t len, uint32_t max_deliveries) {
    tracked *t = tracked_plan(len, 10);
    t->max_deliveries = max_deliveries;
    t->watched = 1;
    tracked_commit(t, REPAIRER);
    lease_by(REPAIRER, t);
    start_by(t);
    return t;
}

/* By a producer: READY and DELAYED that nobody was told of, and not committed. */
static void half_put(void) {
    tracked *t = tracked_put(LARGE, 10, 0);
    (void)unhint(RING_LANE + LANE);
    set_word(t, TSQ_READY, 0, 0);
    t = tracked_put(LARGE, 10, 0);
    (void)unhint(RING_LANE + LANE);
    set_word(t, TSQ_WRITING, 0, 0);
    set_word(tracked_timed(MIDDLE, LANE, 20 * NOW, 0), TSQ_DELAYED, 0, 0);
    t = tracked_timed(MIDDLE, LANE, 0, 60 * NOW);
    (void)unhint(RING_LANE + LANE);
    set_word(t, TSQ_READY, 0, 0);
    /* Taken to be discarded, before it was due. */
    t = tracked_timed(INLINE, LANE, 20 * NOW, 60 * NOW);
    set_word(t, TSQ_LEASED, 0, 0);
    atomic_store(tsq_next_due(&Q), UINT64_MAX);
}

/* Outcomes: ended and told nobody and not hinted; half forgotten, a dead letter with its request too. */
static void half_ended(void) {
    uint32_t told[64];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tracked *t = tracked_put(LARGE, LARGE, 1);
    lease_by(REPAIRER, t);
    start_by(t);
    complete_by(REPAIRER, t);
    (void)tsq_completions(&Q, WATCHER, told, 64);
    while (ring_hints(&Q, RING_DONE)) (void)unhint(RING_DONE);
    for (int dead = 0; dead < 2; dead++) {
        t = tracked_put(dead ? LARGE : INLINE, LARGE, 0);
        lease_by(OTHER, t);
        start_by(t);
        if (!dead) complete_by(OTHER, t);
        else if (tsq_dead_letter(&Q, OTHER, &t->lease, result, 100, NOW, wake)) fail("dead letter");
        set_word(t, TSQ_WRITING, 0, 1);
    }
}

/* It had published a result for a start that does not count, and the message is to end before the next. */
static void late(void) {
    tracked *t = tracked_timed(INLINE, LANE, 0, NOW);
    lease_by(REPAIRER, t);
    start_by(t);
    result_block_of(t, 1);
}

static void mark(const tracked *t) {
    if (tsq_time_out(&Q, REPAIRER, t->id, (uint32_t)strlen(t->id))) fail("%s cannot be marked", t->id);
}

/* It took too long: for the last time, with a result on its way; acknowledged; and two that were marked and
 * go on: completed, and given back and started again. */
static void overdue(void) {
    tsq_call call;
    tracked *t = running_of(MIDDLE, 1);
    result_block_of(t, 1);
    mark(t);
    t = running_of(INLINE, 0);
    mark(t);
    if (tsq_ack(&Q, &t->lease)) fail("ack");
    t = running_of(INLINE, 0);
    mark(t);
    if (tsq_release(&Q, REPAIRER, &t->lease, NOW, &call)) fail("release");
    lease_by(REPAIRER, t);
    start_by(t);
}

void left_behind(void) {
    half_ended();
    late();
    /* Leased; running for the first time; running for the last time, with a result that was not committed. */
    lease_by(REPAIRER, tracked_put(INLINE, 10, 1));
    (void)running_of(MIDDLE, 0);
    result_block_of(running_of(LARGE, 1), 1);
    result_block_of(running_of(MIDDLE, 0), 0);
    /* Acknowledged, with and without a result on its way. */
    for (int i = 0; i < 2; i++) {
        tracked *t = running_of(LARGE, 0);
        if (tsq_ack(&Q, &t->lease)) fail("ack");
        if (i) result_block_of(t, 1);
    }
    half_put();
    overdue();
    /* A slot and a block of each class freed and not hinted. */
    uint32_t free = unhint(RING_FREE);
    uint64_t gen = tsq_gen_of(atomic_load(&slot_at(&Q, free)->word));
    atomic_store(&slot_at(&Q, free)->word, tsq_word(TSQ_FREE, REPAIRER, 0, gen));
    for (uint32_t c = 0; c < Q.geo.classes; c++)
        atomic_store(bitmap(&Q, Q.at.block_words[c]) + unhint(RING_BLOCK + c), (uint64_t)REPAIRER << 50);
    tsq_sleep(&Q, REPAIRER, 1);
    tsq_queue_up(&Q, REPAIRER);
}
