/* Payload blocks: where everything lies that does not fit into its slot.
 *
 * Each block has a word of its own: held:1 | role:1 | owner:12 | attempt:8 | slot:18 | generation:24.
 * It names the message the block belongs to, so a sweep can tell which blocks outlived theirs. A free
 * block's word keeps who freed it: if that participant died before it hinted the block, the sweep
 * hints it. What is larger than the largest block lies outside the segment and is not the core's.
 */
#include "layout.h"

#include <stdlib.h>

#define HELD (UINT64_C(1) << 63)
#define WHO_MASK ((UINT64_C(1) << 63) | (UINT64_C(1) << 62) | ((UINT64_C(1) << 42) - 1)) /* no owner, attempt */
#define LEN_BITS 56u /* of a size word: format:8 | bytes:56 */
#define LEN_MASK ((UINT64_C(1) << LEN_BITS) - 1)

static uint64_t held_word(const holder *h) {
    return HELD | ((uint64_t)(h->role & 1u) << 62) | ((uint64_t)(h->owner & 0xfffu) << 50) |
           ((uint64_t)(h->attempt & 0xffu) << 42) | ((uint64_t)(h->slot & 0x3ffffu) << 24) |
           (h->gen & 0xffffffu);
}
static uint64_t free_word(uint32_t by) { return (uint64_t)(by & 0xfffu) << 50; }
static uint32_t word_owner(uint64_t w) { return (uint32_t)(w >> 50) & 0xfffu; }
static uint32_t word_role(uint64_t w) { return (uint32_t)(w >> 62) & 1u; }
static uint32_t word_attempt(uint64_t w) { return (uint32_t)(w >> 42) & 0xffu; }
static uint32_t word_slot(uint64_t w) { return (uint32_t)(w >> 24) & 0x3ffffu; }

/* Blocks are numbered through all classes. 1 and class and index inside it, or 0: no such block. */
static int block_find(const tsq *q, uint32_t number, uint32_t *cls, uint32_t *index) {
    for (uint32_t c = 0; c < q->geo.classes; c++) {
        if (number < q->geo.block[c].count) {
            *cls = c;
            *index = number;
            return 1;
        }
        number -= q->geo.block[c].count;
    }
    return 0;
}
static uint32_t block_number(const tsq *q, uint32_t cls, uint32_t index) {
    for (uint32_t c = 0; c < cls; c++) index += q->geo.block[c].count;
    return index;
}
static tsq_au64 *block_word(const tsq *q, uint32_t c, uint32_t i) { return bitmap(q, q->at.block_words[c]) + i; }
static tsq_au64 *block_size(const tsq *q, uint32_t c, uint32_t i) { return bitmap(q, q->at.block_sizes[c]) + i; }
static tsq_au64 *block_data(const tsq *q, uint32_t c, uint32_t i) {
    return bitmap(q, q->at.block_data[c]) + (uint64_t)i * q->geo.block[c].size / 8;
}

/* Blocks of a class that requests leave to results, so that a full queue can drain. */
static uint32_t reserve_of(const tsq *q, uint32_t c) {
    uint32_t kept = q->geo.block[c].count / 16;
    return kept ? kept : q->geo.block[c].count / 2;
}

static int block_take(tsq *q, uint32_t c, uint64_t held, uint32_t *out) {
    if (!((held >> 62) & 1u) && ring_hints(q, RING_BLOCK + c) <= reserve_of(q, c)) return TSQ_FULL;
    uint64_t pos;
    uint32_t i, gen12;
    while (ring_peek(q, RING_BLOCK + c, &pos, &i, &gen12)) {
        if (i < q->geo.block[c].count) {
            uint64_t w = atomic_load_explicit(block_word(q, c, i), memory_order_acquire);
            if (!(w & HELD)) {
                if (!atomic_compare_exchange_strong(block_word(q, c, i), &w, held)) continue;
                (void)ring_advance(q, RING_BLOCK + c, pos);
                *out = i;
                return TSQ_OK;
            }
        }
        (void)ring_advance(q, RING_BLOCK + c, pos);
    }
    return TSQ_FULL;
}

/* Frees the block if it is still held exactly as `word` says. */
static void block_drop(tsq *q, uint32_t me, uint32_t c, uint32_t i, uint64_t word) {
    if (atomic_compare_exchange_strong(block_word(q, c, i), &word, free_word(me)))
        (void)ring_put(q, RING_BLOCK + c, i, 0); /* full only with damaged hints: the sweep hints it */
}

/* Writes data into a block held by h: of the smallest class that has one. TSQ_OK, TSQ_FULL, TSQ_TOO_LARGE. */
int block_write(tsq *q, const holder *h, const void *data, uint64_t len, uint32_t format, uint32_t *number) {
    if (len > block_max(q)) return TSQ_TOO_LARGE;
    for (uint32_t c = 0; c < q->geo.classes; c++) {
        uint32_t i;
        if (q->geo.block[c].size < len || block_take(q, c, held_word(h), &i)) continue;
        atomic_store_explicit(block_size(q, c, i), (uint64_t)(format & 0xffu) << LEN_BITS | len, memory_order_release);
        copy_in(block_data(q, c, i), data, len);
        *number = block_number(q, c, i);
        return TSQ_OK;
    }
    return TSQ_FULL;
}

