/* The segment: where things lie, a new one's first state, and the checks at attach.
 *
 * All offsets follow from the geometry. A header is believed only after its magic, version,
 * architecture and layout hash fit this build, its geometry is within limits, and the layout computed
 * from it covers exactly the mapped size; from then on only the private copy is used.
 */
#include <stdio.h>
#include <string.h>

#include "layout.h"

static uint64_t mix(uint64_t h, uint64_t v) { return (h ^ v) * UINT64_C(0x100000001b3); }

/* Changes whenever a struct of the segment does. */
static uint64_t layout_hash(void) {
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    h = mix(h, sizeof(header));
    h = mix(h, offsetof(header, custodian));
    h = mix(h, offsetof(header, turns));
    h = mix(h, sizeof(slot));
    h = mix(h, offsetof(slot, checksum));
    h = mix(h, sizeof(participant));
    h = mix(h, offsetof(participant, armed));
    h = mix(h, sizeof(sender));
    h = mix(h, offsetof(sender_book, of));
    h = mix(h, sizeof(ring_ends));
    h = mix(h, TSQ_MAX_RINGS);
    return h;
}

static int power_of_two(uint32_t v) { return v && !(v & (v - 1)); }

static int geometry_ok(const tsq_geometry *g) {
    if (!power_of_two(g->slots) || g->slots < 64 || g->slots > TSQ_MAX_SLOTS) return 0;
    if (!g->inline_size || g->inline_size % 64 || g->inline_size < TSQ_MAX_ID + 56 || g->inline_size > 65536) return 0;
    if (!g->participants || g->participants % 64 || g->participants > TSQ_MAX_PARTICIPANTS) return 0;
    if (!g->classes || g->classes > TSQ_MAX_CLASSES) return 0;
    uint64_t blocks = 0;
    for (uint32_t c = 0; c < g->classes; c++) {
        if (!g->block[c].size || g->block[c].size % 64 || g->block[c].size > (1u << 28)) return 0;
        if (!power_of_two(g->block[c].count) || g->block[c].count > (1u << 20)) return 0;
        if (c && g->block[c].size <= g->block[c - 1].size) return 0;
        blocks += g->block[c].count;
    }
    return blocks < WHERE_CODES;
}

static uint64_t place(uint64_t *end, uint64_t size) {
    uint64_t at = (*end + 127) & ~UINT64_C(127);
    *end = at + size;
    return at;
}

static uint64_t ring_members(const tsq_geometry *g, uint32_t r) {
    if (r >= RING_BLOCK) return g->block[r - RING_BLOCK].count;
    if (r != RING_ROOM) return g->slots;
    uint64_t n = 64;
    while (n < g->participants) n *= 2;
    return n;
}

int tsq_layout_of(const tsq_geometry *g, tsq_layout *at) {
    if (!geometry_ok(g)) return TSQ_BAD_ARGUMENT;
    memset(at, 0, sizeof *at);
    uint64_t end = sizeof(header);
    uint32_t rings = RING_BLOCK + g->classes;
    at->rings = place(&end, rings * sizeof(ring_ends));
    for (uint32_t r = 0; r < rings; r++) {
        /* Twice as many cells as there are things to hint: stale hints have room too. */
        at->ring_size[r] = 2 * ring_members(g, r);
        at->ring_cells[r] = place(&end, at->ring_size[r] * 8);
    }
    at->sleeping = place(&end, g->participants / 8);
    at->empty = place(&end, g->participants / 8);
    at->waiting = place(&end, g->participants / 8);
    at->participants = place(&end, (uint64_t)g->participants * sizeof(participant));
    at->completions = place(&end, (uint64_t)g->participants * (g->slots / 8));
    at->hashes = place(&end, (uint64_t)g->slots * 8);
    at->senders = place(&end, sizeof(sender_book) + sender_count(g) * sizeof(sender));
    at->stride = sizeof(slot) + g->inline_size;
    at->slots = place(&end, g->slots * at->stride);
    for (uint32_t c = 0; c < g->classes; c++) {
        at->block_words[c] = place(&end, (uint64_t)g->block[c].count * 8);
        at->block_sizes[c] = place(&end, (uint64_t)g->block[c].count * 8);
        at->block_data[c] = place(&end, (uint64_t)g->block[c].count * g->block[c].size);
    }
    at->total = (end + 4095) & ~UINT64_C(4095);
    return TSQ_OK;
}

/* base: zeroed memory of at->total bytes that nobody else maps yet. */
void tsq_init(void *base, const tsq_geometry *geo, const tsq_layout *at, const uint8_t boot_id[16]) {
    tsq q = {.base = base, .geo = *geo, .at = *at};
    header *h = head_of(&q);
    h->version = TSQ_VERSION;
    h->arch = TSQ_ARCH;
    h->layout_hash = layout_hash();
    h->total = at->total;
    h->geo = *geo;
    memcpy(h->boot_id, boot_id, 16);
    atomic_store(&h->max_deliveries, 3);
    atomic_store(&h->result_ttl_ns, UINT64_C(3600000000000));
    atomic_store(&h->next_due, UINT64_MAX);
    atomic_store(&h->planned, UINT64_MAX);
    for (uint32_t i = 0; i < geo->slots; i++) (void)ring_put(&q, RING_FREE, i, 0);
    for (uint32_t c = 0; c < geo->classes; c++)
        for (uint32_t i = 0; i < geo->block[c].count; i++) (void)ring_put(&q, RING_BLOCK + c, i, 0);
    h->magic = TSQ_MAGIC;
}

