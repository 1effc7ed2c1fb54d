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
#define TSQ_SENDER_ID 16u /* bytes */
#define TSQ_MAX_SENDERS 1024u
#define TSQ_LANES 10u /* priorities 0 … 9, higher ones first */
#define TSQ_MAX_RINGS (6u + TSQ_LANES + TSQ_MAX_CLASSES)
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
    TSQ_TOO_LARGE = -2,  /* larger than the largest block */
    TSQ_FENCED = -3,     /* the lease is not ours any more */
    TSQ_NO_MEMORY = -4,  /* private memory for a scan */
    TSQ_BAD_ARGUMENT = -5
};

/* How a message ended; kept in the result reference of its slot. */
enum tsq_outcome_kind {
    TSQ_OUTCOME_RESULT = 0,
    TSQ_OUTCOME_NO_RESULT = 1,
    TSQ_OUTCOME_LOST = 2, /* its worker died after the acknowledgement */
    TSQ_OUTCOME_DEAD = 3, /* dead letter */
    TSQ_OUTCOME_EXPIRED = 4,   /* its time was over before it was started */
    TSQ_OUTCOME_DISCARDED = 5, /* somebody removed it before it was started */
    TSQ_OUTCOME_TIMED_OUT = 6, /* its worker was killed because it took too long */
    TSQ_FORGET = 7             /* for tsq_finish: leave no outcome */
};

/* Why a participant died, as far as its parent could see; the high bits say more (see DeathCause). */
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
    uint64_t rings, ring_cells[TSQ_MAX_RINGS];
    uint64_t ring_size[TSQ_MAX_RINGS];
    uint64_t sleeping, empty, waiting, participants, completions, hashes, slots, senders;
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
    uint64_t size;           /* bytes in all, what lies elsewhere included: to be shown */
    uint32_t max_deliveries; /* 0: the queue's default */
    uint32_t lane;           /* 0 … TSQ_LANES - 1 */
    uint32_t format;         /* how payload is to be read, 0 … 255; means nothing to the core */
    uint32_t privileged;     /* may take the slots that are kept for redelivery */
    uint64_t now_ns;         /* wall clock */
    uint64_t due_ns;         /* not before; 0: at once */
    uint64_t expires_ns;     /* not started after; 0: no limit */
} tsq_message;

/* Whose message it is, of those who number theirs. */
typedef struct {
    uint8_t id[TSQ_SENDER_ID];
    uint64_t number; /* 1 … */
} tsq_sender;

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
    uint32_t format; /* of the result */
} tsq_outcome;

/* A message as it is seen without taking it. */
typedef struct {
    uint64_t word, death, created_ns, done_ns, due_ns, expires_ns, size;
    uint32_t id_len, lane, format, max_deliveries, kind; /* kind: of the outcome */
    char id[TSQ_MAX_ID];
} tsq_view;

typedef struct {
    uint32_t slot;
    uint32_t kind; /* enum tsq_repair_kind */
    uint64_t word; /* after the repair */
} tsq_repair;

enum tsq_repair_kind { TSQ_REDELIVERED = 1, TSQ_DEAD_LETTERED = 2, TSQ_RESULT_LOST = 3, TSQ_TIMED_OUT = 4 };

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
tsq_au32 *tsq_deputy(tsq *q);     /* participant that repairs when the custodian does not */
tsq_au32 *tsq_supervisor(tsq *q); /* participant of the supervisor, 0 while there is none */
tsq_au32 *tsq_max_deliveries(tsq *q);
tsq_au32 *tsq_changes(tsq *q); /* counts registrations: the custodian looks for newcomers */

/* Nanoseconds that an outcome is kept, 0: until its room is needed. */
tsq_au64 *tsq_result_ttl(tsq *q);
/* The earliest time, not looked at yet, at which a message is due or expires; ~0: none. */
tsq_au64 *tsq_next_due(tsq *q);

/* ---- messages ---- */
/* Whom to ring. sleeper: a worker (0: none). due: the custodian has to look at next_due. */
typedef struct {
    uint32_t sleeper, due;
} tsq_call;
/* tsq_put is tsq_reserve and tsq_commit. In between the message has its slot and generation, which
 * name what is kept outside the segment, and is visible to nobody. */
int tsq_put(tsq *q, uint32_t me, const tsq_message *m, tsq_lease *out, tsq_call *call);
int tsq_fits(const tsq *q, uint32_t id_len, uint64_t len); /* into a slot, or the largest block */
int tsq_reserve(tsq *q, uint32_t me, const tsq_message *m, tsq_lease *out);
void tsq_commit(tsq *q, uint32_t me, tsq_lease *lease, tsq_call *call); /* updates lease->word */
void tsq_give_up(tsq *q, uint32_t me, const tsq_lease *lease);
/* The same for one who numbers its messages, and the highest number of its that is in the queue, or was;
 * 0: none is remembered. from->number has to be higher than that. By one process at a time, for the whole
 * queue: see sender.c. */
uint64_t tsq_last_from(tsq *q, const uint8_t id[TSQ_SENDER_ID]);
int tsq_put_from(tsq *q, uint32_t me, const tsq_message *m, const tsq_sender *from, tsq_lease *out, tsq_call *call);
void tsq_commit_from(tsq *q, uint32_t me, tsq_lease *lease, const tsq_sender *from, tsq_call *call);
int tsq_claim(tsq *q, uint32_t me, tsq_lease *out);
int tsq_claim_new(tsq *q, uint32_t me, tsq_lease *out); /* nothing that was given back */
/* Takes this message if it waits, READY or DELAYED, else TSQ_FENCED. */
int tsq_take(tsq *q, uint32_t me, uint32_t slot, uint64_t generation, tsq_lease *out);
/* id: room for TSQ_MAX_ID bytes. TSQ_TOO_LARGE: *len is more than room, call again with more.
 * TSQ_FENCED: the lease is gone. TSQ_GONE: the slot is damaged. */