/* Length and format of what lies in the block. The caller checks the slot word afterwards. */
int block_len(tsq *q, uint32_t number, uint64_t *len, uint32_t *format) {
    uint32_t c, i;
    if (!block_find(q, number, &c, &i)) return TSQ_GONE;
    uint64_t size = atomic_load_explicit(block_size(q, c, i), memory_order_acquire);
    *format = (uint32_t)(size >> LEN_BITS);
    *len = size & LEN_MASK;
    return *len > q->geo.block[c].size ? TSQ_GONE : TSQ_OK;
}

/* Copies len bytes; torn ones are thrown away by the caller's check of the slot word. */
int block_read(tsq *q, uint32_t number, uint64_t len, char *out) {
    uint32_t c, i;
    if (!block_find(q, number, &c, &i) || len > q->geo.block[c].size) return TSQ_GONE;
    copy_out(out, block_data(q, c, i), len);
    return TSQ_OK;
}

/* Frees a block of this message. Safe to repeat, and beside others who do the same: the one CAS that
 * still finds it held for the message frees it. */
void block_free(tsq *q, uint32_t me, uint32_t role, uint32_t slot_index, uint64_t gen, uint32_t number) {
    holder h = {.owner = 0, .role = role, .slot = slot_index, .attempt = 0, .gen = gen};
    uint32_t c, i;
    if (!block_find(q, number, &c, &i)) return;
    uint64_t w = atomic_load_explicit(block_word(q, c, i), memory_order_acquire);
    if ((w & WHO_MASK) == held_word(&h)) block_drop(q, me, c, i, w);
}

/* Does the message this block was taken for still need it? Slots have been repaired before. */
static int block_needed(const tsq *q, uint64_t w, uint32_t dead) {
    uint32_t s = word_slot(w);
    if (s >= q->geo.slots) return 0;
    uint64_t v = atomic_load_explicit(&slot_at(q, s)->word, memory_order_acquire);
    unsigned state = tsq_state_of(v);
    int same = (tsq_gen_of(v) & 0xffffffu) == (w & 0xffffffu);
    if (word_role(w) == ROLE_REQUEST)
        return same && state != TSQ_FREE && state != TSQ_DONE;
    /* A result of a live worker is that worker's business until it is committed: it frees what it
     * could not commit. What a dead one left is needed if it was the commit, which the reference tells:
     * a repair by who takes over the dead one's index concludes under the same owner. */
    if (word_owner(w) != dead) return 1;
    uint32_t where = ref_where(atomic_load_explicit(&slot_at(q, s)->ref, memory_order_acquire));
    return same && (state == TSQ_DONE || state == TSQ_DEAD) && word_attempt(w) == tsq_attempt_of(v) &&
           tsq_owner_of(v) == dead && where != WHERE_NONE && where < WHERE_CODES;
}

/* After the slots of `dead` were repaired: frees blocks that outlived their message, hints free ones
 * that nobody hints. */
int blocks_sweep(tsq *q, uint32_t dead, uint32_t me) {
    for (uint32_t c = 0; c < q->geo.classes; c++) {
        uint32_t n = q->geo.block[c].count;
        uint8_t *hinted = NULL;
        for (uint32_t i = 0; i < n; i++) {
            uint64_t w = atomic_load_explicit(block_word(q, c, i), memory_order_acquire);
            if (w & HELD) {
                if (!block_needed(q, w, dead)) block_drop(q, me, c, i, w);
                continue;
            }
            if (word_owner(w) != dead) continue;
            if (!hinted) {
                hinted = calloc(n / 8 + 1, 1);
                if (!hinted) return TSQ_NO_MEMORY;
                ring_mark_hinted(q, RING_BLOCK + c, hinted, n);
            }
            uint64_t now = free_word(me);
            if (!((hinted[i / 8] >> (i % 8)) & 1)) (void)ring_put(q, RING_BLOCK + c, i, 0);
            atomic_compare_exchange_strong(block_word(q, c, i), &w, now);
        }
        free(hinted);
    }
    return TSQ_OK;
}

/* Hints free blocks that nobody hints: who took a stale hint of one away may have done so after the
 * block was freed, and before who freed it hinted it, which it did not live to do. As with slots, the
 * words are read before the rings. */
int blocks_audit(tsq *q) {
    for (uint32_t c = 0; c < q->geo.classes; c++) {
        uint32_t n = q->geo.block[c].count;
        uint64_t *seen = calloc(n, sizeof *seen);
        uint8_t *hinted = calloc(n / 8 + 1, 1);
        int ok = seen && hinted;
        for (uint32_t i = 0; ok && i < n; i++)
            seen[i] = atomic_load_explicit(block_word(q, c, i), memory_order_acquire);
        if (ok) ring_mark_hinted(q, RING_BLOCK + c, hinted, n);
        for (uint32_t i = 0; ok && i < n; i++)
            if (!(seen[i] & HELD) && !((hinted[i / 8] >> (i % 8)) & 1) &&
                atomic_load_explicit(block_word(q, c, i), memory_order_acquire) == seen[i])
                (void)ring_put(q, RING_BLOCK + c, i, 0);
        free(seen);
        free(hinted);
        if (!ok) return TSQ_NO_MEMORY;
    }
    return TSQ_OK;
}