int tsq_attach(tsq *q, void *base, uint64_t size, char *why, size_t why_len) {
    const header *h = base;
    if (size < sizeof(header)) {
        (void)snprintf(why, why_len, "it has %llu bytes, less than a header", (unsigned long long)size);
        return -1;
    }
    if (h->magic != TSQ_MAGIC) {
        (void)snprintf(why, why_len, "it does not start with the magic number of a queue");
        return -1;
    }
    if (h->version != TSQ_VERSION || h->layout_hash != layout_hash()) {
        (void)snprintf(why, why_len, "it has format %u (layout %016llx), this program reads format %u (layout %016llx)",
                       h->version, (unsigned long long)h->layout_hash, TSQ_VERSION,
                       (unsigned long long)layout_hash());
        return -1;
    }
    if (h->arch != TSQ_ARCH) {
        (void)snprintf(why, why_len, "it was made on another architecture");
        return -1;
    }
    tsq_geometry geo = h->geo;
    tsq_layout at;
    if (tsq_layout_of(&geo, &at)) {
        (void)snprintf(why, why_len, "its geometry is out of range (%u slots, %u participants): damaged", geo.slots,
                       geo.participants);
        return -1;
    }
    if (at.total != size || h->total != size) {
        (void)snprintf(why, why_len, "it has %llu bytes, its header says %llu: damaged", (unsigned long long)size,
                       (unsigned long long)at.total);
        return -1;
    }
    q->base = base;
    q->geo = geo;
    q->at = at;
    return TSQ_OK;
}

void tsq_boot_id(const tsq *q, uint8_t out[16]) { memcpy(out, head_of(q)->boot_id, 16); }

/* me: an index whose lock byte the caller holds. */
int tsq_register(tsq *q, uint32_t me, uint32_t role, uint32_t pid, uint32_t guardian, uint32_t tag) {
    if (!me || me >= q->geo.participants || participant_live(q, me)) return TSQ_BAD_ARGUMENT;
    participant *p = participant_at(q, me);
    /* Generations rise over all participants: one with a lower generation joined before. So an index
     * that is used again is not taken for its last owner, as somebody's guardian for example. */
    uint32_t generation = atomic_fetch_add(tsq_changes(q), 1) + 1;
    atomic_store(&p->pid, pid);
    atomic_store(&p->guardian, guardian);
    atomic_store(&p->explained, 0);
    atomic_store(&p->armed, 0);
    for (uint32_t i = 0; i < q->geo.slots / 64; i++) atomic_store_explicit(&completions_of(q, me)[i], 0, memory_order_relaxed);
    atomic_store(&p->word, (UINT64_C(1) << 63) | ((uint64_t)(role & 0x7fu) << 56) | ((uint64_t)(tag & 0xffffu) << 32) |
                               generation);
    atomic_fetch_add(tsq_changes(q), 1);
    return TSQ_OK;
}

void tsq_unregister(tsq *q, uint32_t me) {
    if (!me || me >= q->geo.participants) return;
    participant *p = participant_at(q, me);
    atomic_store(&p->word, atomic_load(&p->word) & ~(UINT64_C(1) << 63));
    uint32_t mine = me;
    atomic_compare_exchange_strong(tsq_custodian(q), &mine, 0);
    mine = me;
    atomic_compare_exchange_strong(tsq_deputy(q), &mine, 0);
    mine = me;
    atomic_compare_exchange_strong(tsq_supervisor(q), &mine, 0);
    atomic_fetch_add(tsq_changes(q), 1);
}

int tsq_participant_at(const tsq *q, uint32_t index, tsq_participant *out) {
    if (!index || index >= q->geo.participants) return TSQ_BAD_ARGUMENT;
    const participant *p = participant_at(q, index);
    uint64_t w = atomic_load(&p->word);
    out->live = (uint32_t)(w >> 63);
    out->role = (uint32_t)(w >> 56) & 0x7fu;
    out->tag = (uint32_t)(w >> 32) & 0xffffu;
    out->generation = (uint32_t)w;
    out->pid = atomic_load(&p->pid);
    out->guardian = atomic_load(&p->guardian);
    if (out->guardian >= q->geo.participants) out->guardian = 0; /* damaged: nobody */
    out->explained = atomic_load(&p->explained);
    return TSQ_OK;
}

void tsq_explain(tsq *q, uint32_t index) {
    if (index && index < q->geo.participants) atomic_store(&participant_at(q, index)->explained, 1);
}

tsq_au32 *tsq_custodian(tsq *q) { return &head_of(q)->custodian; }
tsq_au32 *tsq_deputy(tsq *q) { return &head_of(q)->deputy; }
tsq_au32 *tsq_supervisor(tsq *q) { return &head_of(q)->supervisor; }
tsq_au32 *tsq_max_deliveries(tsq *q) { return &head_of(q)->max_deliveries; }
tsq_au32 *tsq_changes(tsq *q) { return &head_of(q)->changes; }
tsq_au64 *tsq_result_ttl(tsq *q) { return &head_of(q)->result_ttl_ns; }
tsq_au64 *tsq_next_due(tsq *q) { return &head_of(q)->next_due; }
