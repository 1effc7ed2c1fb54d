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
uint64_t now_ns = NOW, rung[TSQ_WAKE_WORDS];

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
    uint64_t now_ns, rung[TSQ_WAKE_WORDS];
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
                                      .classes = CLASSES,
                                      .block = {{64, 64}, {256, 64}, {1024, LARGE_BLOCKS}}};

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
    memset(rung, 0, sizeof rung);
    now_ns = NOW;
    fillers = 0;
    tsq_init(Q.base, &Q.geo, &Q.at, boot);
    for (uint32_t p = VICTIM; p <= NEXT_IN_LINE; p++)
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
    saved.now_ns = now_ns;
    memcpy(saved.rung, rung, sizeof rung);
}

void world_load(void) {
    memcpy(Q.base, saved.segment, Q.at.total);
    memcpy(track, saved.track, sizeof track);
    *said = saved.said;
    tracked_count = saved.tracked_count;
    fillers = saved.fillers;
    now_ns = saved.now_ns;
    memcpy(rung, saved.rung, sizeof rung);
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
    t->lane = LANE;
    return t;
}

int tracked_message(const tracked *t, tsq_message *m, char *buffer) {
    fill(buffer, t->len, t->seed);
    *m = (tsq_message){.id = t->id,
                       .id_len = (uint32_t)strlen(t->id),
                       .payload = buffer,
                       .len = t->len,
                       .size = t->len,
                       .max_deliveries = t->max_deliveries,
                       .lane = t->lane,
                       .format = t->seed & 0xff,
                       .now_ns = now_ns,
                       .due_ns = t->due,
                       .expires_ns = t->expires};
    return 0;
}

void tracked_commit(tracked *t, uint32_t who) {
    char buffer[LARGEST];
    tsq_message m;
    tsq_call call;
    (void)tracked_message(t, &m, buffer);
    int rc = tsq_put(&Q, who, &m, &t->lease, &call);
    if (rc) fail("%s cannot be put: %d", t->id, rc);
    if (t->watched) tsq_watch(&Q, WATCHER, t->lease.slot);
    tsq_sleep(&Q, SLEEPER, 1); /* the put has taken its announcement */
}

tracked *tracked_put(uint64_t len, uint64_t result_len, int watched) {
    tracked *t = tracked_plan(len, result_len);
    t->watched = watched;
    tracked_commit(t, PRODUCER);
    return t;
}

tracked *tracked_timed(uint64_t len, uint32_t lane, uint64_t due, uint64_t expires) {
    tracked *t = tracked_plan(len, 10);
    t->lane = lane;
    t->due = due;
    t->expires = expires;
    t->watched = 1;
    tracked_commit(t, PRODUCER);
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
    int rc = tsq_complete(&Q, who, &t->lease, result, t->result_len, t->result_seed & 0xff, now_ns, wake);
    if (rc) fail("the lease of %s cannot be completed: %d", t->id, rc);
}

/* ---- the others ---- */

static void ring(const uint64_t wake[TSQ_WAKE_WORDS]) {
    for (uint32_t w = 0; w < TSQ_WAKE_WORDS; w++) rung[w] |= wake[w];
}

tracked *tracked_by_id(const char *id, uint32_t len) {
    for (unsigned i = 0; i < tracked_count; i++)
        if (strlen(track[i].id) == len && !memcmp(track[i].id, id, len)) return &track[i];
    return NULL;
}

static uint64_t filler_len(uint32_t n) { return n % 3 == 0 ? INLINE : n % 3 == 1 ? MIDDLE : LARGE; }
static uint32_t filler_lane(uint32_t n) {
    static const uint32_t of[] = {LANE, LANE, 9, 1};
    return of[n / 3 % 4];
}

static int try_filler(uint64_t len, uint32_t *n) {
    char id[16], payload[LARGEST];
    tsq_lease out;
    tsq_call call;
    while (filler_len(fillers) != len) fillers++;
    *n = fillers;
    (void)snprintf(id, sizeof id, "%08u", *n);
    fill(payload, len, *n);
    tsq_message m = {.id = id, .id_len = 8, .payload = payload, .len = len, .size = len,
                     .lane = filler_lane(*n), .format = *n & 0xff, .now_ns = now_ns};
    int rc = tsq_put(&Q, PRODUCER, &m, &out, &call);
    fillers += !rc;
    return rc;
}

static void put_filler(void) {
    uint32_t n;
    int rc = try_filler(filler_len(fillers), &n);
    if (rc) fail("others stall: put of filler %u says %d", n, rc);
}

unsigned fill_up(uint64_t len) {
    unsigned many = 0;
    uint32_t n;
    while (!try_filler(len, &n)) many++;
    tsq_sleep(&Q, SLEEPER, 1);
    return many;
}

