/* A damaged segment, under AddressSanitizer: every operation on it ends, and touches nothing outside.
 *
 * Messages may be lost or wrong, which is what damage means. The segment has exactly its size, so an
 * access outside is found; an endless loop is ended by an alarm.
 *
 * fuzz FIRST_SEED LAST_SEED
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

static uint64_t roll(uint64_t below) {
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
    uint32_t id_len, wake, slot, slots[256], expired, hinted, n;
    uint64_t len, gen, wakes[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    tsq_outcome outcome;
    tsq_counts counts;
    tsq_participant participant;
    for (int i = 0; i < 30; i++) {
        (void)snprintf(id, sizeof id, "%d", i);
        tsq_message m = {.id = id, .id_len = (uint32_t)strlen(id), .payload = payload, .len = roll(2000), .now_ns = 1};
        (void)tsq_put(&Q, ME, &m, &lease, &wake);
        (void)tsq_find(&Q, id, m.id_len, &slot, &gen);
        (void)tsq_get_outcome(&Q, slot % Q.geo.slots, gen, &outcome, data, sizeof data);
        if (tsq_claim(&Q, ME, &lease)) continue;
        (void)tsq_read_request(&Q, &lease, id, &id_len, data, sizeof data, &len);
        if (roll(4) == 0 && !tsq_release(&Q, ME, &lease, &wake)) continue;
        (void)tsq_start(&Q, &lease);
        if (roll(2)) (void)tsq_ack(&Q, &lease);
        if (roll(3) == 0) (void)tsq_finish(&Q, ME, &lease, (int)roll(2), 1, wakes);
        else if (roll(3) == 0) (void)tsq_dead_letter(&Q, ME, &lease, "why", 3, 1, wakes);
        else (void)tsq_complete(&Q, ME, &lease, payload, roll(2000), 1, wakes);
    }
    for (slot = 0; slot < Q.geo.slots; slot++) {
        uint64_t w = atomic_load(&slot_at(&Q, slot)->word);
        (void)tsq_get_outcome(&Q, slot, tsq_gen_of(w), &outcome, data, sizeof data);
        (void)tsq_id_of(&Q, slot, tsq_gen_of(w), id, &id_len);
    }
    for (uint32_t p = 1; p < Q.geo.participants; p++) {
        tsq_repair *list = NULL;
        (void)tsq_participant_at(&Q, p, &participant);
        (void)tsq_recover(&Q, p, ME, 0, 1, &list, &n, wakes);
        free(list);
    }
    (void)tsq_audit(&Q, ME, 1000, 1, 1, &expired, &hinted);
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

int main(int argc, char **argv) {
    static const uint8_t boot[16];
    long last = argc > 2 ? strtol(argv[2], NULL, 10) : 1000;
    (void)signal(SIGALRM, endless);
    tsq_geometry geo = {.slots = 64, .inline_size = 256, .participants = 64, .classes = 2, .block = {{64, 64}, {256, 64}}};
    tsq_layout at;
    if (tsq_layout_of(&geo, &at)) return 2;
    char *base = aligned_alloc(4096, at.total), why[200];
    if (!base) return 2;
    long refused = 0;
    for (seed = argc > 1 ? strtol(argv[1], NULL, 10) : 0; seed < last; seed++) {
        state = (uint64_t)seed * 977 + 1;
        (void)alarm(10);
        Q.base = base;
        Q.geo = geo;
        Q.at = at;
        memset(base, 0, at.total);
        tsq_init(base, &geo, &at, boot);
        (void)tsq_register(&Q, ME, 1, 0, 0, 0);
        (void)tsq_register(&Q, OTHER, 1, 0, 0, 0);
        use();
        /* Mostly the small and busy parts: rings and words, not the payloads. */
        uint64_t rings_end = at.sleeping, all = at.total, n = 1 + roll(roll(3) ? 8 : 400);
        for (uint64_t i = 0; i < n; i++) {
            int where = (int)roll(4);
            if (where == 0) damage(roll(16) ? sizeof(uint64_t) * 16 : 0, rings_end);
            else if (where == 1) damage(at.slots + roll(64) * at.stride, at.slots + 64 * at.stride);
            else if (where == 2) damage(at.block_words[0], at.block_data[0]);
            else damage(128, all);
        }
        if (tsq_attach(&Q, base, at.total, why, sizeof why)) {
            refused++;
            continue;
        }
        use();
        use();
    }
    (void)printf("refused %ld\n", refused);
    free(base);
    return 0;
}
