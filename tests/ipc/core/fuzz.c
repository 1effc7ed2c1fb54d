/* A damaged segment, under AddressSanitizer: every operation on it ends, and touches nothing outside.
 *
 * Messages may be lost or wrong, which is what damage means. The segment has exactly its size, so an
 * access outside is found; an endless loop is ended by an alarm.
 *
 * fuzz FIRST_SEED LAST_SEED
 *
 * With -DGUIDED it is a libFuzzer target instead: its bytes say what is damaged and how, then which
 * way the operations go.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "layout.h"

enum { ME = 3, OTHER = 4, LARGEST = 8192 + 4096 };

static tsq Q;
static uint64_t state;
static long seed;

/* The bytes of a guided run; when they are used up, the dice go on. */
static const uint8_t *given;
static size_t given_left;

static uint64_t roll(uint64_t below) {
    if (given_left) {
        uint64_t v = 0, most = below - 1;
        for (; most && given_left; most >>= 8, given_left--) v = v << 8 | *given++;
        return v % below;
    }
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (state >> 24) % below;
}

static void endless(int number) {
    (void)number;
    char text[64];
    int n = snprintf(text, sizeof text, "seed %ld: an operation does not end\n", seed);
    (void)!write(STDERR_FILENO, text, (size_t)n);
    _exit(1);
}