/* Its fields fit to each other: a look while the slot was used again would mix them. */
int view_is_of_one_message(const tsq_view *view) {
    char id[TSQ_MAX_ID + 1] = {0};
    memcpy(id, view->id, view->id_len);
    const tracked *t = tracked_by_id(view->id, view->id_len);
    uint32_t n = (uint32_t)strtoul(id, NULL, 10);
    if (t) return view->size == t->len && view->lane == t->lane && view->format == (t->seed & 0xff);
    return view->id_len == 8 && view->size == filler_len(n) && view->lane == filler_lane(n) &&
           view->format == (n & 0xff);
}

/* The ends that a message of no interest comes to, in turn. */
static void end_filler(tsq_lease *lease, uint32_t n) {
    char result[LARGE];
    uint64_t wake[TSQ_WAKE_WORDS] = {0}, len = n % 7 == 0 ? LARGE : 30;
    int rc = 0;
    fill(result, len, n + 1);
    if (n % 4 == 3) rc = tsq_ack(&Q, lease);
    if (!rc && n % 4 == 1) rc = tsq_finish(&Q, OTHER, lease, TSQ_FORGET, now_ns, wake);
    else if (!rc && n % 16 == 2) rc = tsq_finish(&Q, OTHER, lease, TSQ_OUTCOME_NO_RESULT, now_ns, wake);
    else if (!rc) rc = tsq_complete(&Q, OTHER, lease, result, len, n & 0xff, now_ns, wake);
    ring(wake);
    if (rc) fail("others stall: the end of filler %u says %d", n, rc);
    tsq_outcome outcome;
    char data[LARGEST];
    if (n % 8 == 0) { /* some outcomes are read, which changes when they are forgotten */
        rc = tsq_get_outcome(&Q, lease->slot, tsq_gen_of(lease->word), &outcome, data, sizeof data);
        if (rc || outcome.len != len || outcome.format != (n & 0xff) || !filled(data, len, n + 1))
            fail("others read a wrong outcome of filler %u", n);
    }
}

static void end_tracked(tsq_lease *lease, tracked *t, const char *payload, uint64_t len) {
    char result[OTHERS_LEN];
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    t->delivered++;
    if (now_ns < t->due) fail("%s is delivered before it is due", t->id);
    if (tsq_format_of(&Q, lease) != (t->seed & 0xff)) fail("%s is delivered with another format", t->id);
    if (len != t->len || !filled(payload, len, t->seed)) fail("%s is delivered with a wrong payload", t->id);
    fill(result, sizeof result, OTHERS_RESULT);
    int rc = tsq_complete(&Q, OTHER, lease, result, sizeof result, OTHERS_RESULT & 0xff, now_ns, wake);
    ring(wake);
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
    tracked *t = tracked_by_id(id, id_len);
    uint64_t expires = tsq_expiry_of(&Q, &lease), wake[TSQ_WAKE_WORDS] = {0};
    if (t && expires != t->expires) fail("%s is delivered with another time limit", t->id);
    if (expires && expires <= now_ns) { /* as every worker does before it starts a task */
        if ((rc = tsq_finish(&Q, OTHER, &lease, TSQ_OUTCOME_EXPIRED, now_ns, wake))) fail("it cannot expire: %d", rc);
        ring(wake);
        return 1;
    }
    if ((rc = tsq_start(&Q, &lease))) fail("others stall: start says %d", rc);
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
        tsq_call call;
        tsq_lease lease;
        if (i % 10 == 9) { /* now and then one gives a message back */
            put_filler();
            if (tsq_claim(&Q, OTHER, &lease) || tsq_release(&Q, OTHER, &lease, now_ns, &call))
                fail("others cannot give back");
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
            tsq_complete(&Q, OTHER, &lease, result, result_len, (fillers - 1) & 0xff, now_ns, wake))
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
    ring(wake);
    if (tsq_is_waiting(&Q, dead)) fail("the dead one stands in line for room");
    if (bit(bitmap(&Q, Q.at.sleeping), dead) || bit(bitmap(&Q, Q.at.empty), dead))
        fail("the dead one would still be given work: its marks are there");
    /* The dead one may have promised a wake: taken the sleeper's announcement and not rung it. */
    for (uint32_t p = SLEEPER; p <= NEXT_IN_LINE; p++)
        if (p != dead && p != by && participant_live(&Q, p) && !((wake[p / 64] >> (p % 64)) & 1))
            fail("the repair does not wake %u", p);
    tsq_unregister(&Q, dead);
}

/* What is not READY at once becomes so: nothing else wakes the custodian than the time it was told. */
void custodian(void) {
    uint64_t next, wake[TSQ_WAKE_WORDS] = {0};
    uint32_t moved, expired;
    if (atomic_load(tsq_next_due(&Q)) > now_ns) return;
    tsq_run_due(&Q, OTHER, now_ns, &next, &moved, &expired, wake);
    ring(wake);
    if (atomic_load(tsq_next_due(&Q)) <= now_ns) fail("the custodian has to look again at what it has looked at");
}

void settle(void) {
    drain();
    custodian();
    drain();
    now_ns = LATER > now_ns ? LATER : now_ns;
    custodian();
    drain();
}
