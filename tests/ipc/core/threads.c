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

enum { PRODUCERS = 2, CONSUMERS = 2, LARGEST = 8192, CUSTODIAN = 1, DEAD = 2, FIRST = 10 };

static tsq Q;
static uint32_t messages;
static tsq_au64 put_sum, done_sum, done, read_back;
static _Atomic int failed;

static uint64_t payload_len(uint32_t n) {
    static const uint64_t of[] = {8, 60, 240, 700, 1500};
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

static void *produce(void *arg) {
    uint32_t me = *(uint32_t *)arg, wake;
    for (uint32_t n = me; n < messages; n += PRODUCERS) {
        char id[16], payload[LARGEST], data[LARGEST];
        tsq_lease out;
        tsq_outcome o;
        (void)snprintf(id, sizeof id, "%u", n);
        fill(payload, payload_len(n), n);
        tsq_message m = {.id = id, .id_len = (uint32_t)strlen(id), .payload = payload, .len = payload_len(n), .now_ns = 1};
        int rc;
        while ((rc = tsq_put(&Q, FIRST + me, &m, &out, &wake)) == TSQ_FULL) (void)sched_yield();
        if (rc) wrong("put fails", n);
        atomic_fetch_add(&put_sum, n);
        if (n % 4) continue;
        /* A client: watches, waits, reads. */
        tsq_watch(&Q, FIRST + me, out.slot);
        while ((rc = tsq_get_outcome(&Q, out.slot, tsq_gen_of(out.word), &o, data, sizeof data)) == TSQ_PENDING)
            (void)sched_yield();
        if (!rc && o.kind == TSQ_OUTCOME_RESULT) {
            if (o.len != payload_len(n) || !filled(data, o.len, n)) wrong("wrong result", n);
            atomic_fetch_add(&read_back, 1);
        }
    }
    return NULL;
}

static void *consume(void *arg) {
    uint32_t me = FIRST + PRODUCERS + *(uint32_t *)arg, wake;
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
        if (n % 10 == 9 && tsq_attempt_of(lease.word) == 1 && len % 2 && !tsq_release(&Q, me, &lease, &wake)) continue;
        int rc = 0;
        if (n % 6 == 5) rc = tsq_ack(&Q, &lease);
        if (!rc && n % 5 == 3) rc = tsq_finish(&Q, me, &lease, n % 2, 1, wakes);
        else if (!rc && n % 97 == 0) rc = tsq_dead_letter(&Q, me, &lease, "why", 3, 1, wakes);
        else
            while (!rc && (rc = tsq_complete(&Q, me, &lease, payload, len, 1, wakes)) == TSQ_FULL) {
                rc = 0;
                (void)sched_yield();
            }
        if (rc) wrong("its end is refused", n);
        atomic_fetch_add(&done_sum, n);
        atomic_fetch_add(&done, 1);
    }
    return NULL;
}

/* Looks for ids and reads outcomes while they are being forgotten. */
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
    }
    return NULL;
}

static void *keep(void *arg) {
    (void)arg;
    while (atomic_load(&done) < messages) {
        tsq_repair *list;
        uint32_t n, expired, hinted;
        uint64_t wakes[TSQ_WAKE_WORDS] = {0};
        tsq_counts counts;
        if (tsq_register(&Q, DEAD, 1, 0, 0, 0)) wrong("register is refused", DEAD);
        tsq_sleep(&Q, DEAD, 1);
        if (tsq_recover(&Q, DEAD, CUSTODIAN, 0, 1, &list, &n, wakes)) wrong("recover fails", DEAD);
        free(list);
        tsq_unregister(&Q, DEAD);
        if (tsq_audit(&Q, CUSTODIAN, 2, 0, 0, &expired, &hinted)) wrong("audit fails", CUSTODIAN);
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
    pthread_t threads[PRODUCERS + CONSUMERS + 2];
    uint32_t who[PRODUCERS + CONSUMERS], n = 0;
    for (uint32_t i = 0; i < PRODUCERS + CONSUMERS; i++) {
        who[i] = i < PRODUCERS ? i : i - PRODUCERS;
        (void)tsq_register(&Q, FIRST + i, 1, 0, 0, 0);
        (void)pthread_create(&threads[n++], NULL, i < PRODUCERS ? produce : consume, &who[i]);
    }
    (void)pthread_create(&threads[n++], NULL, look, NULL);
    (void)pthread_create(&threads[n++], NULL, keep, NULL);
    for (uint32_t i = 0; i < n; i++) (void)pthread_join(threads[i], NULL);
    (void)printf("messages %u, ended %llu, sums %s, results read back %llu\n", messages,
                 (unsigned long long)atomic_load(&done), put_sum == done_sum ? "equal" : "DIFFERENT",
                 (unsigned long long)atomic_load(&read_back));
    free(Q.base);
    return failed || put_sum != done_sum || done != messages;
}