static void use(void) {
    static char data[LARGEST * 2];
    char id[TSQ_MAX_ID], payload[LARGEST] = {0};
    uint32_t id_len, slot, moved, slots[256], expired, hinted, n;
    uint64_t len, gen, next, wakes[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    tsq_call call;
    tsq_view view;
    tsq_outcome outcome;
    tsq_counts counts;
    tsq_participant participant;
    for (int i = 0; i < 30; i++) {
        (void)snprintf(id, sizeof id, "%d", i);
        tsq_message m = {.id = id, .id_len = (uint32_t)strlen(id), .payload = payload, .len = roll(200), .now_ns = 1,
                         .lane = (uint32_t)roll(TSQ_LANES), .due_ns = roll(3) ? 0 : 1 + roll(1000),
                         .expires_ns = roll(4) ? 0 : 1 + roll(1000)};
        tsq_sender from = {.id = {(uint8_t)roll(3)}, .number = roll(50)};
        if (roll(3) == 0 && tsq_last_from(&Q, from.id) < from.number) (void)tsq_put_from(&Q, ME, &m, &from, &lease, &call);
        else (void)tsq_put(&Q, ME, &m, &lease, &call);
        (void)tsq_find(&Q, id, m.id_len, &slot, &gen);
        (void)tsq_get_outcome(&Q, slot % Q.geo.slots, gen, &outcome, data, sizeof data);
        if (tsq_claim(&Q, ME, &lease)) continue;
        (void)tsq_read_request(&Q, &lease, id, &id_len, data, sizeof data, &len);
        if (roll(4) == 0 && !tsq_release(&Q, ME, &lease, 1, &call)) continue;
        (void)tsq_start(&Q, &lease);
        if (roll(4) == 0) (void)tsq_time_out(&Q, ME, id, id_len);
        if (roll(2)) (void)tsq_ack(&Q, &lease);
        if (roll(3) == 0) (void)tsq_finish(&Q, ME, &lease, roll(2) ? TSQ_FORGET : TSQ_OUTCOME_NO_RESULT, 1, wakes);
        else if (roll(3) == 0) (void)tsq_dead_letter(&Q, ME, &lease, "why", 3, 1, wakes);
        else (void)tsq_complete(&Q, ME, &lease, payload, roll(200), 0, 1, wakes);
    }
    for (slot = 0; slot < Q.geo.slots; slot++) {
        uint64_t w = atomic_load(&slot_at(&Q, slot)->word);
        (void)tsq_get_outcome(&Q, slot, tsq_gen_of(w), &outcome, data, sizeof data);
        (void)tsq_id_of(&Q, slot, tsq_gen_of(w), id, &id_len);
        (void)tsq_look(&Q, slot, &view);
        if (roll(8) == 0) (void)tsq_forget(&Q, ME, slot, tsq_gen_of(w), (int)roll(2));
        if (roll(8) == 0 && !tsq_take(&Q, ME, slot, tsq_gen_of(w), &lease))
            (void)tsq_finish(&Q, ME, &lease, TSQ_OUTCOME_DISCARDED, 1, wakes);
    }
    for (uint32_t p = 1; p < Q.geo.participants; p++) {
        tsq_repair *list = NULL;
        (void)tsq_participant_at(&Q, p, &participant);
        (void)tsq_recover(&Q, p, ME, 0, 1, &list, &n, wakes);
        free(list);
    }
    (void)tsq_audit(&Q, ME, 1000, 1, &expired, &hinted);
    tsq_run_due(&Q, ME, roll(1000), &next, &moved, &expired, wakes);
    tsq_queue_up(&Q, OTHER);
    tsq_call_next(&Q, wakes);
    tsq_step_out(&Q, OTHER);
    (void)tsq_completions(&Q, ME, slots, 256);
    tsq_watch(&Q, ME, (uint32_t)roll(100));
    tsq_sleep(&Q, ME, 1);
    (void)tsq_pick_sleeper(&Q, OTHER, 0);
    tsq_ignore_unanswering(&Q, OTHER);
    tsq_wake_up(&Q, ME);
    tsq_count(&Q, &counts);
}

/* Damage of every kind: noise, and values that are nearly right. */
static void damage(uint64_t from, uint64_t to) {
    tsq_au64 *word = (tsq_au64 *)(void *)(Q.base + ((from + roll(to - from)) & ~UINT64_C(7)));
    uint64_t v = atomic_load(word);
    switch (roll(6)) {
    case 0: v = (roll(1u << 31) << 33) ^ (roll(1u << 31) << 20) ^ roll(1u << 31); break;
    case 1: v = UINT64_MAX; break;
    case 2: v += roll(5) - 2; break;
    case 3: v ^= UINT64_C(1) << roll(64); break;
    case 4: v = (v & ~(UINT64_C(0xffff) << 48)) | (roll(1 << 16) << 48); break;
    default: v = roll(512); break;
    }
    atomic_store(word, v);
}

/* One message in each state that a lease can be in. */
static void hold_some(void) {
    tsq_lease lease;
    tsq_call call;
    for (int i = 0; i < 4; i++) {
        char id[16];
        (void)snprintf(id, sizeof id, "held%d", i);
        tsq_message m = {.id = id, .id_len = (uint32_t)strlen(id), .payload = "payload", .len = 7, .now_ns = 1};
        if (tsq_put(&Q, OTHER, &m, &lease, &call) || (i && tsq_claim(&Q, OTHER, &lease))) continue;
        if (i > 1) (void)tsq_start(&Q, &lease);
        if (i > 2) (void)tsq_ack(&Q, &lease);
    }
}

static char *base;
static tsq_geometry geo = {.slots = 64, .inline_size = 256, .participants = 64, .classes = 2, .block = {{64, 64}, {256, 64}}};
static tsq_layout at;

static int begin(void) {
    (void)signal(SIGALRM, endless);
    if (tsq_layout_of(&geo, &at)) return 0;
    base = aligned_alloc(4096, at.total);
    return base != NULL;
}

static void fresh(void) {
    static const uint8_t boot[16];
    (void)alarm(10);
    Q.base = base;
    Q.geo = geo;
    Q.at = at;
    memset(base, 0, at.total);
    tsq_init(base, &geo, &at, boot);
    (void)tsq_register(&Q, ME, 1, 0, 0, 0);
    (void)tsq_register(&Q, OTHER, 1, 0, 0, 0);
    use();
    hold_some();
}

/* 0: refused. */
static int attach_and_use(void) {
    char why[200];
    if (tsq_attach(&Q, base, at.total, why, sizeof why)) return 0;
    use();
    use();
    return 1;
}

#ifdef GUIDED
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!base && !begin()) abort();
    state = 1;
    given_left = 0;
    fresh();
    given = data;
    given_left = size;
    for (uint64_t n = roll(32); n-- > 0 && given_left;) {
        uint64_t v = 0, part = roll(4);
        if (part == 3) { /* any word, any value */
            tsq_au64 *word = (tsq_au64 *)(void *)(base + (roll(at.total / 8) * 8));
            for (int i = 0; i < 8; i++) v = v << 8 | roll(256);
            atomic_store(word, v);
        } else if (part == 2) damage(at.slots, at.slots + 64 * at.stride);
        else if (part == 1) damage(at.block_words[0], at.block_data[0]);
        else damage(0, at.sleeping);
    }
    (void)attach_and_use();
    return 0;
}
#else
int main(int argc, char **argv) {
    long last = argc > 2 ? strtol(argv[2], NULL, 10) : 1000;
    if (!begin()) return 2;
    long refused = 0;
    for (seed = argc > 1 ? strtol(argv[1], NULL, 10) : 0; seed < last; seed++) {
        state = (uint64_t)seed * 977 + 1;
        fresh();
        /* Mostly the small and busy parts: rings and words, not the payloads. */
        uint64_t rings_end = at.sleeping, all = at.total, n = 1 + roll(roll(3) ? 8 : 400);
        for (uint64_t i = 0; i < n; i++) {
            int where = (int)roll(4);
            if (where == 0) damage(roll(16) ? sizeof(uint64_t) * 16 : 0, rings_end);
            else if (where == 1) damage(at.slots + roll(64) * at.stride, at.slots + 64 * at.stride);
            else if (where == 2) damage(at.block_words[0], at.block_data[0]);
            else damage(roll(8) ? 128 : at.senders, roll(8) ? all : at.slots);
        }
        refused += !attach_and_use();
    }
    (void)printf("refused %ld\n", refused);
    free(base);
    return 0;
}
#endif
