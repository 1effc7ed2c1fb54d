/* The states in which the operations begin, and the table of both. */
#include <string.h>

#include "scenarios.h"

/* ---- putting ---- */

static tracked *plan_put(uint64_t len) {
    tracked *t = tracked_plan(len, 60);
    (void)tracked_message(t, &message, payload);
    return t;
}

static void put_inline(void) { (void)plan_put(INLINE); }
static void put_block(void) { (void)plan_put(MIDDLE); }
static void put_large(void) { (void)plan_put(LARGE); }

static void put_timed(uint64_t len, uint32_t lane, uint64_t due, uint64_t expires) {
    tracked *t = plan_put(len);
    t->lane = lane;
    t->due = due;
    t->expires = expires;
    (void)tracked_message(t, &message, payload);
}

static void put_in_new_lane(void) { put_timed(INLINE, UNUSED_LANE, 0, 0); }
static void put_delayed(void) { put_timed(LARGE, UNUSED_LANE, 20 * NOW, 0); }
static void put_expiring(void) { put_timed(INLINE, LANE, 0, 20 * NOW); }
static void put_both(void) { put_timed(MIDDLE, LANE, 20 * NOW, 10 * NOW); }

/* There is another delayed one, later and known: this one is announced before it. */
static void put_delayed_earlier(void) {
    (void)tracked_timed(INLINE, LANE, 30 * NOW, 0);
    put_timed(INLINE, LANE, 20 * NOW, 60 * NOW);
}

/* The lane's ring is full: two valid hints, the others of a slot whose messages somebody took past it. */
static void put_full_lane(void) {
    unsigned r = RING_LANE + UNUSED_LANE;
    uint64_t pos;
    uint32_t next, gen12;
    (void)tracked_timed(INLINE, UNUSED_LANE, 0, 60 * NOW);
    (void)tracked_timed(LARGE, UNUSED_LANE, 0, 60 * NOW);
    if (!ring_peek(&Q, RING_FREE, &pos, &next, &gen12)) fail("no free slot");
    while (!ring_put(&Q, r, (next + SLOTS / 2) % SLOTS, 0xabc)) continue;
    put_timed(INLINE, UNUSED_LANE, 0, 0);
}

/* No free slot: the put has to forget an outcome, whose result lies in a block. */
static void put_evicts(void) {
    outcomes(2, LARGE);
    outcomes(SLOTS - 3, 10); /* one is kept for workers */
    put_inline();
}

/* No free block: as above. */
static void put_evicts_blocks(void) {
    outcomes(LARGE_BLOCKS - LARGE_BLOCKS / 16, LARGE); /* the others are left to results */
    put_large();
}

/* The oldest outcomes are waited for: they stay, younger ones go. */
static void put_spares_awaited(void) {
    for (int i = 0; i < 3; i++) {
        tracked *t = tracked_put(INLINE, i ? LARGE : 20, 1);
        lease_by(OTHER, t);
        start_by(t);
        complete_by(OTHER, t);
    }
    outcomes(SLOTS - 4, 10);
    put_inline();
}

/* No block, and nothing to forget: it gives its slot back. */
static void put_without_block(void) {
    (void)fill_up(LARGE);
    put_large();
}

static void put_without_slot(void) {
    (void)fill_up(INLINE);
    put_inline();
}

static void complete_some(void) { drain(); }

/* ---- putting with a sender ---- */

static void put_by_new_sender(void) {
    put_block();
    sender_unknown();
}

static void put_by_known_sender(void) {
    put_timed(INLINE, LANE, 20 * NOW, 0);
    sender_known();
}

static void put_displacing_sender(void) {
    put_inline();
    sender_displaces();
}

static void resend_uncommitted(void) {
    put_inline();
    sender_left_writing();
}

static void resend_committed(void) {
    put_inline();
    sender_left_ready();
}

static void resend_ended(void) {
    put_inline();
    sender_left_ended();
}

/* The one that died is repaired beside its successor. */
static void repairs(void) {
    repair(REPAIRER, OTHER);
    traffic(150);
}

/* ---- leases ---- */

static void ready(void) { (void)tracked_put(LARGE, LARGE, 1); }
static void ready_inline(void) { (void)tracked_put(INLINE, 30, 1); }
static void delayed(void) { (void)tracked_timed(LARGE, LANE, 20 * NOW, 0); }

/* Stale hints before it, and another message in a lower lane. */
static void ready_in_lanes(void) {
    for (uint32_t i = 0; i < 3; i++) (void)ring_put(&Q, RING_LANE + 9, i, 0xabc);
    tracked *t = tracked_plan(LARGE, 20);
    t->lane = UNUSED_LANE;
    t->watched = 1;
    tracked_commit(t, PRODUCER);
    (void)tracked_timed(INLINE, 1, 0, 0);
    atomic_store(&head_of(&Q)->turns, 0);
}

