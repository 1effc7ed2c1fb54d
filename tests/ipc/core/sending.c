/* One that numbers its messages: what a process that put one of them can leave behind, and the next one,
 * to which it is sent again. */
#include <string.h>

#include "scenarios.h"

enum { NUMBER = 5 };

static tracked *sent(void) { return tracked_by_id(message.id, message.id_len); }

static sender *entry(void) {
    for (uint32_t i = 0; i < sender_count(&Q.geo); i++)
        if (!memcmp(&senders(&Q)->of[i], from.id, TSQ_SENDER_ID)) return &senders(&Q)->of[i];
    fail("the sender has no entry");
}

/* Another message of `from`, of no interest, with this number. */
static void send(uint64_t number) {
    tsq_lease lease;
    tsq_call call;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_message m = {.id = "sent", .id_len = 4, .payload = "", .privileged = 1, .now_ns = NOW};
    from.number = number;
    if (tsq_put_from(&Q, PRODUCER, &m, &from, &lease, &call) || tsq_claim(&Q, OTHER, &lease) ||
        tsq_start(&Q, &lease) || tsq_finish(&Q, OTHER, &lease, TSQ_FORGET, NOW, wake))
        fail("the preparation cannot send");
    tsq_sleep(&Q, SLEEPER, 1);
}

static void senders_before(uint32_t n, uint64_t number) {
    for (uint32_t i = 0; i < n; i++) {
        memset(from.id, (int)i + 1, TSQ_SENDER_ID);
        send(number);
    }
}

void sender_unknown(void) {
    senders_before(3, 1);
    memset(from.id, 0xf0, TSQ_SENDER_ID);
    from.number = 1;
}

void sender_known(void) {
    senders_before(3, 1);
    memset(from.id, 0xf0, TSQ_SENDER_ID);
    send(NUMBER - 2); /* one between has been refused for good */
    from.number = NUMBER;
}

void sender_displaces(void) {
    senders_before(sender_count(&Q.geo), NUMBER + 1);
    memset(from.id, 0xf0, TSQ_SENDER_ID);
    from.number = NUMBER;
}

/* The writer's store of the number is undone. */
static void number_missing(const tracked *t) {
    sender_book *book = senders(&Q);
    atomic_store(&entry()->last, NUMBER - 2);
    atomic_store(&book->pending, tsq_gen_of(t->lease.word) << 18 | t->lease.slot);
}

void sender_left_ready(void) {
    tracked *t = sent();
    tsq_call call;
    sender_known();
    if (tsq_put_from(&Q, REPAIRER, &message, &from, &t->lease, &call)) fail("the preparation cannot send");
    number_missing(t);
}

void sender_left_writing(void) {
    uint64_t pos;
    uint32_t i, gen12;
    sender_left_ready();
    tracked *t = sent();
    if (!ring_peek(&Q, RING_LANE + LANE, &pos, &i, &gen12) || i != t->lease.slot) fail("it is not hinted");
    (void)ring_advance(&Q, RING_LANE + LANE, pos);
    atomic_store(&slot_at(&Q, i)->word, tsq_word(TSQ_WRITING, REPAIRER, 0, tsq_gen_of(t->lease.word)));
}

void sender_left_ended(void) {
    sender_left_ready();
    tracked *t = sent();
    tsq_watch(&Q, WATCHER, t->lease.slot);
    t->watched = 1;
    lease_by(OTHER, t);
    start_by(t);
    complete_by(OTHER, t);
}

void resend(void) {
    tracked *t = sent();
    tsq_call call;
    int is_new = tsq_last_from(&Q, from.id) < from.number;
    if (is_new && t->expected != NOT_THERE) fail("it is there, and is accepted again");
    if (!is_new && t->expected == NOT_THERE) fail("it is not there, and is taken for accepted");
    if (!is_new) return;
    if (tsq_put_from(&Q, OTHER, &message, &from, &t->lease, &call)) fail("it cannot be put");
    t->expected = TO_BE_DELIVERED;
    t->watched = 1;
    tsq_watch(&Q, WATCHER, t->lease.slot);
}

void remembered(void) {
    if (tsq_last_from(&Q, from.id) != from.number) fail("its number is not remembered");
}
