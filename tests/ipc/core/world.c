#include "world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

tsq Q;
report *said;
tracked track[MAX_TRACKED];
unsigned tracked_count;
uint64_t now_ns = NOW;

static struct {
    const char *mode, *scenario;
    long instruction;
} now_doing;

static struct {
    char *segment;
    report said;
    tracked track[MAX_TRACKED];
    unsigned tracked_count;
    uint32_t fillers;
} saved;

/* Messages so far, of no interest and tracked: the sources of their seeds and ids. */
static uint32_t fillers, tracked_ever;

void doing(const char *mode, const char *scenario, long instruction) {
    now_doing.mode = mode;
    now_doing.scenario = scenario;
    now_doing.instruction = instruction;
}

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)printf("FAILED %s %s at instruction %ld: ", now_doing.mode, now_doing.scenario, now_doing.instruction);
    (void)vprintf(format, args);
    (void)printf("\n");
    va_end(args);
    (void)fflush(stdout);
    _exit(1);
}

/* ---- the segment ---- */

static const tsq_geometry geometry = {.slots = SLOTS,
                                      .inline_size = 256,
                                      .participants = PARTICIPANTS,
                                      .classes = 2,
                                      .block = {{SMALL_BLOCK, SMALL_BLOCKS}, {LARGE_BLOCK, LARGE_BLOCKS}}};

static void *shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) fail("mmap");
    return p;
}

void world_open(void) {
    Q.geo = geometry;
    if (tsq_layout_of(&Q.geo, &Q.at)) fail("the geometry is refused");
    Q.base = shared(Q.at.total);
    said = shared(sizeof *said);
    saved.segment = malloc(Q.at.total);
    if (!saved.segment) fail("malloc");
}

void world_reset(void) {
    static const uint8_t boot[16];
    memset(Q.base, 0, Q.at.total);
    memset(said, 0, sizeof *said);
    memset(track, 0, sizeof track);
    tracked_count = 0;
    now_ns = NOW;
    fillers = 0;
    tsq_init(Q.base, &Q.geo, &Q.at, boot);
    for (uint32_t p = VICTIM; p <= SECOND; p++)
        if (tsq_register(&Q, p, 1, p, 0, 0)) fail("participant %u is refused", p);
    traffic(20); /* off the first lap, and no two slots of the same generation */
    forget_outcomes();
    tsq_sleep(&Q, SLEEPER, 1);
}

void world_save(void) {
    memcpy(saved.segment, Q.base, Q.at.total);
    memcpy(saved.track, track, sizeof track);
    saved.said = *said;
    saved.tracked_count = tracked_count;
    saved.fillers = fillers;
}

void world_load(void) {
    memcpy(Q.base, saved.segment, Q.at.total);
    memcpy(track, saved.track, sizeof track);
    *said = saved.said;
    tracked_count = saved.tracked_count;
    fillers = saved.fillers;
}

/* ---- messages ---- */

void fill(char *out, uint64_t len, uint32_t seed) {
    uint32_t x = seed * 2654435761u + 12345u;
    for (uint64_t i = 0; i < len; i++) {
        x = x * 1664525u + 1013904223u;
        out[i] = (char)(x >> 24);
    }
}

int filled(const char *data, uint64_t len, uint32_t seed) {
    char expected[LARGEST];
    fill(expected, len, seed);
    return memcmp(expected, data, len) == 0;
}

tracked *tracked_plan(uint64_t len, uint64_t result_len) {
    tracked *t = &track[tracked_count++];
    *t = (tracked){0};
    (void)snprintf(t->id, sizeof t->id, "tracked-%u", ++tracked_ever);
    t->seed = 7000 + tracked_ever;
    t->result_seed = 8000 + tracked_ever;
    t->len = len;
    t->result_len = result_len;
    return t;
}

int tracked_message(const tracked *t, tsq_message *m, char *buffer) {
    fill(buffer, t->len, t->seed);
    *m = (tsq_message){.id = t->id,
                       .id_len = (uint32_t)strlen(t->id),
                       .payload = buffer,
                       .len = t->len,
                       .max_deliveries = t->max_deliveries,
                       .now_ns = now_ns};
    return 0;
}

tracked *tracked_put(uint64_t len, uint64_t result_len, int watched) {
    char buffer[LARGEST];
    tsq_message m;
    uint32_t wake;
    tracked *t = tracked_plan(len, result_len);
    (void)tracked_message(t, &m, buffer);
    if (tsq_put(&Q, PRODUCER, &m, &t->lease, &wake)) fail("the preparation cannot put");
    t->watched = watched;
    if (watched) tsq_watch(&Q, WATCHER, t->lease.slot);
    tsq_sleep(&Q, SLEEPER, 1); /* the put has taken its announcement */
    return t;
}

