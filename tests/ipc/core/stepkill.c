/* Every operation, stopped at every instruction.
 *
 * kill    The victim dies at instruction k. What is left of a process that died is the shared memory at
 *         that moment, so the walker is not killed: the others go on, repair and do their books on the
 *         memory as it is then, it is put back, and the walker takes the next step.
 * freeze  A copy of the victim stands still at instruction k while the others go round every ring, then
 *         goes on to its end. It has not died, so nothing is repaired: a repair would hide what the
 *         operation itself did wrong.
 * fence   As freeze, and meanwhile the victim's lease is taken away (row X of the protocol) and the
 *         message goes its way with another worker, in four variants. The victim comes late with all
 *         it still wants to do; none of it may show.
 *
 * pair    The victim is frozen at instruction k while a second one goes through a whole cycle, put to
 *         complete, and is stopped at each of its instructions in turn: it dies there and is repaired
 *         before or after the victim goes on, or it goes on as well. For races of three: the two, and
 *         the repair. Takes N² stops; see --every.
 *
 * stepkill [--every N] [--pair-every N] [MODE [SCENARIO]]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trace.h"
#include "world.h"

typedef struct {
    const char *name;
    void (*prepare)(void);
    void (*op)(void);
    int ends_dead; /* freeze: other ends than a result are expected of the victim */
} scenario;

static char result[LARGEST], payload[LARGEST];
static tsq_message message;

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

/* The second one's whole life. */
static void op_cycle(void) {
    tsq_lease lease;
    uint64_t wakes[TSQ_WAKE_WORDS] = {0};
    char id[TSQ_MAX_ID], data[LARGEST];
    uint32_t id_len, wake;
    uint64_t len;
    if (tsq_put(&Q, SECOND, &message, &lease, &wake) || tsq_claim(&Q, SECOND, &lease)) return;
    if (tsq_read_request(&Q, &lease, id, &id_len, data, sizeof data, &len) || tsq_start(&Q, &lease)) _exit(1);
    if (tsq_complete(&Q, SECOND, &lease, result, OTHERS_LEN, NOW, wakes)) _exit(1);
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
    outcomes((LARGE_BLOCKS - LARGE_BLOCKS / 16) / 4, TABLE);
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

static const scenario scenarios[] = {
    {"put", put_inline, op_put, 0},
    {"put-block", put_block, op_put, 0},
    {"put-table", put_table, op_put, 0},
    {"put-evicting", put_evicts, op_put, 0},
    {"put-evicting-blocks", put_evicts_blocks, op_put, 0},
    {"put-sparing-awaited", put_spares_awaited, op_put, 0},
    {"claim", ready_inline, op_claim, 0},
    {"claim-table", ready, op_claim, 0},
    {"sleep-claim", ready_inline, op_sleep_and_claim, 0},
    {"start", leased, op_start, 0},
    {"ack", running, op_ack, 0},
    {"complete", running_one_block, op_complete, 0},
    {"complete-table", running, op_complete, 0},
    {"complete-acked", acked, op_complete, 0},
    {"complete-evicting", running_no_block, op_complete, 0},
    {"start-ack-complete", leased, op_whole, 0},
    {"finish-keep", running, op_finish_keep, 1},
    {"finish-drop", running, op_finish_drop, 1},
    {"release-leased", leased, op_release, 1},
    {"release", running, op_release, 1},
    {"dead-letter", running, op_dead_letter, 1},
    {"dead-letter-trimming", running_dead_full, op_dead_letter, 1},
    {"read", ended, op_read, 0},
    {"expire", ended_of_all_kinds, op_expire, 0},
    {"recover", left_behind, op_recover, 0},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

static int is(const scenario *s, const char *name) { return strcmp(s->name, name) == 0; }

/* ---- the books of one stop ---- */

/* What the victim was told has to be true. */
static void keep_promises(const scenario *s) {
    const tracked *t = &track[tracked_count ? tracked_count - 1 : 0];
    int over = said->returned && !said->rc;
    if (s->op == op_put && over && t->expected == NOT_THERE) fail("put came back and the message is not there");
    if (s->op == op_complete && over && track[0].expected != WITH_RESULT) fail("complete came back and there is no result");
    if (s->op == op_read && said->returned && said->rc != TSQ_OK && said->rc != TSQ_GONE) fail("a reader got %d", said->rc);
    if (s->op == op_read && over &&
        (said->outcome.len != track[0].result_len || !filled(said->data, said->outcome.len, track[0].result_seed)))
        fail("a reader got bytes of another message");
    if (s->op == op_claim && said->returned == 2 && said->rc != TSQ_OK && said->rc != TSQ_FENCED)
        fail("reading the request says %d", said->rc);
    if (s->op == op_claim && said->returned == 2 && over &&
        (said->len != track[0].len || !filled(said->data, said->len, track[0].seed)))
        fail("the request that was read is not the one that was claimed");
}

/* The message may be forgotten where that is the point of the operation. */
static void only_accounted_for(const scenario *s) {
    if (is(s, "read")) tracked_count = 0;
    uint32_t expired, hinted; /* the one that makes visible what a stopped producer did not */
    if (is(s, "expire") && tsq_audit(&Q, OTHER, 10 * NOW, NOW, NOW, &expired, &hinted)) fail("audit");
}


/* ---- modes ---- */

typedef struct {
    unsigned traffic; /* cycles of the others before anybody repairs */
    uint32_t first, by; /* whom to repair first, where two are dead; 0 for `by`: who takes over the index does */
} aftermath;

static void die(const scenario *s, const aftermath *a) {
    outcomes_held();
    watch_all();
    keep_promises(s);
    only_accounted_for(s);
    traffic(a->traffic);
    uint32_t second = a->first == VICTIM ? REPAIRER : VICTIM;
    if (s->op == op_recover || a->first == VICTIM) repair(a->first, a->by ? a->by : a->first);
    if (s->op == op_recover || second == VICTIM) repair(second, a->by ? a->by : second);
    outcomes_intact();
    drain();
    verify();
    all_accounted_for();
}

static void stop_kill(const scenario *s, pid_t walker, long k) {
    static const aftermath all[] = {{0, REPAIRER, OTHER}, {150, REPAIRER, OTHER}, {0, VICTIM, OTHER}, {0, VICTIM, 0}};
    (void)walker;
    (void)k;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].first == VICTIM && all[i].by && s->op != op_recover) continue; /* only one is dead */
        world_load();
        die(s, &all[i]);
    }
}