int tsq_read_request(tsq *q, const tsq_lease *lease, char *id, uint32_t *id_len, void *payload,
                     uint64_t room, uint64_t *len);
uint32_t tsq_format_of(tsq *q, const tsq_lease *lease);
uint64_t tsq_expiry_of(tsq *q, const tsq_lease *lease);
int tsq_start(tsq *q, tsq_lease *lease); /* updates lease->word */
int tsq_ack(tsq *q, tsq_lease *lease);   /* updates lease->word */
/* Before `owner` is killed: what it runs under this id ends as timed out with it, unless it ends first.
 * TSQ_FENCED: it runs no such message. */
int tsq_time_out(tsq *q, uint32_t owner, const void *id, uint32_t id_len);
/* The ends of a lease. wake: bitmap of participants whose watched message has ended, and of one who
 * waits for room. */
int tsq_complete(tsq *q, uint32_t me, const tsq_lease *lease, const void *result, uint64_t len,
                 uint32_t format, uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]);
/* how: TSQ_OUTCOME_NO_RESULT, _EXPIRED, _DISCARDED or TSQ_FORGET. */
int tsq_finish(tsq *q, uint32_t me, const tsq_lease *lease, uint32_t how, uint64_t now_ns,
               uint64_t wake[TSQ_WAKE_WORDS]);
int tsq_dead_letter(tsq *q, uint32_t me, const tsq_lease *lease, const void *detail, uint64_t len,
                    uint64_t now_ns, uint64_t wake[TSQ_WAKE_WORDS]);
int tsq_release(tsq *q, uint32_t me, const tsq_lease *lease, uint64_t now_ns, tsq_call *call);
/* Makes due messages READY and ends expired ones; *next_ns: when to look again (~0: never). */
void tsq_run_due(tsq *q, uint32_t me, uint64_t now_ns, uint64_t *next_ns, uint32_t *moved,
                 uint32_t *expired, uint64_t wake[TSQ_WAKE_WORDS]);
/* The custodian says when it will look next; 1: it has to plan again. */
int tsq_plan_due(tsq *q, uint64_t at_ns);

/* ---- outcomes ---- */
int tsq_find(tsq *q, const void *id, uint32_t id_len, uint32_t *slot, uint64_t *generation);
int tsq_id_of(tsq *q, uint32_t slot, uint64_t generation, char *id, uint32_t *id_len);
uint64_t tsq_hash(const void *id, uint32_t id_len);
/* TSQ_OK, TSQ_PENDING, TSQ_GONE; TSQ_TOO_LARGE: out->len is more than room, call again with more. */
int tsq_get_outcome(tsq *q, uint32_t slot, uint64_t generation, tsq_outcome *out, void *data, uint64_t room);
void tsq_watch(tsq *q, uint32_t me, uint32_t slot);
void tsq_unwatch(tsq *q, uint32_t me, uint32_t slot); /* gave up waiting: the outcome need not be kept */
/* Forgets an outcome or a dead letter. unawaited: only if nobody alive waits for it. */
int tsq_forget(tsq *q, uint32_t me, uint32_t slot, uint64_t generation, int unawaited);
/* TSQ_GONE: the slot holds no message. */
int tsq_look(tsq *q, uint32_t slot, tsq_view *out);
/* Takes up to n slots whose watched message may have ended; returns how many. */
uint32_t tsq_completions(tsq *q, uint32_t me, uint32_t *slots, uint32_t n);

int tsq_has_completions(tsq *q, uint32_t me);

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

/* ---- waiting for room ---- */
void tsq_queue_up(tsq *q, uint32_t me);  /* get in line, then try again before blocking */
void tsq_step_out(tsq *q, uint32_t me);
int tsq_is_waiting(tsq *q, uint32_t me); /* 0: called, or never in line */
/* Calls the first in line if there is room: after what makes room but ends no lease. */
void tsq_call_next(tsq *q, uint64_t wake[TSQ_WAKE_WORDS]);

/* ---- repair ---- */
/* dead must be proven dead by the caller (its lock byte taken) and stay so during the call.
 * repairs: malloc'ed list of what became of its messages; the caller frees it. */
int tsq_recover(tsq *q, uint32_t dead, uint32_t me, uint64_t cause, uint64_t now_ns,
                tsq_repair **repairs, uint32_t *n, uint64_t wake[TSQ_WAKE_WORDS]);
/* Frees outcomes older than the given ages and hints READY slots that nobody hints. */
int tsq_audit(tsq *q, uint32_t me, uint64_t now_ns, uint64_t dead_ttl_ns, uint32_t *expired,
              uint32_t *rehinted);
void tsq_count(const tsq *q, tsq_counts *out);

/* ---- after a reboot ---- */
uint32_t tsq_crc32c(uint32_t crc, const void *data, uint64_t len);
void tsq_keep_checksums(void *base); /* of a new segment: it may outlive the boot */
int tsq_is_checked(const tsq *q);
int tsq_salvage(tsq *q, uint32_t slot, tsq_message *m, uint64_t *word, char *id, char *payload);
void tsq_set_attempts(tsq *q, tsq_lease *lease, uint32_t attempts, uint64_t death);

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
