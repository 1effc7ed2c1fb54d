/* The whole protocol between threads of one process, for the sanitizers: ThreadSanitizer sees the orders
 * of all shared accesses, AddressSanitizer and UBSan the bounds and the arithmetic.
 *
 * threads MESSAGES
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

enum { PRODUCERS = 2, CONSUMERS = 2, LARGEST = 1024, CUSTODIAN = 1, DEAD = 2, LOOKER = 3, FIRST = 10 };

static tsq Q;
static uint32_t messages;
static tsq_au64 put_sum, done_sum, done, read_back, clock_ns = 1;
static _Atomic int failed;

static uint64_t payload_len(uint32_t n) {
    static const uint64_t of[] = {8, 60, 240, 700, 1020};
    return of[n % 5];
}

static void fill(char *out, uint64_t len, uint32_t n) {
    memcpy(out, &n, 4);
    memset(out + 4, (int)(n & 0x7f), len - 4);
}

static int filled(const char *data, uint64_t len, uint32_t n) {
    char expected[LARGEST];
    fill(expected, len, n);
    return memcmp(expected, data, len) == 0;
}

static void wrong(const char *what, uint32_t n) {
    (void)fprintf(stderr, "%s: message %u\n", what, n);
    atomic_store(&failed, 1);
}

/* A client: watches, waits, reads. */
static void await_outcome(uint32_t me, const tsq_lease *m, uint32_t n) {
    char data[LARGEST];
    tsq_outcome o;
    int rc;
    uint64_t wakes[TSQ_WAKE_WORDS] = {0}, gen = tsq_gen_of(m->word);
    tsq_watch(&Q, me, m->slot);
    while ((rc = tsq_get_outcome(&Q, m->slot, gen, &o, data, sizeof data)) == TSQ_PENDING) (void)sched_yield();
    tsq_unwatch(&Q, me, m->slot);
    tsq_call_next(&Q, wakes);
    if (rc || o.kind != TSQ_OUTCOME_RESULT) return;
    if (o.len != payload_len(n) || o.format != (n & 0xff) || !filled(data, o.len, n)) wrong("wrong result", n);
    atomic_fetch_add(&read_back, 1);
}

/* One of the producers numbers its messages. */
static int put(uint32_t me, const tsq_message *m, tsq_lease *out) {
    static tsq_sender from = {.id = "numbers"};
    tsq_call call;
    if (me != FIRST) return tsq_put(&Q, me, m, out, &call);
    if (tsq_last_from(&Q, from.id) != from.number) wrong("another number is remembered", (uint32_t)from.number);
    from.number++;
    int rc = tsq_put_from(&Q, me, m, &from, out, &call);
    if (rc) from.number--;
    return rc;
}

static int put_in_line(uint32_t me, const tsq_message *m, tsq_lease *out) {
    uint64_t wakes[TSQ_WAKE_WORDS] = {0};
    int rc = put(me, m, out);
    while (rc == TSQ_FULL) {
        tsq_queue_up(&Q, me);
        while ((rc = put(me, m, out)) == TSQ_FULL && tsq_is_waiting(&Q, me)) (void)sched_yield();
    }
    tsq_step_out(&Q, me);
    tsq_call_next(&Q, wakes);
    return rc;
}

static void ended(uint32_t n) {
    atomic_fetch_add(&done_sum, n);
    atomic_fetch_add(&done, 1);
}

/* 1: it was still there, and is ended. */
static int discard(uint32_t me, const tsq_lease *m, uint32_t n) {
    tsq_lease lease;
    uint64_t wakes[TSQ_WAKE_WORDS] = {0}, now = atomic_load(&clock_ns);
    if (tsq_take(&Q, me, m->slot, tsq_gen_of(m->word), &lease)) return 0;
    if (tsq_finish(&Q, me, &lease, TSQ_OUTCOME_DISCARDED, now, wakes)) wrong("discarding is refused", n);
    ended(n);
    return 1;
}