/* As above, and it is the turn of the lower lane. */
static void ready_by_credit(void) {
    (void)tracked_timed(MIDDLE, 1, 0, 0);
    (void)tracked_timed(INLINE, UNUSED_LANE, 0, 0);
    atomic_store(&head_of(&Q)->turns, 8 * 1 + 7);
}

static void given_back(void) {
    tsq_call call;
    ready();
    lease_by(OTHER, &track[0]);
    if (tsq_release(&Q, OTHER, &track[0].lease, NOW, &call)) fail("release");
    (void)tracked_timed(INLINE, 9, 0, 0);
}

static void leased(void) {
    ready();
    lease_by(VICTIM, &track[0]);
    fill(result, track[0].result_len, track[0].result_seed);
}

static void leased_expiring(void) {
    (void)tracked_timed(MIDDLE, LANE, 0, 60 * NOW);
    lease_by(VICTIM, &track[0]);
}

static void leased_before_due(void) {
    tracked *t = tracked_timed(MIDDLE, LANE, 20 * NOW, 0);
    if (tsq_take(&Q, VICTIM, t->lease.slot, tsq_gen_of(t->lease.word), &t->lease)) fail("take");
}

static void running(void) {
    leased();
    start_by(&track[0]);
}

static void running_one_block(void) {
    (void)tracked_put(MIDDLE, 50, 1);
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
    outcomes(LARGE_BLOCKS - 1, LARGE);
}

/* As many dead letters as are kept, so that the oldest has to go. */
static void running_dead_full(void) {
    for (unsigned i = 0; i < SLOTS / 8; i++) {
        char reason[] = "why";
        uint64_t wake[TSQ_WAKE_WORDS] = {0};
        tracked *t = tracked_put(i ? INLINE : LARGE, 30, 0);
        lease_by(OTHER, t);
        start_by(t);
        if (tsq_dead_letter(&Q, OTHER, &t->lease, reason, sizeof reason, NOW, wake)) fail("dead letter");
    }
    tracked_count = 0;
    running();
}

/* Two stand in line; the end of the victim's lease makes the room at which one is called. */
static void running_at_the_mark(void) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    running();
    (void)fill_up(INLINE);
    tsq_queue_up(&Q, FIRST_IN_LINE);
    tsq_queue_up(&Q, NEXT_IN_LINE);
    if (tsq_claim(&Q, OTHER, &lease) || tsq_start(&Q, &lease)) fail("claim");
    if (tsq_finish(&Q, OTHER, &lease, TSQ_FORGET, NOW, wake)) fail("finish");
    if (!tsq_is_waiting(&Q, FIRST_IN_LINE)) fail("it is called too early for this test");
}

static void in_line_before_others(void) {
    tsq_queue_up(&Q, VICTIM);
    tsq_queue_up(&Q, FIRST_IN_LINE);
    for (int i = 0; i < 4; i++) (void)tracked_put(INLINE, 10, 1);
}

/* ---- afterwards ---- */

static void ended(void) {
    (void)tracked_put(LARGE, LARGE, 0);
    lease_by(OTHER, &track[0]);
    start_by(&track[0]);
    complete_by(OTHER, &track[0]);
}

static void dead(void) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    (void)tracked_put(LARGE, 40, 0);
    lease_by(OTHER, &track[0]);
    start_by(&track[0]);
    if (tsq_dead_letter(&Q, OTHER, &track[0].lease, "why", 3, NOW, wake)) fail("dead letter");
}

static void ended_of_all_kinds(void) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    atomic_store(tsq_result_ttl(&Q), NOW);
    outcomes(2, LARGE);
    outcomes(2, 40);
    dead();
    tracked *t = tracked_put(INLINE, 10, 0);
    lease_by(OTHER, t);
    start_by(t);
    if (tsq_finish(&Q, OTHER, &t->lease, TSQ_OUTCOME_NO_RESULT, NOW, wake)) fail("finish");
    tracked_count = 0;
    (void)tracked_put(LARGE, LARGE, 0); /* READY, but no hint: its producer is stopped */
    if (tsq_claim(&Q, OTHER, &lease)) fail("claim");
    atomic_store(&slot_at(&Q, lease.slot)->word, tsq_word(TSQ_READY, PRODUCER, 0, tsq_gen_of(lease.word)));
    now_ns = 10 * NOW; /* what ends from now on is not old */
}

