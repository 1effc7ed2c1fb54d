#include "load.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LARGEST = 2048, ID = 16 };

tsq Q;
entry *ledger;
shared_state *state;

uint64_t wall_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void broken(const char *what, uint32_t n) {
    (void)fprintf(stderr, "%s: message %u\n", what, n);
    atomic_store(&state->stage, BROKEN);
    _exit(1);
}

static int stage(void) { return atomic_load(&state->stage); }

/* ---- doorbells ---- */

void ring(uint32_t participant) {
    if (!participant) return;
    atomic_fetch_add(&state->bells[participant], 1);
    (void)syscall(SYS_futex, &state->bells[participant], FUTEX_WAKE, 1, NULL, NULL, 0);
}

void ring_all(const uint64_t wake[TSQ_WAKE_WORDS]) {
    for (uint32_t w = 0; w < TSQ_WAKE_WORDS; w++)
        for (uint64_t v = wake[w]; v; v &= v - 1) ring(w * 64 + (uint32_t)__builtin_ctzll(v));
}

static uint32_t bell(uint32_t me) { return atomic_load(&state->bells[me]); }

/* 1: it rang since `seen` was read. 0: the time is over. */
static int await_bell(uint32_t me, uint32_t seen, uint64_t ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    while (bell(me) == seen)
        if (syscall(SYS_futex, &state->bells[me], FUTEX_WAIT, seen, &t, NULL, 0) < 0 && errno == ETIMEDOUT) return 0;
    return 1;
}

/* ---- messages ---- */

entry *entry_of(uint32_t n) {
    uint32_t i = n - atomic_load(&state->base);
    if (i >= LEDGER) broken("nobody put it", n);
    return &ledger[i];
}

uint32_t number_of(const char *id, uint32_t len) {
    char text[TSQ_MAX_ID + 1] = {0};
    memcpy(text, id, len);
    return (uint32_t)strtoul(text, NULL, 10);
}

uint32_t deliveries_of(uint32_t n) { return n % 50 == 0 ? 1 : 200; }
int may_expire(uint32_t n) { return n % 16 == 3; }
static int is_delayed(uint32_t n) { return n % 8 == 1; }
static uint32_t lane_of(uint32_t n) { return n / 3 % TSQ_LANES; }

static uint64_t payload_len(uint32_t n) {
    static const uint64_t of[] = {8, 60, 240, 700, 1020};
    return of[n % 5];
}
static uint64_t result_len(uint32_t n) { return n % 11 == 0 ? 900 : 8 + n % 200; }

static void fill(char *out, uint64_t len, uint32_t seed) {
    uint32_t x = seed * 2654435761u;
    memcpy(out, &seed, 4);
    for (uint64_t i = 4; i < len; i++) {
        x = x * 1664525u + 1013904223u;
        out[i] = (char)(x >> 24);
    }
}

static int filled(const char *data, uint64_t len, uint32_t seed) {
    char expected[LARGEST];
    fill(expected, len, seed);
    return memcmp(data, expected, len) == 0;
}

typedef struct {
    char id[ID], payload[LARGEST];
    tsq_message m;
} letter;

static void write_letter(letter *l, uint32_t n) {
    uint64_t now = wall_ns();
    (void)snprintf(l->id, sizeof l->id, "%u", n);
    fill(l->payload, payload_len(n), n);
    l->m = (tsq_message){.id = l->id, .id_len = (uint32_t)strlen(l->id), .payload = l->payload,
                         .len = payload_len(n), .size = payload_len(n), .max_deliveries = deliveries_of(n),
                         .lane = lane_of(n), .format = n & 0xff, .now_ns = now};
    if (is_delayed(n)) l->m.due_ns = now + n / 8 % 20 * MILLISECOND + 1;
    if (may_expire(n)) l->m.expires_ns = now + n / 16 % 8 * MILLISECOND + 1;
    if (n % 16 == 9) l->m.expires_ns = now + UINT64_C(60000) * MILLISECOND; /* never over, and looked at each time */
}

/* ---- producers ---- */

typedef struct {
    tsq_lease message;
    uint64_t expires_ns;
    uint32_t n;
} sent;

/* What is watched and not read is kept from eviction, so it has to be read some day. */
static void read_outcome(uint32_t me, const sent *s) {
    tsq_outcome o;
    char data[LARGEST];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    uint64_t gen = tsq_gen_of(s->message.word);
    int rc;
    while ((rc = tsq_get_outcome(&Q, s->message.slot, gen, &o, data, sizeof data)) == TSQ_PENDING) {
        if (is_delayed(s->n)) tsq_unwatch(&Q, me, s->message.slot);
        if (is_delayed(s->n) || stage() != RUNNING) return;
        (void)usleep(50);
    }
    tsq_call_next(&Q, wake); /* what has been read can make room */
    ring_all(wake);
    if (rc) return;
    if (o.kind == TSQ_OUTCOME_EXPIRED) {
        if (!s->expires_ns || wall_ns() < s->expires_ns) broken("expired too early", s->n);
        atomic_fetch_add(&state->expired, 1);
    }
    if (o.kind != TSQ_OUTCOME_RESULT) return;
    if (o.len != result_len(s->n) || o.format != (s->n & 0xff) || !filled(data, o.len, ~s->n))
        broken("wrong result", s->n);
    atomic_fetch_add(&state->outcomes_read, 1);
}

