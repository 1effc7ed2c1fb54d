/* The shared-memory task queue: public interface of the core.
 *
 * Any number of unrelated processes put, claim and complete messages in one
 * mapped file. The truth about a message is one 64-bit atomic word per slot;
 * rings, bitmaps and the id hashes are hints that can be rebuilt from the words.
 * There is no mutex: SIGKILL or SIGSTOP of any process at any instruction neither
 * blocks nor corrupts the others. The protocol is described in docs/protocol.md.
 *
 * The core knows no file names, no descriptors and no Python. Who to wake is
 * returned to the caller as participant indexes; ringing doorbells is its job.
 */
#ifndef TSQ_H
#define TSQ_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define TSQ_MAX_CLASSES 6u
#define TSQ_MAX_PARTICIPANTS 4096u /* index 0 means nobody */
#define TSQ_MAX_SLOTS (1u << 18)
#define TSQ_MAX_ID 200u
#define TSQ_WAKE_WORDS (TSQ_MAX_PARTICIPANTS / 64u)

typedef _Atomic uint64_t tsq_au64;
typedef _Atomic uint32_t tsq_au32;

enum tsq_state {
    TSQ_FREE = 0,
    TSQ_WRITING = 1,
    TSQ_READY = 2,
    TSQ_DELAYED = 3,
    TSQ_LEASED = 4,
    TSQ_RUNNING = 5,
    TSQ_ACKED = 6,
    TSQ_DONE = 7,
    TSQ_DEAD = 8
};

/* Results of the operations. Negative values are errors. */
enum tsq_status {
    TSQ_OK = 0,
    TSQ_EMPTY = 1,       /* nothing to claim */
    TSQ_PENDING = 2,     /* no outcome yet */
    TSQ_GONE = 3,        /* this generation has left the slot */
    TSQ_FULL = -1,       /* no free slot or block */
    TSQ_TOO_LARGE = -2,  /* larger than every block chain can be */
    TSQ_FENCED = -3,     /* the lease is not ours any more */
    TSQ_NO_MEMORY = -4,  /* private memory for a scan */
    TSQ_BAD_ARGUMENT = -5
};

/* How a message ended; kept in the result reference of its slot. */
enum tsq_outcome_kind {
    TSQ_OUTCOME_RESULT = 0,
    TSQ_OUTCOME_NO_RESULT = 1,
    TSQ_OUTCOME_LOST = 2, /* its worker died after the acknowledgement */
    TSQ_OUTCOME_DEAD = 3  /* dead letter */
};

/* Why a participant died, as far as its parent could see. */
enum tsq_cause { TSQ_CAUSE_UNKNOWN = 0, TSQ_CAUSE_SIGNAL = 1, TSQ_CAUSE_EXIT = 2 };

typedef struct {
    uint32_t slots;        /* power of two, 64 … TSQ_MAX_SLOTS */
    uint32_t inline_size;  /* bytes for id and payload in the slot, multiple of 64 */
    uint32_t participants; /* multiple of 64, up to TSQ_MAX_PARTICIPANTS */
    uint32_t classes;      /* number of block classes, sizes ascending */
    struct {
        uint32_t size;  /* bytes, multiple of 64 */
        uint32_t count; /* power of two */
    } block[TSQ_MAX_CLASSES];
} tsq_geometry;

/* Where everything lies; computed from a geometry, never read from the segment. */
typedef struct {
    uint64_t total;
    uint64_t rings, ring_cells[TSQ_MAX_CLASSES + 6];
    uint64_t ring_size[TSQ_MAX_CLASSES + 6];
    uint64_t sleeping, empty, participants, completions, hashes, slots;
    uint64_t block_words[TSQ_MAX_CLASSES], block_sizes[TSQ_MAX_CLASSES], block_data[TSQ_MAX_CLASSES];
    uint64_t stride;
} tsq_layout;

typedef struct {
    char *base;
    tsq_geometry geo;
    tsq_layout at;
} tsq;