static void due_of_all_kinds(void) {
    (void)tracked_timed(LARGE, UNUSED_LANE, 2 * NOW, 0);   /* due */
    (void)tracked_timed(INLINE, LANE, 20 * NOW, 0);        /* not yet */
    (void)tracked_timed(LARGE, LANE, 0, 2 * NOW);          /* over while it was READY */
    (void)tracked_timed(MIDDLE, LANE, 20 * NOW, 2 * NOW);  /* over while it was DELAYED */
    (void)tracked_timed(INLINE, 9, 0, 60 * NOW);           /* not over */
    (void)tracked_timed(INLINE, LANE, 2 * NOW, 60 * NOW);  /* due, and not over */
    now_ns = 3 * NOW;
}

/* Another custodian looks, because a message of others is due. */
static void looks(void) {
    traffic(30);
    tracked *t = tracked_timed(INLINE, LANE, now_ns + 1, 0);
    t->expected = TO_BE_DELIVERED;
    now_ns += 2;
    custodian();
    traffic(30);
}

/* And others put a message that is due before all that are there. */
static void delays(void) {
    tracked *t = tracked_timed(INLINE, LANE, now_ns + 5 * NOW, 0);
    t->expected = TO_BE_DELIVERED;
    looks();
}

/* ---- what takes too long ---- */

static void mark(uint32_t owner) {
    if (tsq_time_out(&Q, owner, track[0].id, (uint32_t)strlen(track[0].id))) fail("it cannot be marked");
}

/* Started for the last time, and another one of the same worker. */
static void slow(void) {
    (void)running_of(LARGE, 1);
    (void)running_of(MIDDLE, 0);
}

static void worker_completes(void) {
    fill(result, track[0].result_len, track[0].result_seed);
    complete_by(REPAIRER, &track[0]);
}

/* It completes what it has, and starts others until one lies in the same slot. */
static void worker_goes_on(void) {
    uint32_t slot = track[0].lease.slot;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    worker_completes();
    complete_by(REPAIRER, &track[1]);
    tracked_count = 0;
    forget_outcomes();
    for (int i = 0; i < SLOTS; i++) {
        tracked *t = running_of(INLINE, 0);
        if (t->lease.slot == slot) return;
        tracked_count = 0;
        if (tsq_finish(&Q, REPAIRER, &t->lease, TSQ_FORGET, NOW, wake)) fail("finish");
    }
    fail("slot %u does not come round", slot);
}

static void running_overdue(void) {
    running();
    mark(VICTIM);
}

/* The start that begins now has the word of one that was marked and given back. */
static void leased_again(void) {
    tsq_call call;
    running_overdue();
    if (tsq_release(&Q, VICTIM, &track[0].lease, NOW, &call)) fail("release");
    lease_by(VICTIM, &track[0]);
}

/* What it had started does not count. */
static void explained_left(void) {
    left_behind();
    tsq_explain(&Q, REPAIRER);
}