/* As a client with time does: it stands in line, tries once more, and blocks until it is called. */
static int put_patiently(uint32_t me, const letter *l, tsq_lease *out, tsq_call *call) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    int rc = tsq_put(&Q, me, &l->m, out, call);
    if (rc != TSQ_FULL) return rc;
    atomic_fetch_add(&state->blocked, 1);
    for (;;) {
        uint32_t seen = bell(me);
        tsq_queue_up(&Q, me);
        if ((rc = tsq_put(&Q, me, &l->m, out, call)) != TSQ_FULL) break;
        (void)await_bell(me, seen, UINT64_C(1000) * MILLISECOND);
        if (stage() != RUNNING) _exit(0);
    }
    tsq_step_out(&Q, me);
    tsq_call_next(&Q, wake);
    ring_all(wake);
    return rc;
}

static void withdraw(uint32_t me, const tsq_lease *m, uint32_t n) {
    tsq_lease lease;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    atomic_store(&entry_of(n)->withdrawn, 1);
    if (tsq_take(&Q, me, m->slot, tsq_gen_of(m->word), &lease)) return; /* a worker was faster, or it is over */
    if (tsq_finish(&Q, me, &lease, TSQ_OUTCOME_DISCARDED, wall_ns(), wake))
        broken("what was taken back cannot be ended", n);
    ring_all(wake);
    atomic_fetch_add(&entry_of(n)->ended, 1);
    atomic_fetch_add(&state->discarded, 1);
}

static void give_up(uint32_t me, const letter *l, uint32_t n) {
    tsq_lease lease;
    atomic_store(&entry_of(n)->withdrawn, 2);
    if (!tsq_reserve(&Q, me, &l->m, &lease)) tsq_give_up(&Q, me, &lease);
}

void produce(uint32_t me) {
    enum { REMEMBERED = 64 };
    sent last[REMEMBERED] = {0};
    uint32_t base = atomic_load(&state->base);
    for (unsigned turn = 0; stage() == RUNNING; turn++) {
        letter l;
        tsq_call call;
        sent *s = &last[turn % REMEMBERED];
        if (turn >= REMEMBERED && s->n) read_outcome(me, s);
        uint32_t n = atomic_fetch_add(&state->next, 1);
        if (n - base >= LEDGER) break;
        write_letter(&l, n);
        s->n = 0;
        if (n % 64 == 9) {
            give_up(me, &l, n);
            continue;
        }
        if (put_patiently(me, &l, &s->message, &call)) broken("put fails", n);
        atomic_store(&entry_of(n)->committed, 1);
        s->n = n;
        s->expires_ns = l.m.expires_ns;
        if (n % 3 == 0) tsq_watch(&Q, me, s->message.slot);
        if (is_delayed(n)) atomic_fetch_add(&state->delayed, 1);
        ring(call.sleeper);
        if (call.due) ring(atomic_load(&state->custodian));
        if (n % 64 == 33) withdraw(me, &s->message, n);
    }
    _exit(0);
}

/* ---- workers ---- */

static void end(uint32_t me, tsq_lease *lease, uint32_t n) {
    char result[LARGEST];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    int rc = 0;
    if (n % 9 == 4) rc = tsq_ack(&Q, lease);
    if (!rc && n % 7 == 3) {
        rc = tsq_finish(&Q, me, lease, n % 2 ? TSQ_OUTCOME_NO_RESULT : TSQ_FORGET, wall_ns(), wake);
    } else if (!rc && n % 1000 == 999) {
        rc = tsq_dead_letter(&Q, me, lease, "why", 3, wall_ns(), wake);
        atomic_fetch_add(&state->dead_letters, 1);
    } else if (!rc) {
        fill(result, result_len(n), ~n);
        while ((rc = tsq_complete(&Q, me, lease, result, result_len(n), n & 0xff, wall_ns(), wake)) == TSQ_FULL)
            (void)sched_yield();
    }
    if (rc) broken("its end is refused though nobody took the lease away", n);
    ring_all(wake);
    atomic_fetch_add(&entry_of(n)->ended, 1);
}

static void note_latency(uint64_t ns) {
    uint64_t most = atomic_load(&state->max_latency_ns);
    while (ns > most && !atomic_compare_exchange_weak(&state->max_latency_ns, &most, ns)) continue;
}