static void run_to_end(pid_t pid) {
    int status = trace_finish(pid);
    if (status) fail("one that was frozen ends with status %x", (unsigned)status);
}

static void stop_freeze(const scenario *s, pid_t walker, long k) {
    pid_t copy = trace_copy(walker, s->op, k);
    watch_all();
    traffic(150);
    run_to_end(copy);
    if (s->op == op_put && said->rc) fail("put says %d", said->rc);
    if (s->op != op_recover) {
        conclude_for_victim();
        observe();
    }
    keep_promises(s);
    for (unsigned i = 0; i < tracked_count && s->op != op_recover; i++) {
        tracked *t = &track[i];
        if (t->delivered > 1 || (t->delivered && t->expected == TO_BE_DELIVERED)) fail("%s is delivered twice", t->id);
        if (t->delivered) t->expected = TO_BE_DELIVERED; /* another worker got it and has completed it */
    }
    only_accounted_for(s);
    outcomes_intact();
    drain();
    verify();
    all_accounted_for();
}

/* Row X: the lease ran out. Returns the word it had, 0 when the victim holds none. */
static uint64_t take_lease_away(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        unsigned state = tsq_state_of(w);
        if (tsq_owner_of(w) != VICTIM || (state != TSQ_LEASED && state != TSQ_RUNNING)) continue;
        atomic_store(&slot_at(&Q, i)->word, tsq_word(TSQ_READY, OTHER, tsq_attempt_of(w), tsq_gen_of(w)));
        (void)ring_put(&Q, RING_AGAIN, i, tsq_gen_of(w));
        track[0].lease = (tsq_lease){.slot = i, .word = w};
        return w;
    }
    return 0;
}