const scenario scenarios[] = {
    {"put", PUTTING, put_inline, op_put, TO_BE_DELIVERED, NULL},
    {"put-block", PUTTING, put_block, op_put, TO_BE_DELIVERED, NULL},
    {"put-large", PUTTING, put_large, op_put, TO_BE_DELIVERED, NULL},
    {"put-new-lane", PUTTING, put_in_new_lane, op_put, TO_BE_DELIVERED, NULL},
    {"put-full-lane", PUTTING, put_full_lane, op_put, ANY_END, NULL},
    {"put-delayed", PUTTING, put_delayed, op_put, TO_BE_DELIVERED, looks},
    {"put-delayed-earlier", PUTTING, put_delayed_earlier, op_put, ANY_END, looks},
    {"put-expiring", PUTTING, put_expiring, op_put, TO_BE_DELIVERED, looks},
    {"put-delayed-expiring", PUTTING, put_both, op_put, EXPIRED, looks},
    {"put-evicting", PUTTING, put_evicts, op_put, TO_BE_DELIVERED, NULL},
    {"put-evicting-blocks", PUTTING, put_evicts_blocks, op_put, TO_BE_DELIVERED, NULL},
    {"put-sparing-awaited", PUTTING, put_spares_awaited, op_put, ANY_END, NULL},
    {"put-without-block", REFUSED, put_without_block, op_put, ANY_END, complete_some},
    {"put-without-slot", REFUSED, put_without_slot, op_put, ANY_END, complete_some},
    {"reserve-commit", PUTTING, put_delayed, op_reserve_commit, TO_BE_DELIVERED, looks},
    {"reserve-give-up", GIVING_UP, put_large, op_give_up, NOT_THERE, NULL},
    {"put-from", PUTTING, put_by_new_sender, op_put_from, TO_BE_DELIVERED, NULL},
    {"put-from-known", PUTTING, put_by_known_sender, op_put_from, TO_BE_DELIVERED, looks},
    {"put-from-displacing", PUTTING, put_displacing_sender, op_put_from, TO_BE_DELIVERED, NULL},
    {"reserve-commit-from", PUTTING, put_by_new_sender, op_reserve_commit_from, TO_BE_DELIVERED, NULL},
    {"resend-uncommitted", RESENDING, resend_uncommitted, op_put_from, TO_BE_DELIVERED, repairs},
    {"resend-committed", RESENDING, resend_committed, op_put_from, TO_BE_DELIVERED, repairs},
    {"resend-ended", RESENDING, resend_ended, op_put_from, WITH_RESULT, repairs},
    {"line-up", LINING, put_without_slot, op_line_up, ANY_END, complete_some},
    {"step-out", CALLING, in_line_before_others, op_step_out, ANY_END, NULL},
    {"claim", CLAIMING, ready_inline, op_claim, ANY_END, NULL},
    {"claim-large", CLAIMING, ready, op_claim, ANY_END, NULL},
    {"claim-lanes", CLAIMING, ready_in_lanes, op_claim, ANY_END, NULL},
    {"claim-credit", CLAIMING, ready_by_credit, op_claim, ANY_END, NULL},
    {"claim-again", CLAIMING, given_back, op_claim, ANY_END, NULL},
    {"sleep-claim", CLAIMING, ready_inline, op_sleep_and_claim, ANY_END, NULL},
    {"start", STARTING, leased, op_start, TO_BE_DELIVERED, NULL},
    {"ack", ENDING, running, op_ack, LOST, NULL},
    {"complete", COMPLETING, running_one_block, op_complete, WITH_RESULT, NULL},
    {"complete-large", COMPLETING, running, op_complete, WITH_RESULT, NULL},
    {"complete-acked", COMPLETING, acked, op_complete, WITH_RESULT, NULL},
    {"complete-evicting", COMPLETING, running_no_block, op_complete, WITH_RESULT, NULL},
    {"complete-calling", CALLING, running_at_the_mark, op_complete, WITH_RESULT, complete_some},
    {"start-ack-complete", ENDING, leased, op_whole, WITH_RESULT, NULL},
    {"finish-no-result", ENDING, running, op_finish_no_result, WITHOUT_RESULT, NULL},
    {"finish-forget", ENDING, running, op_finish_forget, NOT_THERE, NULL},
    {"finish-forget-acked", ENDING, acked, op_finish_forget, NOT_THERE, NULL},
    {"finish-calling", CALLING, running_at_the_mark, op_finish_forget, NOT_THERE, complete_some},
    {"finish-expired", ENDING, leased_expiring, op_finish_expired, EXPIRED, NULL},
    {"finish-discarded", ENDING, leased, op_finish_discarded, DISCARDED, NULL},
    {"discard", ENDING, ready, op_discard, DISCARDED, NULL},
    {"discard-delayed", ENDING, delayed, op_discard, DISCARDED, NULL},
    {"release-leased", ENDING, leased_expiring, op_release, TO_BE_DELIVERED, looks},
    {"release-delayed", ENDING, leased_before_due, op_release, TO_BE_DELIVERED, looks},
    {"release", ENDING, running, op_release, TO_BE_DELIVERED, NULL},
    {"dead-letter", ENDING, running, op_dead_letter, DEAD_LETTER, NULL},
    {"dead-letter-leased", ENDING, leased, op_dead_letter, DEAD_LETTER, NULL},
    {"dead-letter-trimming", ENDING, running_dead_full, op_dead_letter, DEAD_LETTER, NULL},
    {"read", READING, ended, op_read, ANY_END, NULL},
    {"look", LOOKING, ended, op_look, ANY_END, NULL},
    {"forget", FORGETTING, ended, op_forget, NOT_THERE, NULL},
    {"forget-dead", FORGETTING, dead, op_forget, NOT_THERE, NULL},
    {"audit", EXPIRING, ended_of_all_kinds, op_audit, ANY_END, NULL},
    {"run-due", DUE, due_of_all_kinds, op_run_due, ANY_END, delays},
    {"time-out", TIMING, slow, op_time_out, TIMED_OUT, NULL},
    {"time-out-ended", TIMING, slow, op_time_out, TIMED_OUT, worker_completes},
    {"time-out-used-again", TIMING, slow, op_time_out, TIMED_OUT, worker_goes_on},
    {"start-overdue", STARTING, leased_again, op_start, TO_BE_DELIVERED, NULL},
    {"ack-overdue", ENDING, running_overdue, op_ack, TIMED_OUT, NULL},
    {"complete-overdue", COMPLETING, running_overdue, op_complete, WITH_RESULT, NULL},
    {"recover", RECOVERING, left_behind, op_recover, ANY_END, NULL},
    {"recover-sender", RECOVERING, resend_uncommitted, op_recover, ANY_END, resend},
    {"recover-explained", RECOVERING, explained_left, op_recover, ANY_END, NULL},
};
const size_t scenario_count = sizeof scenarios / sizeof *scenarios;