void lease_by(uint32_t who, tracked *t) {
    if (tsq_claim(&Q, who, &t->lease)) fail("the preparation cannot claim");
}

void start_by(tracked *t) {
    if (tsq_start(&Q, &t->lease)) fail("the preparation cannot start");
}

void complete_by(uint32_t who, tracked *t) {
    char result[LARGEST];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    fill(result, t->result_len, t->result_seed);
    int rc = tsq_complete(&Q, who, &t->lease, result, t->result_len, now_ns, wake);
    if (rc) fail("the lease of %s cannot be completed: %d", t->id, rc);
}

/* ---- the others ---- */

static tracked *tracked_by_id(const char *id, uint32_t len) {
    for (unsigned i = 0; i < tracked_count; i++)
        if (strlen(track[i].id) == len && !memcmp(track[i].id, id, len)) return &track[i];
    return NULL;
}

static uint64_t filler_len(uint32_t n) { return n % 3 == 0 ? INLINE : n % 3 == 1 ? ONE_BLOCK : TABLE; }

static void put_filler(void) {
    char id[16], payload[LARGEST];
    uint32_t n = fillers++, wake;
    tsq_lease out;
    (void)snprintf(id, sizeof id, "%08u", n);
    fill(payload, filler_len(n), n);
    tsq_message m = {.id = id, .id_len = 8, .payload = payload, .len = filler_len(n), .now_ns = now_ns};
    int rc = tsq_put(&Q, PRODUCER, &m, &out, &wake);
    if (rc) fail("others stall: put of filler %u says %d", n, rc);
}

/* The ends that a message of no interest comes to, in turn. */
static void end_filler(tsq_lease *lease, uint32_t n) {
    char result[TABLE];
    uint64_t wake[TSQ_WAKE_WORDS] = {0}, len = n % 7 == 0 ? TABLE : 30;
    int rc = 0;
    fill(result, len, n + 1);
    if (n % 4 == 3) rc = tsq_ack(&Q, lease);
    if (!rc && n % 4 == 1) rc = tsq_finish(&Q, OTHER, lease, 0, now_ns, wake);
    else if (!rc && n % 16 == 2) rc = tsq_finish(&Q, OTHER, lease, 1, now_ns, wake);
    else if (!rc) rc = tsq_complete(&Q, OTHER, lease, result, len, now_ns, wake);
    if (rc) fail("others stall: the end of filler %u says %d", n, rc);
    tsq_outcome outcome;
    char data[LARGEST];
    if (n % 8 == 0) { /* some outcomes are read, which changes when they are forgotten */
        rc = tsq_get_outcome(&Q, lease->slot, tsq_gen_of(lease->word), &outcome, data, sizeof data);
        if (rc || outcome.len != len || !filled(data, len, n + 1)) fail("others read a wrong outcome of filler %u", n);
    }
}

static void end_tracked(tsq_lease *lease, tracked *t, const char *payload, uint64_t len) {
    char result[OTHERS_LEN];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    t->delivered++;
    if (len != t->len || !filled(payload, len, t->seed)) fail("%s is delivered with a wrong payload", t->id);
    fill(result, sizeof result, OTHERS_RESULT);
    int rc = tsq_complete(&Q, OTHER, lease, result, sizeof result, now_ns, wake);
    if (rc) fail("others stall: completing %s says %d", t->id, rc);
}

/* Takes one message and ends it. 0: nothing is ready. */
static int work_once(void) {
    tsq_lease lease;
    char id[TSQ_MAX_ID + 1], payload[LARGEST];
    uint32_t id_len = 0;
    uint64_t len = 0;
    if (tsq_claim(&Q, OTHER, &lease)) return 0;
    int rc = tsq_read_request(&Q, &lease, id, &id_len, payload, sizeof payload, &len);
    if (rc) fail("others cannot read the request in slot %u: %d", lease.slot, rc);
    if ((rc = tsq_start(&Q, &lease))) fail("others stall: start says %d", rc);
    tracked *t = tracked_by_id(id, id_len);
    if (t) {
        end_tracked(&lease, t, payload, len);
        return 1;
    }
    id[id_len] = 0;
    uint32_t n = (uint32_t)strtoul(id, NULL, 10);
    if (id_len != 8 || n >= fillers) fail("a message with id '%s' was never put", id);
    if (len != filler_len(n) || !filled(payload, len, n)) fail("filler %u is delivered with a wrong payload", n);
    end_filler(&lease, n);
    return 1;
}