static void reuse_slot(uint32_t slot) {
    char id[] = "reused", data[LARGEST];
    uint32_t expired, hinted, wake;
    (void)tsq_audit(&Q, OTHER, UINT64_MAX, 1, 1, &expired, &hinted);
    for (int i = 0; i < SLOTS; i++) {
        tracked *t = &track[1];
        tracked_count = 1;
        t = tracked_plan(TABLE, TABLE);
        memcpy(t->id, id, sizeof id);
        (void)tracked_message(t, &message, data);
        if (tsq_put(&Q, PRODUCER, &message, &t->lease, &wake)) fail("others stall");
        lease_by(OTHER, t);
        start_by(t);
        if (t->lease.slot == slot) return;
        uint64_t wakes[TSQ_WAKE_WORDS] = {0};
        if (tsq_finish(&Q, OTHER, &t->lease, 0, NOW, wakes)) fail("others stall");
    }
    fail("slot %u does not come round", slot);
}

static void stop_fence(const scenario *s, pid_t walker, long k) {
    enum { COMPLETED, RUNNING_STILL, REUSED, DROPPED, VARIANTS };
    for (int variant = 0; variant < VARIANTS; variant++) {
        world_load();
        uint64_t taken = take_lease_away();
        if (!taken) return;
        pid_t copy = trace_copy(walker, s->op, k);
        tracked *t = &track[0];
        uint64_t wake[TSQ_WAKE_WORDS] = {0};
        lease_by(OTHER, t);
        start_by(t);
        t->result_seed += 100; /* the other one's result */
        fill(result, t->result_len, t->result_seed);
        if (variant == COMPLETED || variant == REUSED) complete_by(OTHER, t);
        if (variant == DROPPED && tsq_finish(&Q, OTHER, &t->lease, 0, NOW, wake)) fail("finish");
        if (variant == REUSED) reuse_slot(t->lease.slot);
        run_to_end(copy);
        int in_time = s->op == op_claim || (s->op == op_start && tsq_state_of(taken) == TSQ_RUNNING);
        int no_block = said->rc == TSQ_FULL && is(s, "complete-evicting"); /* it will hear of it when it tries again */
        if (!in_time && !no_block && said->rc != TSQ_FENCED) fail("the late one is told %d", said->rc);
        keep_promises(s);
        if (variant == RUNNING_STILL) complete_by(OTHER, t);
        if (variant == REUSED) complete_by(OTHER, &track[1]);
        observe();
        outcomes_intact();
        drain();
        if (variant != REUSED && t->expected != (variant == DROPPED ? NOT_THERE : WITH_RESULT)) fail("it ended as %d", t->expected);
        if (variant == REUSED && track[1].expected != WITH_RESULT) fail("the next message ended as %d", track[1].expected);
        if (variant == DROPPED || variant == REUSED) t->watched = 0;
        verify();
        all_accounted_for();
    }
}

/* ---- two at a time ---- */

static long pair_every = 1;

/* Everything is over: each message has ended once, and nothing is missing. */
static void settle_pair(const scenario *s) {
    outcomes_intact();
    conclude_for_victim();
    drain();
    observe();
    for (unsigned i = 0; i < tracked_count; i++)
        if (track[i].expected != NOT_THERE) verify_once(&track[i]);
    /* Outcomes that nobody waits for may have been forgotten; what is waited for may not. */
    int may_go = s->op == op_finish_drop || s->op == op_read || s->op == op_expire;
    for (unsigned i = 0; i < tracked_count; i++)
        if (track[i].watched && track[i].expected == NOT_THERE && !may_go) fail("%s is lost", track[i].id);
    all_accounted_for();
}