static void *produce(void *arg) {
    uint32_t who = *(uint32_t *)arg, me = FIRST + who;
    for (uint32_t n = who; n < messages; n += PRODUCERS) {
        char id[16], payload[LARGEST];
        tsq_lease out;
        uint64_t now = atomic_load(&clock_ns);
        (void)snprintf(id, sizeof id, "%u", n);
        fill(payload, payload_len(n), n);
        tsq_message m = {.id = id, .id_len = (uint32_t)strlen(id), .payload = payload, .len = payload_len(n),
                         .size = payload_len(n), .lane = n % TSQ_LANES, .format = n & 0xff, .now_ns = now};
        if (n % 8 == 1) m.due_ns = now + n % 5;
        if (n % 8 == 2) m.expires_ns = now + UINT64_MAX / 2; /* looked at, and never over */
        if (n % 16 == 3 && !tsq_reserve(&Q, me, &m, &out)) tsq_give_up(&Q, me, &out);
        if (put_in_line(me, &m, &out)) wrong("put fails", n);
        atomic_fetch_add(&put_sum, n);
        if (n % 32 == 7 && discard(me, &out, n)) continue;
        if (n % 4 == 0) await_outcome(me, &out, n);
    }
    return NULL;
}

/* Every tenth of those that could be. */
static int given_back(void) {
    static tsq_au32 turn;
    return atomic_fetch_add_explicit(&turn, 1, memory_order_relaxed) % 10 == 9;
}

static void *consume(void *arg) {
    uint32_t me = FIRST + PRODUCERS + *(uint32_t *)arg;
    tsq_call call;
    while (atomic_load(&done) < messages) {
        tsq_lease lease;
        char id[TSQ_MAX_ID], payload[LARGEST];
        uint32_t id_len, n;
        uint64_t len, wakes[TSQ_WAKE_WORDS] = {0};
        tsq_sleep(&Q, me, 1);
        int none = tsq_claim(&Q, me, &lease);
        tsq_wake_up(&Q, me);
        if (none) {
            (void)sched_yield();
            continue;
        }
        tsq_set_empty(&Q, me, 0);
        if (tsq_read_request(&Q, &lease, id, &id_len, payload, sizeof payload, &len)) wrong("unreadable", lease.slot);
        memcpy(&n, payload, 4);
        if (len != payload_len(n) || !filled(payload, len, n)) wrong("corrupt", n);
        if (tsq_start(&Q, &lease)) wrong("start is refused", n);
        if (given_back() && !tsq_release(&Q, me, &lease, 1, &call)) continue;
        int rc = 0;
        if (n % 6 == 5) rc = tsq_ack(&Q, &lease);
        if (!rc && n % 5 == 3) rc = tsq_finish(&Q, me, &lease, n % 2 ? TSQ_OUTCOME_NO_RESULT : TSQ_FORGET, 1, wakes);
        else if (!rc && n % 97 == 0) rc = tsq_dead_letter(&Q, me, &lease, "why", 3, 1, wakes);
        else
            while (!rc && (rc = tsq_complete(&Q, me, &lease, payload, len, n & 0xff, 1, wakes)) == TSQ_FULL) {
                rc = 0;
                (void)sched_yield();
            }
        if (rc) wrong("its end is refused", n);
        ended(n);
    }
    return NULL;
}

/* Looks for ids, looks at messages, and reads outcomes while they are being forgotten. */
static void *look(void *arg) {
    (void)arg;
    for (uint32_t n = 0; atomic_load(&done) < messages; n = (uint32_t)atomic_load(&done) - n % 8) {
        char id[16], data[LARGEST];
        uint32_t slot, slots[256];
        uint64_t gen;
        tsq_outcome o;
        (void)snprintf(id, sizeof id, "%u", n);
        if (!tsq_find(&Q, id, (uint32_t)strlen(id), &slot, &gen) &&
            !tsq_get_outcome(&Q, slot, gen, &o, data, sizeof data) && o.kind == TSQ_OUTCOME_RESULT &&
            (o.len != payload_len(n) || !filled(data, o.len, n)))
            wrong("a reader got another result", n);
        (void)tsq_completions(&Q, FIRST, slots, 256);
        tsq_view view;
        if (tsq_look(&Q, n % 64, &view)) continue;
        memcpy(id, view.id, view.id_len);
        id[view.id_len] = 0;
        uint32_t seen = (uint32_t)strtoul(id, NULL, 10);
        if (view.size != payload_len(seen) || view.lane != seen % TSQ_LANES || view.format != (seen & 0xff))
            wrong("a look mixes two messages", seen);
        if (tsq_state_of(view.word) == TSQ_DEAD) (void)tsq_forget(&Q, LOOKER, n % 64, tsq_gen_of(view.word), 0);
    }
    return NULL;
}

