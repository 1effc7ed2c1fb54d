/* Random SIGKILLs under load.
 *
 * Producers and consumers are processes; this one is the custodian: it kills one of them at a random
 * moment, repairs, and starts another. A ledger in shared memory, one entry per message, is written
 * before and after every call, so that afterwards each message's story can be told apart from what the
 * kills allow: a message may come again only if its holder was killed (or gave it back).
 *
 * stress SECONDS PRODUCERS CONSUMERS
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

enum { SLOTS = 256, LARGEST = 8192, MESSAGES = 1 << 24, CUSTODIAN = 1, FIRST = 10, LAST = 1000, PROCESSES = 64 };
enum { RUNNING, NO_MORE_PUTS, EMPTY_IT, BROKEN };

/* All counters, because several processes may write about one message over time. */
typedef struct {
    _Atomic uint8_t committed; /* put came back */
    _Atomic uint8_t delivered;
    _Atomic uint8_t again; /* how often a kill or a giving back allows one more delivery */
    _Atomic uint8_t ended;
} entry;

typedef struct {
    _Atomic int stage;
    tsq_au32 next;
    tsq_au64 outcomes_read, dead_letters;
} shared_state;

static tsq Q;
static entry *ledger;
static shared_state *state;

static void *shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void broken(const char *what, uint32_t n) {
    (void)fprintf(stderr, "%s: message %u\n", what, n);
    atomic_store(&state->stage, BROKEN);
    _exit(1);
}

/* ---- messages: every byte follows from the number ---- */