/* What was claimed is what was put, at a time at which it may run. 0: its time is over. */
static int may_start(uint32_t me, tsq_lease *lease, uint32_t *n) {
    char id[TSQ_MAX_ID], payload[LARGEST];
    uint32_t id_len;
    uint64_t len, wake[TSQ_WAKE_WORDS] = {0}, now = wall_ns();
    tsq_view view;
    if (tsq_read_request(&Q, lease, id, &id_len, payload, sizeof payload, &len)) broken("unreadable", lease->slot);
    *n = number_of(id, id_len);
    if (len != payload_len(*n) || !filled(payload, len, *n)) broken("corrupt", *n);
    if (tsq_format_of(&Q, lease) != (*n & 0xff)) broken("it has another format", *n);
    if (tsq_look(&Q, lease->slot, &view) || view.word != lease->word) broken("it cannot be looked at", *n);
    if (view.lane != lane_of(*n)) broken("it is in another lane", *n);
    if (atomic_load(&entry_of(*n)->ended)) broken("delivered after its end", *n);
    if (atomic_load(&entry_of(*n)->withdrawn) == 2) broken("delivered and never committed", *n);
    if (view.due_ns > now) broken("delivered before it is due", *n);
    if (!view.expires_ns || view.expires_ns > now) {
        if (tsq_attempt_of(lease->word) == 0) note_latency(now - (view.due_ns ? view.due_ns : view.created_ns));
        return 1;
    }
    if (!may_expire(*n)) broken("expired, and it has no time limit", *n);
    if (tsq_finish(&Q, me, lease, TSQ_OUTCOME_EXPIRED, now, wake)) broken("it cannot expire", *n);
    ring_all(wake);
    return 0;
}

static int claim_or_sleep(uint32_t me, tsq_lease *lease) {
    if (!tsq_claim(&Q, me, lease)) return 1;
    uint32_t seen = bell(me);
    tsq_sleep(&Q, me, 1);
    int none = tsq_claim(&Q, me, lease), rang = 1;
    if (none && stage() >= EMPTY_IT) _exit(0);
    if (none) rang = await_bell(me, seen, UINT64_C(1000) * MILLISECOND);
    tsq_wake_up(&Q, me);
    if (none) none = tsq_claim(&Q, me, lease);
    if (!none && !rang) atomic_fetch_add(&state->overslept, 1); /* it waited and nobody rang */
    return !none;
}

/* So that some are killed while they run a message. */
static void do_something(uint32_t microseconds) {
    uint64_t until = wall_ns() + microseconds * 1000u;
    while (wall_ns() < until) continue;
}

void work(uint32_t me) {
    for (unsigned turn = me;;) {
        tsq_lease lease;
        uint32_t n;
        tsq_call call;
        if (!claim_or_sleep(me, &lease)) continue;
        tsq_set_empty(&Q, me, 0);
        if (tsq_ready_hints(&Q)) ring(tsq_pick_sleeper(&Q, me, 0));
        if (!may_start(me, &lease, &n)) continue;
        if (tsq_start(&Q, &lease)) broken("start is refused", n);
        atomic_fetch_add(&entry_of(n)->delivered, 1);
        if (n % 4 == 0) do_something(n % 64);
        if (++turn % 23) {
            end(me, &lease, n);
            continue;
        }
        atomic_fetch_add(&entry_of(n)->again, 1);
        if (tsq_release(&Q, me, &lease, wall_ns(), &call)) broken("giving back is refused", n);
        ring(call.sleeper);
        if (call.due) ring(atomic_load(&state->custodian));
    }
}

/* ---- the custodian ---- */

/* Audits go by a clock that outlives custodians, and end with the puts: what is left then has to be
 * found without them. */
static int audit_is_due(uint64_t now) {
    enum { AUDIT_EVERY = 1000 * MILLISECOND };
    uint64_t at = atomic_load(&state->audit_at);
    return now >= at && stage() == RUNNING && atomic_compare_exchange_strong(&state->audit_at, &at, now + AUDIT_EVERY);
}

void keep(uint32_t me) {
    atomic_store(&state->custodian, me);
    atomic_store(tsq_next_due(&Q), 0); /* its predecessor may have died over a look */
    while (stage() < EMPTY_IT) {
        uint32_t seen = bell(me), moved, expired;
        uint64_t now = wall_ns(), due = atomic_load(tsq_next_due(&Q)), next, wake[TSQ_WAKE_WORDS] = {0};
        if (audit_is_due(now)) {
            if (tsq_audit(&Q, me, now, UINT64_C(2000) * MILLISECOND, &expired, &moved)) broken("no memory", me);
            tsq_call_next(&Q, wake);
        }
        if (due <= now) tsq_run_due(&Q, me, now, &next, &moved, &expired, wake);
        ring_all(wake);
        if (due <= now) continue;
        uint64_t most = 100 * MILLISECOND;
        (void)await_bell(me, seen, due - now < most ? due - now : most);
    }
    _exit(0);
}