/* Moves what is due, beside the one below. */
static void *move(void *arg) {
    (void)arg;
    while (atomic_load(&done) < messages) {
        uint64_t next, wakes[TSQ_WAKE_WORDS] = {0}, now = atomic_fetch_add(&clock_ns, 1);
        uint32_t moved, expired;
        if (atomic_load(tsq_next_due(&Q)) <= now) tsq_run_due(&Q, LOOKER, now, &next, &moved, &expired, wakes);
        (void)sched_yield();
    }
    return NULL;
}

static void *keep(void *arg) {
    (void)arg;
    while (atomic_load(&done) < messages) {
        tsq_repair *list;
        uint32_t n, expired, hinted;
        uint64_t wakes[TSQ_WAKE_WORDS] = {0}, next;
        tsq_counts counts;
        if (tsq_register(&Q, DEAD, 1, 0, 0, 0)) wrong("register is refused", DEAD);
        tsq_sleep(&Q, DEAD, 1);
        tsq_queue_up(&Q, DEAD);
        if (tsq_recover(&Q, DEAD, CUSTODIAN, 0, 1, &list, &n, wakes)) wrong("recover fails", DEAD);
        free(list);
        tsq_unregister(&Q, DEAD);
        tsq_run_due(&Q, CUSTODIAN, atomic_load(&clock_ns), &next, &n, &expired, wakes);
        if (tsq_audit(&Q, CUSTODIAN, 2, 0, &expired, &hinted)) wrong("audit fails", CUSTODIAN);
        tsq_ignore_unanswering(&Q, CUSTODIAN);
        (void)tsq_empty_others(&Q, CUSTODIAN);
        tsq_count(&Q, &counts);
        (void)sched_yield();
    }
    return NULL;
}

int main(int argc, char **argv) {
    static const uint8_t boot[16];
    messages = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 100000;
    Q.geo = (tsq_geometry){.slots = 64, .inline_size = 256, .participants = 64, .classes = 3,
                           .block = {{64, 64}, {256, 64}, {1024, 64}}};
    if (tsq_layout_of(&Q.geo, &Q.at)) return 2;
    Q.base = aligned_alloc(4096, Q.at.total);
    if (!Q.base) return 2;
    memset(Q.base, 0, Q.at.total);
    tsq_init(Q.base, &Q.geo, &Q.at, boot);
    (void)tsq_register(&Q, CUSTODIAN, 1, 0, 0, 0);
    (void)tsq_register(&Q, LOOKER, 1, 0, 0, 0);
    atomic_store(tsq_result_ttl(&Q), 0);
    pthread_t threads[PRODUCERS + CONSUMERS + 3];
    uint32_t who[PRODUCERS + CONSUMERS], n = 0;
    for (uint32_t i = 0; i < PRODUCERS + CONSUMERS; i++) {
        who[i] = i < PRODUCERS ? i : i - PRODUCERS;
        (void)tsq_register(&Q, FIRST + i, 1, 0, 0, 0);
        (void)pthread_create(&threads[n++], NULL, i < PRODUCERS ? produce : consume, &who[i]);
    }
    (void)pthread_create(&threads[n++], NULL, look, NULL);
    (void)pthread_create(&threads[n++], NULL, move, NULL);
    (void)pthread_create(&threads[n++], NULL, keep, NULL);
    for (uint32_t i = 0; i < n; i++) (void)pthread_join(threads[i], NULL);
    (void)printf("messages %u, ended %llu, sums %s, results read back %llu\n", messages,
                 (unsigned long long)atomic_load(&done), put_sum == done_sum ? "equal" : "DIFFERENT",
                 (unsigned long long)atomic_load(&read_back));
    free(Q.base);
    return failed || put_sum != done_sum || done != messages;
}