typedef struct {
    const void *id;
    uint32_t id_len;
    const void *payload;
    uint64_t len;
    uint32_t max_deliveries; /* 0: the queue's default */
    uint64_t now_ns;         /* wall clock, to be shown and for expiry */
} tsq_message;

/* A held lease: the slot and the exact word that proves it. */
typedef struct {
    uint32_t slot;
    uint64_t word;
} tsq_lease;

typedef struct {
    uint32_t kind; /* enum tsq_outcome_kind */
    uint32_t attempts;
    uint64_t death; /* see tsq_death_* */
    uint64_t done_ns;
    uint64_t len; /* bytes of result, or of the reason of a dead letter */
} tsq_outcome;

typedef struct {
    uint32_t slot;
    uint32_t kind; /* enum tsq_repair_kind */
    uint64_t word; /* after the repair */
} tsq_repair;

enum tsq_repair_kind { TSQ_REDELIVERED = 1, TSQ_DEAD_LETTERED = 2, TSQ_RESULT_LOST = 3 };

typedef struct {
    uint32_t free, writing, ready, delayed, leased, running, acked, done, dead;
} tsq_counts;

typedef struct {
    uint32_t live, role, pid, guardian, generation, explained, tag;
} tsq_participant;

/* ---- segment ---- */
int tsq_layout_of(const tsq_geometry *geo, tsq_layout *out); /* TSQ_OK or TSQ_BAD_ARGUMENT */
void tsq_init(void *base, const tsq_geometry *geo, const tsq_layout *at, const uint8_t boot_id[16]);
/* Checks a mapped header; on refusal writes a sentence into why. Returns TSQ_OK or -1. */
int tsq_attach(tsq *q, void *base, uint64_t size, char *why, size_t why_len);
void tsq_boot_id(const tsq *q, uint8_t out[16]);

/* ---- participants ---- */
int tsq_register(tsq *q, uint32_t me, uint32_t role, uint32_t pid, uint32_t guardian, uint32_t tag);
void tsq_unregister(tsq *q, uint32_t me);
int tsq_participant_at(const tsq *q, uint32_t index, tsq_participant *out);
void tsq_explain(tsq *q, uint32_t index);
tsq_au32 *tsq_custodian(tsq *q);  /* participant that repairs, 0 while there is none */
tsq_au32 *tsq_supervisor(tsq *q); /* participant of the supervisor, 0 while there is none */
tsq_au32 *tsq_max_deliveries(tsq *q);
tsq_au32 *tsq_changes(tsq *q); /* counts registrations: the custodian looks for newcomers */

/* ---- messages ---- */
/* On TSQ_OK *lease names the committed message and *wake a worker to ring (0: none). */
int tsq_put(tsq *q, uint32_t me, const tsq_message *m, tsq_lease *out, uint32_t *wake);
int tsq_claim(tsq *q, uint32_t me, tsq_lease *out);
int tsq_claim_new(tsq *q, uint32_t me, tsq_lease *out); /* nothing that was given back */
/* id: room for TSQ_MAX_ID bytes. TSQ_TOO_LARGE: *len is more than room, call again with more.
 * TSQ_FENCED: the lease is gone. TSQ_GONE: the slot is damaged. */
int tsq_read_request(tsq *q, const tsq_lease *lease, char *id, uint32_t *id_len, void *payload,
                     uint64_t room, uint64_t *len);
int tsq_start(tsq *q, tsq_lease *lease); /* updates lease->word */
int tsq_ack(tsq *q, tsq_lease *lease);   /* updates lease->word */
/* The ends of a lease. wake: bitmap of participants whose watched message has ended. */
int tsq_complete(tsq *q, uint32_t me, const tsq_lease *lease, const void *result, uint64_t len,
                 uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]);
int tsq_finish(tsq *q, uint32_t me, const tsq_lease *lease, int keep, uint64_t now_ns,
               uint64_t wake[TSQ_WAKE_WORDS]);
int tsq_dead_letter(tsq *q, uint32_t me, const tsq_lease *lease, const void *detail, uint64_t len,
                    uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]);
