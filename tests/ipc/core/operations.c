/* What the victim does. It reports each call that came back. */
#include <string.h>

#include "scenarios.h"

char result[LARGEST], payload[LARGEST];
tsq_message message;
tsq_sender from;

static void came_back(int rc) {
    said->rc = rc;
    said->returned++;
}

static void done(int rc) {
    came_back(rc);
    said->finished = 1;
}

static tsq_lease *held(void) { return &track[0].lease; }

void op_put(void) { done(tsq_put(&Q, VICTIM, &message, &said->lease, &said->call)); }

void op_reserve_commit(void) {
    came_back(tsq_reserve(&Q, VICTIM, &message, &said->lease));
    if (said->rc) return;
    tsq_commit(&Q, VICTIM, &said->lease, &said->call);
    done(0);
}

/* Nothing to do if it was accepted before. */
void op_put_from(void) {
    int is_new = tsq_last_from(&Q, from.id) < from.number;
    done(is_new ? tsq_put_from(&Q, VICTIM, &message, &from, &said->lease, &said->call) : TSQ_OK);
}

void op_reserve_commit_from(void) {
    came_back(tsq_reserve(&Q, VICTIM, &message, &said->lease));
    if (said->rc) return;
    tsq_commit_from(&Q, VICTIM, &said->lease, &from, &said->call);
    done(0);
}

void op_give_up(void) {
    came_back(tsq_reserve(&Q, VICTIM, &message, &said->lease));
    if (!said->rc) tsq_give_up(&Q, VICTIM, &said->lease);
    done(said->rc);
}

/* Up to the point where it would block on its doorbell. */
void op_line_up(void) {
    tsq_queue_up(&Q, VICTIM);
    came_back(tsq_put(&Q, VICTIM, &message, &said->lease, &said->call));
    if (!said->rc) tsq_step_out(&Q, VICTIM);
    said->finished = 1;
}

/* It leaves without having used its place: the next one may. */
void op_step_out(void) {
    tsq_step_out(&Q, VICTIM);
    tsq_call_next(&Q, said->wakes);
    done(0);
}

void op_claim(void) {
    came_back(tsq_claim(&Q, VICTIM, &said->lease));
    if (!said->rc)
        done(tsq_read_request(&Q, &said->lease, said->id, &said->id_len, said->data, sizeof said->data, &said->len));
}

void op_sleep_and_claim(void) {
    tsq_sleep(&Q, VICTIM, 1);
    op_claim();
    tsq_wake_up(&Q, VICTIM);
    tsq_set_empty(&Q, VICTIM, 0);
}

void op_start(void) { done(tsq_start(&Q, held())); }
void op_ack(void) { done(tsq_ack(&Q, held())); }

void op_complete(void) {
    const tracked *t = &track[0];
    done(tsq_complete(&Q, VICTIM, held(), result, t->result_len, t->result_seed & 0xff, NOW, said->wakes));
}

void op_whole(void) {
    came_back(tsq_start(&Q, held()));
    if (!said->rc) came_back(tsq_ack(&Q, held()));
    if (!said->rc) op_complete();
}

static void finish(uint32_t how) { done(tsq_finish(&Q, VICTIM, held(), how, NOW, said->wakes)); }
void op_finish_no_result(void) { finish(TSQ_OUTCOME_NO_RESULT); }
void op_finish_forget(void) { finish(TSQ_FORGET); }
void op_finish_expired(void) { finish(TSQ_OUTCOME_EXPIRED); }
void op_finish_discarded(void) { finish(TSQ_OUTCOME_DISCARDED); }

void op_discard(void) {
    came_back(tsq_take(&Q, VICTIM, held()->slot, tsq_gen_of(held()->word), &said->lease));
    if (!said->rc) done(tsq_finish(&Q, VICTIM, &said->lease, TSQ_OUTCOME_DISCARDED, NOW, said->wakes));
}

void op_release(void) { done(tsq_release(&Q, VICTIM, held(), NOW, &said->call)); }

void op_dead_letter(void) {
    done(tsq_dead_letter(&Q, VICTIM, held(), result, track[0].result_len, NOW, said->wakes));
}

void op_read(void) {
    uint32_t slot;
    uint64_t gen;
    if (tsq_find(&Q, track[0].id, (uint32_t)strlen(track[0].id), &slot, &gen)) return;
    done(tsq_get_outcome(&Q, slot, gen, &said->outcome, said->data, sizeof said->data));
}

void op_look(void) { done(tsq_look(&Q, held()->slot, &said->view)); }

void op_forget(void) { done(tsq_forget(&Q, VICTIM, held()->slot, tsq_gen_of(held()->word), 0)); }

void op_audit(void) {
    uint32_t expired, hinted;
    done(tsq_audit(&Q, VICTIM, 10 * NOW, NOW, &expired, &hinted));
}

void op_run_due(void) {
    uint64_t next;
    uint32_t moved, expired;
    tsq_run_due(&Q, VICTIM, 3 * NOW, &next, &moved, &expired, said->wakes);
    done(0);
}

void op_recover(void) {
    tsq_repair *list;
    uint32_t n;
    done(tsq_recover(&Q, REPAIRER, VICTIM, TSQ_DEATH(TSQ_CAUSE_SIGNAL, 9, 0, 1), NOW, &list, &n, said->wakes));
}

void op_time_out(void) {
    done(tsq_time_out(&Q, REPAIRER, track[0].id, (uint32_t)strlen(track[0].id)));
}

void conclude_for_victim(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        tsq_lease lease = {.slot = i, .word = atomic_load(&slot_at(&Q, i)->word)};
        char id[TSQ_MAX_ID], request[LARGEST], answer[LARGEST];
        uint32_t id_len;
        uint64_t len, wake[TSQ_WAKE_WORDS] = {0};
        unsigned state = tsq_state_of(lease.word);
        if (tsq_owner_of(lease.word) != VICTIM || state < TSQ_LEASED || state > TSQ_ACKED) continue;
        if (tsq_read_request(&Q, &lease, id, &id_len, request, sizeof request, &len))
            fail("it cannot read what it claimed");
        tracked *t = tracked_by_id(id, id_len);
        if (!t) continue; /* a stale hint led it to a message of the others: drain() would miss it */
        if (len != t->len || !filled(request, len, t->seed)) fail("it was given %s with a wrong payload", t->id);
        if (state == TSQ_LEASED && tsq_start(&Q, &lease)) fail("it cannot start %s", t->id);
        fill(answer, t->result_len, t->result_seed);
        if (tsq_complete(&Q, VICTIM, &lease, answer, t->result_len, t->result_seed & 0xff, now_ns, wake))
            fail("it cannot complete %s", t->id);
    }
}