void drain(void) {
    while (work_once()) continue;
}

void traffic(unsigned cycles) {
    for (unsigned i = 0; i < cycles; i++) {
        put_filler();
        if (!work_once()) fail("others stall: a message was put and there is none to claim");
        uint32_t wake;
        tsq_lease lease;
        if (i % 10 == 9) { /* now and then one gives a message back */
            put_filler();
            if (tsq_claim(&Q, OTHER, &lease) || tsq_release(&Q, OTHER, &lease, &wake)) fail("others cannot give back");
            (void)work_once();
        }
    }
    drain();
}

void outcomes(unsigned n, uint64_t result_len) {
    char result[LARGEST];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    for (unsigned i = 0; i < n; i++) {
        tsq_lease lease;
        fillers += (3 - fillers % 3) % 3; /* an inline payload */
        put_filler();
        fill(result, result_len, fillers);
        if (tsq_claim(&Q, OTHER, &lease) || tsq_start(&Q, &lease) ||
            tsq_complete(&Q, OTHER, &lease, result, result_len, now_ns, wake))
            fail("the preparation cannot make outcome %u", i);
    }
    tsq_sleep(&Q, SLEEPER, 1);
}

static int bit(const tsq_au64 *words, uint32_t p) { return (int)(atomic_load(&words[p / 64]) >> (p % 64)) & 1; }

void repair(uint32_t dead, uint32_t by) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_repair *list;
    uint32_t n;
    int rc = tsq_recover(&Q, dead, by, TSQ_DEATH(TSQ_CAUSE_SIGNAL, 9, 0, dead), now_ns, &list, &n, wake);
    if (rc) fail("the repair after %u says %d", dead, rc);
    free(list);
    if (bit(bitmap(&Q, Q.at.sleeping), dead) || bit(bitmap(&Q, Q.at.empty), dead))
        fail("the dead one would still be given work: its marks are there");
    /* The dead one may have promised a wake: taken the sleeper's announcement and not rung it. */
    for (uint32_t p = SLEEPER; p <= PRODUCER; p++)
        if (p != dead && p != by && participant_live(&Q, p) && !((wake[p / 64] >> (p % 64)) & 1)) fail("the repair does not wake %u", p);
    tsq_unregister(&Q, dead);
}

static const tsq_outcome *outcome_of(const tracked *t, char *data) {
    static tsq_outcome outcome;
    int rc = tsq_get_outcome(&Q, t->lease.slot, tsq_gen_of(t->lease.word), &outcome, data, LARGEST);
    if (rc) fail("%s has no outcome: %d", t->id, rc);
    return &outcome;
}

void conclude_for_victim(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        tsq_lease lease = {.slot = i, .word = atomic_load(&slot_at(&Q, i)->word)};
        char id[TSQ_MAX_ID], payload[LARGEST], result[LARGEST];
        uint32_t id_len;
        uint64_t len, wake[TSQ_WAKE_WORDS] = {0};
        unsigned state = tsq_state_of(lease.word);
        if (tsq_owner_of(lease.word) != VICTIM || state < TSQ_LEASED || state > TSQ_ACKED) continue;
        if (tsq_read_request(&Q, &lease, id, &id_len, payload, sizeof payload, &len)) fail("it cannot read what it claimed");
        tracked *t = tracked_by_id(id, id_len);
        if (!t) continue; /* a stale hint led it to a message of the others: drain() would miss it */
        if (len != t->len || !filled(payload, len, t->seed)) fail("it was given %s with a wrong payload", t->id);
        if (state == TSQ_LEASED && tsq_start(&Q, &lease)) fail("it cannot start %s", t->id);
        fill(result, t->result_len, t->result_seed);
        if (tsq_complete(&Q, VICTIM, &lease, result, t->result_len, now_ns, wake)) fail("it cannot complete %s", t->id);
    }
}

/* ---- the books ---- */

static int find_tracked(tracked *t) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        char id[TSQ_MAX_ID];
        uint32_t id_len;
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        if (tsq_state_of(w) < TSQ_READY) continue;
        if (tsq_id_of(&Q, i, tsq_gen_of(w), id, &id_len) || tracked_by_id(id, id_len) != t) continue;
        t->lease = (tsq_lease){.slot = i, .word = w};
        return 1;
    }
    return 0;
}

