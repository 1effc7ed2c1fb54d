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

#include "scenarios.h"
#include "trace.h"

static int is(const scenario *s, const char *name) { return strcmp(s->name, name) == 0; }
static int over(void) { return said->finished && !said->rc; }
static int has(const uint64_t *bits, uint32_t p) { return (int)(bits[p / 64] >> (p % 64)) & 1; }

static void meanwhile(const scenario *s) {
    if (s->meanwhile) s->meanwhile();
    else traffic(150);
}

/* ---- the books of one stop ---- */

static void keep_promises_of_readers(const scenario *s) {
    if (s->kind == READING && said->returned && said->rc != TSQ_OK && said->rc != TSQ_GONE)
        fail("a reader got %d", said->rc);
    if (s->kind == READING && over() &&
        (said->outcome.len != track[0].result_len || !filled(said->data, said->outcome.len, track[0].result_seed)))
        fail("a reader got bytes of another message");
    if (s->kind == LOOKING && over() && !view_is_of_one_message(&said->view)) fail("a look mixed two messages");
    if (s->kind != CLAIMING || !said->finished) return;
    if (said->rc != TSQ_OK && said->rc != TSQ_FENCED) fail("reading the request says %d", said->rc);
    if (!over()) return;
    const tracked *t = tracked_by_id(said->id, said->id_len);
    if (t && (said->len != t->len || !filled(said->data, said->len, t->seed)))
        fail("the request that was read is not the one that was claimed");
}

/* What the victim was told has to be true. */
static void keep_promises(const scenario *s) {
    const tracked *put = tracked_by_id(message.id, message.id_len);
    int is_put = s->kind == PUTTING || s->kind == REFUSED || s->kind == LINING || s->kind == RESENDING;
    if (is_put && over() && put->expected == NOT_THERE) fail("put came back and the message is not there");
    if (is_put && s->kind != PUTTING && said->finished && said->rc && said->rc != TSQ_FULL) fail("put says %d", said->rc);
    if (s->kind == GIVING_UP && put->expected != NOT_THERE) fail("a message is there that was not committed");
    if (s->kind == COMPLETING && over() && track[0].expected != WITH_RESULT)
        fail("complete came back and there is no result");
    if (s->kind == CALLING && over() && !has(said->wakes, FIRST_IN_LINE) && !has(rung, FIRST_IN_LINE))
        fail("there is room and nobody was called");
    keep_promises_of_readers(s);
}

/* Only when nobody has done anything since. */
static void came_to(const scenario *s) {
    if (s->promised != ANY_END && over() && track[0].expected != s->promised)
        fail("it came back and the message is %d, expected %d", track[0].expected, s->promised);
}

/* The message may be forgotten where that is the point of the operation. */
static void only_accounted_for(const scenario *s) {
    if (s->kind == READING || s->kind == LOOKING || s->kind == FORGETTING) tracked_count = 0;
    uint32_t expired, hinted; /* the one that makes visible what a stopped producer did not */
    if (s->kind == EXPIRING && tsq_audit(&Q, OTHER, 10 * NOW, NOW, &expired, &hinted)) fail("audit");
}

/* ---- modes ---- */

typedef struct {
    int traffic;        /* others go on before anybody repairs */
    uint32_t first, by; /* whom to repair first, where two are dead; 0 for `by`: who takes over the index does */
} aftermath;

static int two_die(const scenario *s) { return s->kind == RECOVERING || s->kind == TIMING || s->kind == RESENDING; }

static int has_sender(const scenario *s) { return s->op == op_put_from || s->op == op_reserve_commit_from; }

/* The worker has gone on beside the one that marks; what it has ended stays as it is. */
static void marked_after(const scenario *s) {
    observe();
    if (s->meanwhile && track[0].expected == TIMED_OUT) fail("its end came first and does not count");
}

static void die(const scenario *s, const aftermath *a) {
    outcomes_held();
    watch_all();
    keep_promises(s);
    came_to(s);
    only_accounted_for(s);
    if (a->traffic && has_sender(s)) resend();
    if (a->traffic) meanwhile(s);
    if (a->traffic && s->kind == TIMING) marked_after(s);
    uint32_t second = a->first == VICTIM ? REPAIRER : VICTIM;
    if (two_die(s) || a->first == VICTIM) repair(a->first, a->by ? a->by : a->first);
    if (two_die(s) || second == VICTIM) repair(second, a->by ? a->by : second);
    if (!a->traffic && has_sender(s)) {
        traffic(100); /* its slot is used again */
        resend();
    }
    announced();
    outcomes_intact();
    settle();
    line_served();
    verify();
    if (has_sender(s)) remembered();
    all_accounted_for();
}

