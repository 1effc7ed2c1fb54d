/* What lies where in the segment, and the accessors every file of the core uses.
 *
 * Offsets and sizes come from the handle's private copy, which was computed from
 * the geometry and compared with the header once, at attach. An index read from
 * shared memory goes through slot_at() or block_ok(), which check it.
 */
#ifndef TSQ_LAYOUT_H
#define TSQ_LAYOUT_H

#include "tsq.h"

#define TSQ_MAGIC UINT64_C(0x31474553515354) /* "TSQSEG1" */
#define TSQ_VERSION 4u
#define TSQ_ARCH (UINT32_C(0x01020304) ^ ((uint32_t)sizeof(void *) << 28))

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free to be shared");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free to be shared");

/* RING_AGAIN holds what was given back or lost its worker: it is claimed before what is new. RING_ROOM
 * holds participants in line for room, the others slots or blocks. */
enum {
    RING_FREE = 0,
    RING_AGAIN = 1,
    RING_DONE = 2,
    RING_READ = 3,
    RING_DEAD = 4,
    RING_ROOM = 5,
    RING_LANE = 6,
    RING_BLOCK = RING_LANE + TSQ_LANES
};
_Static_assert(RING_BLOCK + TSQ_MAX_CLASSES == TSQ_MAX_RINGS, "the layout has room for all rings");

/* head and tail on lines of their own: two lines because of the adjacent-line prefetcher. */
typedef struct {
    _Alignas(128) tsq_au64 head;
    _Alignas(128) tsq_au64 tail;
} ring_ends;

typedef struct {
    /* Constant once the file has its name. */
    uint64_t magic;
    uint32_t version, arch;
    uint64_t layout_hash, total;
    uint8_t boot_id[16];
    tsq_geometry geo;
    /* Shared state. Owner and order of each are said where it is used. */
    _Alignas(128) tsq_au32 custodian;
    tsq_au32 deputy, supervisor, max_deliveries, changes;
    tsq_au64 result_ttl_ns;
    tsq_au32 checked;    /* messages carry checksums: the segment may outlive the boot */
    tsq_au32 lanes_used; /* bit set before a lane is used for the first time; never cleared */
    _Alignas(128) tsq_au64 next_due; /* the earliest time announced since the last look */
    tsq_au64 planned;                /* when the custodian will look next */
    _Alignas(128) tsq_au32 turns; /* claims, while several lanes are in use */
} header;

/* The only non-atomic fields are written in WRITING by the slot's owner, before the releasing
 * store of READY, and read by lease holders after the acquiring CAS; readers without a lease use
 * copy_out and check the word again. */
typedef struct {
    /* The line that everybody touches. */
    tsq_au64 word;
    tsq_au64 ref;   /* result reference: attempt:8 | generation:32 | where:24 */
    tsq_au64 watch; /* bit (participant mod 64): ring those when the message ends */
    tsq_au64 expires_ns;
    tsq_au64 len;      /* bytes of payload */
    tsq_au32 block;    /* number of the payload's block + 1, 0: inline */
    tsq_au32 id_len;   /* bytes of id, at the start of the inline area */
    tsq_au32 lane, format;
    tsq_au32 max_deliveries;
    tsq_au32 read_gen; /* generation (low 32 bits) whose outcome has been read + 1 */
    /* The line of what is read seldom. */
    tsq_au64 death; /* TSQ_DEATH of the last worker that died running it; recoverers only */
    tsq_au64 created_ns, done_ns, due_ns, size;
    tsq_au64 overdue;  /* see overdue.c: the word of the start that takes too long */
    tsq_au32 checksum; /* see salvage.c; 0 where none is kept */
    char pad[128 - 11 * 8 - 7 * 4];
    _Alignas(128) tsq_au64 data[]; /* id, padded to 8 bytes, then the payload */
} slot;

_Static_assert(sizeof(slot) == 128, "the inline area starts at 128");

typedef struct {
    tsq_au64 word; /* live:1 | role:7 | tag:16 | generation:32; written by who holds the lock byte */
    tsq_au32 pid, guardian;
    tsq_au32 explained; /* its death is planned: what it ran was not to blame */
    tsq_au32 armed;     /* it blocks, or is about to: ring */
    char pad[64 - 8 - 4 * 4];
} participant;

_Static_assert(sizeof(participant) == 64, "one line each");

/* One that numbers its messages; see sender.c. Only who puts with senders writes these, and `pending`
 * together with a repair. */
typedef struct {
    tsq_au64 id[2];
    tsq_au64 last; /* the highest number that was accepted, 0: nobody's entry */
    tsq_au64 used; /* of `uses`, when it was last in use */
} sender;

_Static_assert(sizeof(sender) == TSQ_SENDER_ID + 16, "an id is two words");

typedef struct {
    tsq_au64 pending; /* generation:40 | slot:18 of the message that is being committed, 0: none */
    tsq_au64 number;  /* of that message */
    tsq_au64 entry;   /* of its sender */
    tsq_au64 uses;    /* so far */
    _Alignas(128) sender of[];
} sender_book;