static ending ending_of(const tracked *t) {
    uint64_t w = t->lease.word;
    uint32_t where = ref_where(atomic_load(&slot_at(&Q, t->lease.slot)->ref));
    uint32_t limit = t->max_deliveries ? t->max_deliveries : 3;
    switch (tsq_state_of(w)) {
    case TSQ_RUNNING: return tsq_attempt_of(w) < limit ? TO_BE_DELIVERED : DEAD_LETTER;
    case TSQ_ACKED: return LOST;
    case TSQ_DONE: return where == WHERE_NO_RESULT ? WITHOUT_RESULT : where == WHERE_LOST ? LOST : WITH_RESULT;
    case TSQ_DEAD: return DEAD_LETTER;
    default: return TO_BE_DELIVERED;
    }
}

void observe(void) {
    for (unsigned i = 0; i < tracked_count; i++)
        track[i].expected = find_tracked(&track[i]) ? ending_of(&track[i]) : NOT_THERE;
}

void watch_all(void) {
    observe();
    for (unsigned i = 0; i < tracked_count; i++) {
        if (track[i].expected != TO_BE_DELIVERED || track[i].watched) continue;
        tsq_watch(&Q, WATCHER, track[i].lease.slot);
        track[i].watched = 1;
    }
}

static void verify_one(const tracked *t, const uint32_t *told, uint32_t n) {
    char data[LARGEST];
    int to_deliver = t->expected == TO_BE_DELIVERED;
    if (t->delivered != to_deliver)
        fail("%s was delivered %d times after the stop, expected %d", t->id, t->delivered, to_deliver);
    if (t->expected == NOT_THERE) {
        uint32_t slot;
        uint64_t gen;
        if (!tsq_find(&Q, t->id, (uint32_t)strlen(t->id), &slot, &gen)) fail("%s is there again", t->id);
    } else {
        const tsq_outcome *o = outcome_of(t, data);
        static const uint32_t kinds[] = {[TO_BE_DELIVERED] = TSQ_OUTCOME_RESULT,
                                         [WITH_RESULT] = TSQ_OUTCOME_RESULT,
                                         [WITHOUT_RESULT] = TSQ_OUTCOME_NO_RESULT,
                                         [LOST] = TSQ_OUTCOME_LOST,
                                         [DEAD_LETTER] = TSQ_OUTCOME_DEAD};
        uint64_t len = to_deliver ? (uint64_t)OTHERS_LEN : t->result_len;
        if (o->kind != kinds[t->expected]) fail("%s ended as %u, expected %u", t->id, o->kind, kinds[t->expected]);
        if (o->kind == TSQ_OUTCOME_RESULT &&
            (o->len != len || !filled(data, len, to_deliver ? (uint32_t)OTHERS_RESULT : t->result_seed)))
            fail("%s has a wrong result", t->id);
    }
    if (!t->watched || t->expected == NOT_THERE) return; /* a slot used again tells nobody: waiters look themselves */
    for (uint32_t i = 0; i < n; i++)
        if (told[i] == t->lease.slot) return;
    fail("%s ended and its watcher was not told", t->id);
}

void outcomes_held(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        uint32_t where = ref_where(atomic_load(&slot_at(&Q, i)->ref)), c = 0, b = where - 1;
        if (tsq_state_of(w) != TSQ_DONE || where == WHERE_NONE || where >= WHERE_CODES) continue;
        for (; c < Q.geo.classes && b >= Q.geo.block[c].count; c++) b -= Q.geo.block[c].count;
        if (c == Q.geo.classes) fail("the outcome in slot %u refers to no block", i);
        uint64_t held = atomic_load(bitmap(&Q, Q.at.block_words[c]) + b);
        if (!(held >> 63)) fail("the outcome in slot %u lies in a block that is free", i);
    }
}

void outcomes_intact(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        char id[TSQ_MAX_ID + 1], data[LARGEST];
        uint32_t id_len;
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        tsq_outcome o;
        if (tsq_state_of(w) != TSQ_DONE || tsq_id_of(&Q, i, tsq_gen_of(w), id, &id_len)) continue;
        id[id_len] = 0;
        if (id_len != 8 || tracked_by_id(id, id_len)) continue; /* what is tracked is verified for itself */
        int rc = tsq_get_outcome(&Q, i, tsq_gen_of(w), &o, data, sizeof data);
        if (rc) fail("the outcome of filler %s cannot be read: %d", id, rc);
        if (o.kind == TSQ_OUTCOME_RESULT && !filled(data, o.len, (uint32_t)strtoul(id, NULL, 10) + 1))
            fail("filler %s has the result of another", id);
    }
}