static void stop_kill(const scenario *s, pid_t walker, long k) {
    static const aftermath all[] = {{0, REPAIRER, OTHER}, {1, REPAIRER, OTHER}, {0, VICTIM, OTHER}, {0, VICTIM, 0}};
    (void)walker;
    (void)k;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].first == VICTIM && all[i].by && !two_die(s)) continue; /* only one is dead */
        world_load();
        die(s, &all[i]);
    }
}

static void run_to_end(pid_t pid) {
    int status = trace_finish(pid);
    if (status) fail("one that was frozen ends with status %x", (unsigned)status);
}

/* What it does not hold, others have found. */
static void nobody_waits_for_it(void) {
    for (unsigned i = 0; i < tracked_count; i++)
        if (tsq_state_of(track[i].lease.word) == TSQ_READY && !track[i].delivered)
            fail("others do not find %s", track[i].id);
}

static void stop_freeze(const scenario *s, pid_t walker, long k) {
    pid_t copy = trace_copy(walker, s->op, k);
    watch_all();
    meanwhile(s);
    if (s->kind == CLAIMING) nobody_waits_for_it();
    run_to_end(copy);
    if (s->kind == PUTTING && said->rc) fail("put says %d", said->rc);
    if (s->kind == LINING && said->rc && (tsq_is_waiting(&Q, VICTIM) || !has(rung, VICTIM)))
        fail("it is not called and waits");
    if (s->kind != RECOVERING) {
        announced();
        conclude_for_victim();
        observe();
    }
    if (s->kind == TIMING) {
        marked_after(s);
        repair(REPAIRER, OTHER);
    }
    if (has_sender(s)) remembered();
    keep_promises(s);
    for (unsigned i = 0; i < tracked_count && s->kind != RECOVERING; i++) {
        tracked *t = &track[i];
        if (t->delivered > 1 || (t->delivered && t->expected == TO_BE_DELIVERED)) fail("%s is delivered twice", t->id);
        if (t->delivered) t->expected = TO_BE_DELIVERED; /* another worker got it and has completed it */
    }
    only_accounted_for(s);
    outcomes_intact();
    settle();
    line_served();
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

/* Another message, in the very slot, held by OTHER. */
static tracked *reuse_slot(uint32_t slot) {
    char id[] = "reused", data[LARGEST];
    unsigned before = tracked_count;
    uint32_t expired, hinted;
    tsq_call call;
    atomic_store(tsq_result_ttl(&Q), 1);
    (void)tsq_audit(&Q, OTHER, UINT64_MAX, 1, &expired, &hinted);
    for (int i = 0; i < SLOTS; i++) {
        tracked_count = before;
        tracked *t = tracked_plan(LARGE, LARGE);
        memcpy(t->id, id, sizeof id);
        (void)tracked_message(t, &message, data);
        if (tsq_put(&Q, PRODUCER, &message, &t->lease, &call)) fail("others stall");
        if (tsq_take(&Q, OTHER, t->lease.slot, tsq_gen_of(t->lease.word), &t->lease))
            fail("others cannot take what they put");
        start_by(t);
        if (t->lease.slot == slot) {
            tsq_watch(&Q, WATCHER, slot);
            t->watched = 1;
            return t;
        }
        uint64_t wakes[TSQ_WAKE_WORDS] = {0};
        if (tsq_finish(&Q, OTHER, &t->lease, TSQ_FORGET, NOW, wakes)) fail("others stall");
    }
    fail("slot %u does not come round", slot);
}

static void stop_fence(const scenario *s, pid_t walker, long k) {
    enum { COMPLETED, RUNNING_STILL, REUSED, REUSED_AND_ENDED, DROPPED, VARIANTS };
    for (int variant = 0; variant < VARIANTS; variant++) {
        world_load();
        uint64_t taken = take_lease_away();
        if (!taken) return;
        pid_t copy = trace_copy(walker, s->op, k);
        tracked *t = &track[0], *next = NULL;
        uint64_t wake[TSQ_WAKE_WORDS] = {0};
        lease_by(OTHER, t);
        start_by(t);
        t->result_seed += 100; /* the other one's result */
        fill(result, t->result_len, t->result_seed);
        int reused = variant == REUSED || variant == REUSED_AND_ENDED;
        if (variant == COMPLETED || reused) complete_by(OTHER, t);
        if (variant == DROPPED && tsq_finish(&Q, OTHER, &t->lease, TSQ_FORGET, NOW, wake)) fail("finish");
        if (reused) next = reuse_slot(t->lease.slot);
        if (variant == REUSED_AND_ENDED) complete_by(OTHER, next);
        run_to_end(copy);
        int in_time = s->kind == CLAIMING || (s->kind == STARTING && tsq_state_of(taken) == TSQ_RUNNING);
        int no_block = said->rc == TSQ_FULL && is(s, "complete-evicting"); /* it will hear of it when it tries again */
        if (!in_time && !no_block && said->rc != TSQ_FENCED) fail("the late one is told %d", said->rc);
        keep_promises(s);
        if (variant == RUNNING_STILL) complete_by(OTHER, t);
        if (variant == REUSED) complete_by(OTHER, next);
        observe();
        outcomes_intact();
        settle();
        if (!reused && t->expected != (variant == DROPPED ? NOT_THERE : WITH_RESULT))
            fail("it ended as %d", t->expected);
        if (next && next->expected != WITH_RESULT) fail("the next message ended as %d", next->expected);
        if (variant == DROPPED || reused) t->watched = 0;
        verify();
        all_accounted_for();
    }
}

/* ---- two at a time ---- */

/* The second one's whole life. */
static void op_cycle(void) {
    tsq_lease lease;
    uint64_t wakes[TSQ_WAKE_WORDS] = {0};
    char id[TSQ_MAX_ID], data[LARGEST];
    uint32_t id_len;
    uint64_t len;
    tsq_call call;
    if (tsq_put(&Q, SECOND, &message, &lease, &call) || tsq_claim(&Q, SECOND, &lease)) return;
    if (tsq_read_request(&Q, &lease, id, &id_len, data, sizeof data, &len) || tsq_start(&Q, &lease)) _exit(1);
    if (tsq_complete(&Q, SECOND, &lease, result, OTHERS_LEN, OTHERS_RESULT & 0xff, NOW, wakes)) _exit(1);
}

static long pair_every = 1;

/* Everything is over: each message has ended once, and nothing is missing. */
static void settle_pair(const scenario *s) {
    outcomes_intact();
    conclude_for_victim();
    settle();
    observe();
    for (unsigned i = 0; i < tracked_count; i++)
        if (track[i].expected != NOT_THERE) verify_once(&track[i]);
    /* Outcomes that nobody waits for may have been forgotten; what is waited for may not. */
    int may_go = s->promised == NOT_THERE || s->kind == READING || s->kind == LOOKING || s->kind == EXPIRING;
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
    (void)tracked_message(tracked_plan(LARGE, OTHERS_LEN), &message, payload);
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
            if (s->kind == PUTTING && said->rc && said->rc != TSQ_FULL) fail("put says %d", said->rc);
            settle_pair(s);
        }
        world_load();
    } while (j++, trace_step(second));
    memcpy(Q.base, at_k, Q.at.total);
    memcpy(track, tracked_at_k, sizeof track);
    tracked_count = count_at_k;
    *said = said_at_k;
}

/* Not where messages of no interest wait: the second one would take those. */
static int to_pairs(const scenario *s) { return !two_die(s) && s->kind != CALLING; }

typedef struct {
    const char *name;
    void (*stop)(const scenario *, pid_t walker, long k);
    int (*applies)(const scenario *);
} mode;

static int to_all(const scenario *s) { return s != NULL; }
static int to_leases(const scenario *s) { return s->kind >= CLAIMING && s->kind <= ENDING; }

static const mode modes[] = {{"kill", stop_kill, to_all},
                             {"freeze", stop_freeze, to_all},
                             {"fence", stop_fence, to_leases},
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
        for (size_t s = 0; s < scenario_count; s++)
            if ((!only_scenario || is(&scenarios[s], only_scenario)) && modes[m].applies(&scenarios[s]))
                run(&modes[m], &scenarios[s], every);
    }
    return 0;
}