static uint64_t payload_len(uint32_t n) {
    static const uint64_t of[] = {8, 60, 240, 700, 1500};
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

static uint32_t number_of(const char *id, uint32_t len) {
    char text[TSQ_MAX_ID + 1] = {0};
    memcpy(text, id, len);
    return (uint32_t)strtoul(text, NULL, 10);
}

/* ---- the processes ---- */

/* What is watched and not read is kept from eviction, so it has to be read some day. */
static void wait_for_outcome(const tsq_lease *m, uint32_t n) {
    tsq_outcome o;
    char data[LARGEST];
    int rc;
    while ((rc = tsq_get_outcome(&Q, m->slot, tsq_gen_of(m->word), &o, data, sizeof data)) == TSQ_PENDING) {
        if (atomic_load(&state->stage) != RUNNING) return;
        (void)sched_yield();
    }
    if (rc || o.kind != TSQ_OUTCOME_RESULT) return;
    if (o.len != result_len(n) || !filled(data, o.len, ~n)) broken("wrong result", n);
    atomic_fetch_add(&state->outcomes_read, 1);
}

static void produce(uint32_t me) {
    enum { REMEMBERED = 64 };
    struct {
        tsq_lease message;
        uint32_t n;
    } last[REMEMBERED] = {0};
    for (unsigned turn = 0; atomic_load(&state->stage) == RUNNING; turn++) {
        char id[16], payload[LARGEST];
        uint32_t wake, n = atomic_fetch_add(&state->next, 1);
        if (n >= MESSAGES) break;
        (void)snprintf(id, sizeof id, "%u", n);
        fill(payload, payload_len(n), n);
        tsq_message m = {.id = id, .id_len = (uint32_t)strlen(id), .payload = payload, .len = payload_len(n),
                         .max_deliveries = n % 50 == 0 ? 1 : 200, .now_ns = 1};
        tsq_lease *out = &last[turn % REMEMBERED].message;
        if (turn >= REMEMBERED) wait_for_outcome(out, last[turn % REMEMBERED].n);
        int rc;
        while ((rc = tsq_put(&Q, me, &m, out, &wake)) == TSQ_FULL) {
            if (atomic_load(&state->stage) != RUNNING) _exit(0);
            (void)sched_yield();
        }
        if (rc) broken("put fails", n);
        atomic_store(&ledger[n].committed, 1);
        last[turn % REMEMBERED].n = n;
        if (n % 3 == 0) tsq_watch(&Q, me, out->slot);
    }
    _exit(0);
}

static void end(uint32_t me, tsq_lease *lease, uint32_t n) {
    char result[LARGEST];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    int rc = 0;
    if (n % 9 == 4) rc = tsq_ack(&Q, lease);
    if (!rc && n % 7 == 3) {
        rc = tsq_finish(&Q, me, lease, n % 2, 1, wake);
    } else if (!rc && n % 1000 == 999) {
        rc = tsq_dead_letter(&Q, me, lease, "why", 3, 1, wake);
        atomic_fetch_add(&state->dead_letters, 1);
    } else if (!rc) {
        fill(result, result_len(n), ~n);
        while ((rc = tsq_complete(&Q, me, lease, result, result_len(n), 1, wake)) == TSQ_FULL) (void)sched_yield();
    }
    if (rc) broken("its end is refused though nobody took the lease away", n);
    atomic_fetch_add(&ledger[n].ended, 1);
}

static void consume(uint32_t me) {
    unsigned turn = me;
    for (;;) {
        tsq_lease lease;
        char id[TSQ_MAX_ID], payload[LARGEST];
        uint32_t id_len, wake;
        uint64_t len;
        if (tsq_claim(&Q, me, &lease)) {
            if (atomic_load(&state->stage) >= EMPTY_IT) _exit(0);
            (void)sched_yield();
            continue;
        }
        if (tsq_read_request(&Q, &lease, id, &id_len, payload, sizeof payload, &len)) broken("unreadable", lease.slot);
        uint32_t n = number_of(id, id_len);
        if (n >= MESSAGES || len != payload_len(n) || !filled(payload, len, n)) broken("corrupt", n);
        if (atomic_load(&ledger[n].ended)) broken("delivered after its end", n);
        if (tsq_start(&Q, &lease)) broken("start is refused", n);
        atomic_fetch_add(&ledger[n].delivered, 1);
        if (++turn % 23 == 0) {
            atomic_fetch_add(&ledger[n].again, 1);
            if (tsq_release(&Q, me, &lease, &wake)) broken("giving back is refused", n);
        } else {
            end(me, &lease, n);
        }
    }
}

static uint32_t next_index(void) {
    static uint32_t last = FIRST - 1;
    last = last + 1 < LAST ? last + 1 : FIRST;
    tsq_participant p;
    while (tsq_participant_at(&Q, last, &p) || p.live) last = last + 1 < LAST ? last + 1 : FIRST;
    return last;
}

typedef struct {
    pid_t pid;
    uint32_t index;
    void (*run)(uint32_t me);
} worker;

static void start(worker *w) {
    w->index = next_index();
    if (tsq_register(&Q, w->index, 1, 0, 0, 0)) abort();
    w->pid = fork();
    if (w->pid < 0) abort();
    if (w->pid != 0) return;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    w->run(w->index);
}

/* ---- the custodian ---- */

/* What a dead one held may come again; what it had acknowledged or started once too often may not. */
static unsigned note_what_it_held(uint32_t dead) {
    unsigned held = 0;
    for (uint32_t i = 0; i < Q.geo.slots; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        unsigned s = tsq_state_of(w);
        char id[TSQ_MAX_ID];
        uint32_t len;
        if (tsq_owner_of(w) != dead || (s != TSQ_LEASED && s != TSQ_RUNNING && s != TSQ_ACKED)) continue;
        if (tsq_id_of(&Q, i, tsq_gen_of(w), id, &len)) continue;
        uint32_t n = number_of(id, len);
        int dies = s == TSQ_ACKED || (s == TSQ_RUNNING && n % 50 == 0);
        atomic_fetch_add(dies ? &ledger[n].ended : &ledger[n].again, 1);
        held++;
    }
    return held;
}

static unsigned bury(const worker *w) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_repair *list;
    uint32_t repairs;
    unsigned held = note_what_it_held(w->index);
    if (tsq_recover(&Q, w->index, CUSTODIAN, TSQ_DEATH(TSQ_CAUSE_SIGNAL, 9, 0, w->pid), 1, &list, &repairs, wake)) abort();
    free(list);
    tsq_unregister(&Q, w->index);
    if (repairs > held) broken("more was repaired than the dead one held", repairs);
    return repairs;
}

static void await_end(worker *w) {
    int status;
    (void)waitpid(w->pid, &status, 0);
    tsq_unregister(&Q, w->index); /* it ended by itself: nothing is repaired */
}