int tsq_release(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t *wake);

/* ---- outcomes ---- */
int tsq_find(tsq *q, const void *id, uint32_t id_len, uint32_t *slot, uint64_t *generation);
int tsq_id_of(tsq *q, uint32_t slot, uint64_t generation, char *id, uint32_t *id_len);
uint64_t tsq_hash(const void *id, uint32_t id_len);
/* TSQ_OK, TSQ_PENDING, TSQ_GONE; TSQ_TOO_LARGE: out->len is more than room, call again with more. */
int tsq_get_outcome(tsq *q, uint32_t slot, uint64_t generation, tsq_outcome *out, void *data, uint64_t room);
void tsq_watch(tsq *q, uint32_t me, uint32_t slot);
void tsq_unwatch(tsq *q, uint32_t me, uint32_t slot); /* gave up waiting: the outcome need not be kept */
/* Takes up to n slots whose watched message may have ended; returns how many. */
uint32_t tsq_completions(tsq *q, uint32_t me, uint32_t *slots, uint32_t n);

/* ---- waking and sleeping ---- */
void tsq_sleep(tsq *q, uint32_t me, int is_empty); /* announce, then look again before blocking */
void tsq_wake_up(tsq *q, uint32_t me);             /* take the announcement back */
void tsq_set_empty(tsq *q, uint32_t me, int is_empty);
uint32_t tsq_pick_sleeper(tsq *q, uint32_t me, int empty_only);
uint32_t tsq_ready_hints(tsq *q);
uint32_t tsq_empty_others(tsq *q, uint32_t me);
void tsq_ignore_unanswering(tsq *q, uint32_t me); /* forget empty marks of workers that were woken in vain */
void tsq_arm(tsq *q, uint32_t me);                /* "ring me": set before blocking on the doorbell */
int tsq_disarm(tsq *q, uint32_t index);           /* 1 if the bell has to be rung */

/* ---- repair ---- */
/* dead must be proven dead by the caller (its lock byte taken) and stay so during the call.
 * repairs: malloc'ed list of what became of its messages; the caller frees it. */
int tsq_recover(tsq *q, uint32_t dead, uint32_t me, uint64_t cause, uint64_t now_ns,
                tsq_repair **repairs, uint32_t *n, uint64_t wake[TSQ_WAKE_WORDS]);
/* Frees outcomes older than the given ages and hints READY slots that nobody hints. */
int tsq_audit(tsq *q, uint32_t me, uint64_t now_ns, uint64_t result_ttl_ns, uint64_t dead_ttl_ns,
              uint32_t *expired, uint32_t *rehinted);
void tsq_count(const tsq *q, tsq_counts *out);

/* A death record: cause (enum tsq_cause), value (signal or exit status), tag (worker slot + 1), pid. */
#define TSQ_DEATH(cause, value, tag, pid)                                                          \
    (((uint64_t)(cause) << 56) | ((uint64_t)((value)&0xffu) << 48) |                               \
     ((uint64_t)((tag)&0xffffu) << 32) | (uint64_t)(uint32_t)(pid))

/* The slot word: state:4 | owner:12 | attempt:8 | generation:40. */
#define TSQ_GEN_MASK ((UINT64_C(1) << 40) - 1)
static inline uint64_t tsq_word(unsigned state, unsigned owner, unsigned attempt, uint64_t gen) {
    return ((uint64_t)state << 60) | ((uint64_t)(owner & 0xfffu) << 48) |
           ((uint64_t)(attempt & 0xffu) << 40) | (gen & TSQ_GEN_MASK);
}
static inline unsigned tsq_state_of(uint64_t w) { return (unsigned)(w >> 60); }
static inline unsigned tsq_owner_of(uint64_t w) { return (unsigned)(w >> 48) & 0xfffu; }
static inline unsigned tsq_attempt_of(uint64_t w) { return (unsigned)(w >> 40) & 0xffu; }
static inline uint64_t tsq_gen_of(uint64_t w) { return w & TSQ_GEN_MASK; }

#endif