void verify_once(const tracked *t) {
    char data[LARGEST];
    if (t->delivered > 1) fail("%s is delivered %d times", t->id, t->delivered);
    const tsq_outcome *o = outcome_of(t, data);
    if (o->kind != TSQ_OUTCOME_RESULT) return;
    if ((o->len != t->result_len || !filled(data, o->len, t->result_seed)) &&
        (o->len != OTHERS_LEN || !filled(data, o->len, OTHERS_RESULT)))
        fail("%s has a wrong result", t->id);
}

void verify(void) {
    uint32_t told[1024], n = tsq_completions(&Q, WATCHER, told, 1024);
    for (unsigned i = 0; i < tracked_count; i++) verify_one(&track[i], told, n);
}

static void all_hinted(unsigned ring, uint32_t count, const char *what) {
    uint8_t set[LARGE_BLOCKS / 8 + 1] = {0};
    ring_mark_hinted(&Q, ring, set, count);
    for (uint32_t i = 0; i < count; i++)
        if (!((set[i / 8] >> (i % 8)) & 1)) fail("%s %u is free and nothing hints it: leaked", what, i);
}

/* Takes every block of a class, each exactly once, and gives them back. */
static void all_blocks_once(uint32_t c, uint32_t size, uint32_t count) {
    uint8_t seen[SMALL_BLOCKS + LARGE_BLOCKS] = {0};
    uint32_t first[LARGE_BLOCKS], extra;
    char data[LARGE_BLOCK] = {0};
    holder h = {.owner = OTHER, .role = ROLE_RESULT, .slot = 0, .attempt = 1, .gen = 0xabcdef};
    for (uint32_t i = 0; i < count; i++) {
        if (extent_write(&Q, &h, data, size, &first[i])) fail("only %u of %u blocks of class %u can be had", i, count, c);
        if (seen[first[i]]++) fail("block %u of class %u is given out twice", first[i], c);
    }
    if (c == Q.geo.classes - 1 && !extent_write(&Q, &h, data, size, &extra)) fail("there are too many blocks");
    for (uint32_t i = 0; i < count; i++) extent_free(&Q, OTHER, ROLE_RESULT, 0, 0xabcdef, first[i]);
}

void forget_outcomes(void) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        unsigned state = tsq_state_of(w);
        if (state == TSQ_DONE || state == TSQ_DEAD) (void)slot_reclaim(&Q, OTHER, i, w);
    }
}

void all_accounted_for(void) {
    uint32_t wake;
    tsq_counts n;
    uint8_t seen[SLOTS] = {0};
    forget_outcomes();
    tsq_count(&Q, &n);
    if (n.free != SLOTS)
        fail("slots leaked: of %u free %u, writing %u, ready %u, leased %u, running %u, acked %u, done %u, dead %u",
             (unsigned)SLOTS, n.free, n.writing, n.ready, n.leased, n.running, n.acked, n.done, n.dead);
    for (uint32_t c = 0; c < Q.geo.classes; c++)
        for (uint32_t i = 0; i < Q.geo.block[c].count; i++) {
            uint64_t w = atomic_load(bitmap(&Q, Q.at.block_words[c]) + i);
            if (w >> 63) fail("block %u of class %u leaked: its word is %016llx", i, c, (unsigned long long)w);
        }
    all_hinted(RING_FREE, SLOTS, "slot");
    for (uint32_t c = 0; c < Q.geo.classes; c++) all_hinted(RING_BLOCK + c, Q.geo.block[c].count, "block");
    all_blocks_once(0, SMALL_BLOCK, SMALL_BLOCKS);
    all_blocks_once(1, LARGE_BLOCK, LARGE_BLOCKS);
    tsq_lease lease;
    tsq_message m = {.id = "x", .id_len = 1, .payload = "", .len = 0, .now_ns = now_ns};
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (tsq_put(&Q, PRODUCER, &m, &lease, &wake)) fail("only %u of %u slots can be had", i, (unsigned)SLOTS);
        if (seen[lease.slot]++) fail("slot %u is given out twice", lease.slot);
    }
    if (tsq_put(&Q, PRODUCER, &m, &lease, &wake) != TSQ_FULL) fail("there are too many slots");
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (tsq_claim(&Q, OTHER, &lease)) fail("only %u of %u messages can be claimed", i, (unsigned)SLOTS);
        if (seen[lease.slot]++ != 1) fail("slot %u is claimed twice", lease.slot);
    }
    if (tsq_claim(&Q, OTHER, &lease) != TSQ_EMPTY) fail("a message was claimed that nobody put");
}