/* How many slots and blocks cannot be had though nothing is in the queue any more. */
static unsigned count_leaks(void) {
    uint32_t expired, hinted, wake, slots = 0, blocks = 0, all = 0, first;
    tsq_lease out;
    char data[1024] = {0};
    holder h = {.owner = CUSTODIAN, .role = ROLE_RESULT, .slot = 0, .attempt = 1, .gen = 0xabcdef};
    if (tsq_audit(&Q, CUSTODIAN, UINT64_MAX, 1, 1, &expired, &hinted)) abort();
    for (uint32_t c = 0; c < Q.geo.classes; c++) all += Q.geo.block[c].count;
    /* Small ones come from the larger classes when theirs is used up: so each block is given out. */
    while (!extent_write(&Q, &h, data, 1, &first)) blocks++;
    tsq_message m = {.id = "x", .id_len = 1, .payload = "", .len = 0, .now_ns = 1};
    while (!tsq_put(&Q, CUSTODIAN, &m, &out, &wake)) slots++;
    (void)printf("slots %u of %u, blocks %u of %u\n", slots, Q.geo.slots, blocks, all);
    return all - blocks + Q.geo.slots - slots;
}

int main(int argc, char **argv) {
    double duration = argc > 1 ? strtod(argv[1], NULL) : 3;
    unsigned producers = argc > 2 ? (unsigned)atoi(argv[2]) : 2, consumers = argc > 3 ? (unsigned)atoi(argv[3]) : 2;
    unsigned all = producers + consumers, kills = 0, repairs = 0;
    if (all > PROCESSES) return 2;
    Q.geo = (tsq_geometry){.slots = SLOTS, .inline_size = 256, .participants = 1024, .classes = 3,
                           .block = {{64, 256}, {256, 256}, {1024, 64}}};
    if (tsq_layout_of(&Q.geo, &Q.at)) return 2;
    Q.base = shared(Q.at.total);
    ledger = shared(sizeof(entry) * MESSAGES);
    state = shared(sizeof *state);
    static const uint8_t boot[16];
    tsq_init(Q.base, &Q.geo, &Q.at, boot);
    if (tsq_register(&Q, CUSTODIAN, 1, 0, 0, 0)) return 2;
    worker workers[PROCESSES];
    for (unsigned i = 0; i < all; i++) {
        workers[i].run = i < producers ? produce : consume;
        start(&workers[i]);
    }
    unsigned seed = (unsigned)getpid();
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    (void)printf("seed %u\n", seed);
    srand(seed);
    double until = seconds() + duration, slowest = 0;
    while (seconds() < until && atomic_load(&state->stage) == RUNNING) {
        (void)usleep((useconds_t)(rand() % 3000));
        worker *w = &workers[(unsigned)rand() % all];
        int status;
        (void)kill(w->pid, SIGKILL);
        (void)waitpid(w->pid, &status, 0);
        if (WIFEXITED(status)) break; /* it found something */
        double began = seconds();
        repairs += bury(w);
        double took = seconds() - began;
        if (took > slowest) slowest = took;
        kills++;
        start(w);
    }
    int stage = RUNNING;
    (void)atomic_compare_exchange_strong(&state->stage, &stage, NO_MORE_PUTS);
    for (unsigned i = 0; i < producers; i++) await_end(&workers[i]);
    stage = NO_MORE_PUTS;
    (void)atomic_compare_exchange_strong(&state->stage, &stage, EMPTY_IT);
    for (unsigned i = producers; i < all; i++) await_end(&workers[i]);

    uint32_t messages = atomic_load(&state->next);
    unsigned long committed = 0, lost = 0, redelivered = 0, duplicated = 0;
    for (uint32_t n = 0; n < messages && n < MESSAGES; n++) {
        const entry *e = &ledger[n];
        committed += e->committed;
        lost += e->committed && !e->delivered && !e->ended;
        redelivered += e->delivered > 1 ? e->delivered - 1u : 0u;
        duplicated += e->delivered > 1u + e->again;
    }
    int found = atomic_load(&state->stage) == BROKEN;
    unsigned leaked = found ? 0 : count_leaks();
    (void)printf("committed %lu, lost %lu, redelivered %lu, duplicated %lu, broken %d, leaked %u; "
                 "kills %u, repairs %u, slowest %.0f us, outcomes read %llu, dead letters %llu\n",
                 committed, lost, redelivered, duplicated, found, leaked, kills, repairs, slowest * 1e6,
                 (unsigned long long)state->outcomes_read, (unsigned long long)state->dead_letters);
    return lost || duplicated || found || leaked || !kills || !committed;
}