static void stop_pair(const scenario *s, pid_t walker, long k) {
    enum { REPAIRED_FIRST, REPAIRED_LAST, BOTH_LIVE, ORDERS };
    static char *at_k;
    static tracked tracked_at_k[MAX_TRACKED];
    unsigned count_at_k = tracked_count;
    report said_at_k = *said;
    if (!at_k) at_k = malloc(Q.at.total);
    if (!at_k) fail("malloc");
    memcpy(at_k, Q.base, Q.at.total);
    memcpy(tracked_at_k, track, sizeof track);
    (void)tracked_message(tracked_plan(TABLE, OTHERS_LEN), &message, payload);
    fill(result, OTHERS_LEN, OTHERS_RESULT);
    pid_t second = trace_start(op_cycle);
    long j = 0;
    do {
        if (j % pair_every) continue;
        (void)alarm(20);
        world_save();
        for (int order = 0; order < ORDERS; order++) {
            world_load();
            pid_t copy = trace_copy(walker, s->op, k);
            pid_t copy_of_second = order == BOTH_LIVE ? trace_copy(second, op_cycle, j) : 0;
            if (order == REPAIRED_FIRST) repair(SECOND, OTHER);
            run_to_end(copy);
            if (order == REPAIRED_LAST) repair(SECOND, OTHER);
            if (order == BOTH_LIVE) run_to_end(copy_of_second);
            if (s->op == op_put && said->rc && said->rc != TSQ_FULL) fail("put says %d", said->rc);
            settle_pair(s);
        }
        world_load();
    } while (j++, trace_step(second));
    memcpy(Q.base, at_k, Q.at.total);
    memcpy(track, tracked_at_k, sizeof track);
    tracked_count = count_at_k;
    *said = said_at_k;
}

static int to_pairs(const scenario *s) { return s->op != op_recover; }

typedef struct {
    const char *name;
    void (*stop)(const scenario *, pid_t walker, long k);
    int (*applies)(const scenario *);
} mode;

static int to_all(const scenario *s) { return s != NULL; }
static int to_leases(const scenario *s) {
    return s->op == op_claim || s->op == op_start || s->op == op_ack || s->op == op_complete || s->op == op_whole ||
           s->op == op_finish_keep || s->op == op_finish_drop || s->op == op_release || s->op == op_dead_letter;
}

static const mode modes[] = {{"kill", stop_kill, to_all}, {"freeze", stop_freeze, to_all}, {"fence", stop_fence, to_leases},
                             {"pair", stop_pair, to_pairs}};

static void stalled(int signal) {
    (void)signal;
    fail("somebody waits for the one that was stopped");
}

static void run(const mode *m, const scenario *s, long every) {
    long k = 0, stops = 0;
    doing(m->name, s->name, 0);
    world_reset();
    s->prepare();
    pid_t walker = trace_start(s->op);
    do {
        if (k % every) continue;
        doing(m->name, s->name, k);
        (void)alarm(20);
        world_save();
        m->stop(s, walker, k);
        if (m->stop != stop_pair) world_load();
        stops++;
    } while (k++, trace_step(walker));
    (void)printf("%-6s %-20s stopped at %ld of %ld instructions\n", m->name, s->name, stops, k);
}

int main(int argc, char **argv) {
    long every = 1;
    const char *only_mode = NULL, *only_scenario = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--every") && i + 1 < argc) every = strtol(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--pair-every") && i + 1 < argc) pair_every = strtol(argv[++i], NULL, 10);
        else if (!only_mode) only_mode = argv[i];
        else only_scenario = argv[i];
    }
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    (void)signal(SIGALRM, stalled);
    world_open();
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        int all_modes = !only_mode && modes[m].stop != stop_pair;
        if (!all_modes && (!only_mode || strcmp(only_mode, modes[m].name))) continue;
        for (size_t s = 0; s < SCENARIOS; s++)
            if ((!only_scenario || is(&scenarios[s], only_scenario)) && modes[m].applies(&scenarios[s]))
                run(&modes[m], &scenarios[s], every);
    }
    return 0;
}