static inline header *head_of(const tsq *q) { return (header *)(void *)q->base; }
static inline ring_ends *ring_at(const tsq *q, unsigned r) {
    return (ring_ends *)(void *)(q->base + q->at.rings) + r;
}
static inline tsq_au64 *ring_cell(const tsq *q, unsigned r, uint64_t pos) {
    return (tsq_au64 *)(void *)(q->base + q->at.ring_cells[r]) + (pos & (q->at.ring_size[r] - 1));
}
/* The caller has checked i < slots. */
static inline slot *slot_at(const tsq *q, uint32_t i) {
    return (slot *)(void *)(q->base + q->at.slots + (uint64_t)i * q->at.stride);
}
static inline participant *participant_at(const tsq *q, uint32_t i) {
    return (participant *)(void *)(q->base + q->at.participants) + i;
}
static inline tsq_au64 *hashes(const tsq *q) { return (tsq_au64 *)(void *)(q->base + q->at.hashes); }
static inline tsq_au64 *bitmap(const tsq *q, uint64_t off) { return (tsq_au64 *)(void *)(q->base + off); }
static inline tsq_au64 *completions_of(const tsq *q, uint32_t i) {
    return bitmap(q, q->at.completions) + (uint64_t)i * (q->geo.slots / 64u);
}
static inline sender_book *senders(const tsq *q) { return (sender_book *)(void *)(q->base + q->at.senders); }
static inline int participant_live(const tsq *q, uint32_t i) {
    return (int)(atomic_load_explicit(&participant_at(q, i)->word, memory_order_acquire) >> 63);
}

static inline int in_use(unsigned state) { return state >= TSQ_READY && state <= TSQ_DEAD; }

/* Result references. `where` is a block number + 1, or a code from the top of its range. */
#define WHERE_NONE 0u
#define WHERE_NO_RESULT 0xffffffu
#define WHERE_LOST 0xfffffeu
#define WHERE_DEATH 0xfffffdu
#define WHERE_EXPIRED 0xfffffcu
#define WHERE_DISCARDED 0xfffffbu
#define WHERE_TIMED_OUT 0xfffffau
#define WHERE_CODES 0xfffff0u
static inline uint64_t ref_make(unsigned attempt, uint64_t gen, uint32_t where) {
    return ((uint64_t)(attempt & 0xffu) << 56) | ((gen & 0xffffffffu) << 24) | (where & 0xffffffu);
}
static inline unsigned ref_attempt(uint64_t r) { return (unsigned)(r >> 56); }
static inline uint32_t ref_gen(uint64_t r) { return (uint32_t)(r >> 24); }
static inline uint32_t ref_where(uint64_t r) { return (uint32_t)r & 0xffffffu; }

/* ring.c */
int ring_put(tsq *q, unsigned r, uint32_t index, uint64_t gen);
int ring_peek(tsq *q, unsigned r, uint64_t *pos, uint32_t *index, uint32_t *gen12);
int ring_advance(tsq *q, unsigned r, uint64_t pos);
uint32_t ring_hints(const tsq *q, unsigned r);
void ring_mark_hinted(const tsq *q, unsigned r, uint8_t *set, uint32_t n);
void hint_slot(tsq *q, unsigned r, uint32_t index, uint64_t gen, unsigned state);
void hint_ready(tsq *q, uint32_t index, uint64_t gen);
void mark_hinted_ready(const tsq *q, uint8_t *set);

/* block.c */
enum { ROLE_REQUEST = 0, ROLE_RESULT = 1 };
typedef struct {
    uint32_t owner, role, slot, attempt;
    uint64_t gen;
} holder;
int block_write(tsq *q, const holder *h, const void *data, uint64_t len, uint32_t format, uint32_t *number);
void block_free(tsq *q, uint32_t me, uint32_t role, uint32_t slot_index, uint64_t gen, uint32_t number);
int block_read(tsq *q, uint32_t number, uint64_t len, char *out);
int block_len(tsq *q, uint32_t number, uint64_t *len, uint32_t *format);
int blocks_sweep(tsq *q, uint32_t dead, uint32_t me);
int blocks_audit(tsq *q);
static inline uint64_t block_max(const tsq *q) { return q->geo.block[q->geo.classes - 1].size; }

/* copy.c */
void copy_in(tsq_au64 *dst, const void *src, uint64_t len);
void copy_out(void *dst, const tsq_au64 *src, uint64_t len);

/* evict.c */
int make_room(tsq *q, uint32_t me); /* 1 if an outcome was forgotten, 0 if there is none to forget */
int slot_reclaim(tsq *q, uint32_t me, uint32_t slot_index, uint64_t word);
void dead_letters_trim(tsq *q, uint32_t me);
void result_drop(tsq *q, uint32_t me, uint32_t slot_index, uint64_t ref);

/* due.c */
int announce_due(tsq *q, uint64_t at_ns);
int waits_until_due(const tsq *q, uint32_t slot_index, uint64_t now_ns);

/* overdue.c */
int is_overdue(const tsq *q, uint32_t slot_index, uint64_t w);
void forget_overdue(tsq *q, uint32_t slot_index, uint64_t w);

/* sender.c */
uint32_t sender_count(const tsq_geometry *geo);
void sending_failed(tsq *q, uint32_t slot_index, uint64_t generation);

/* salvage.c */
uint32_t message_checksum(const tsq_message *m);

/* room.c */
uint32_t room_kept(const tsq *q);

/* outcome.c */
void notify_watchers(tsq *q, uint32_t slot_index, uint64_t wake[TSQ_WAKE_WORDS]);

#endif
