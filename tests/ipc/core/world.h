/* A small queue, other participants that work on it, and exact bookkeeping.
 *
 * The tests of the core put a participant, the victim, into some state, stop it there, and let others go
 * on. This file is the others, and the books: which message may be delivered how often, how it has to
 * end, and that no slot and no block is missing afterwards. Every byte of every payload and result
 * follows from a seed, so a mix-up of two messages shows.
 */
#ifndef WORLD_H
#define WORLD_H

#include "layout.h"

enum {
    VICTIM = 5,
    SLEEPER,
    WATCHER,
    REPAIRER,
    OTHER,
    PRODUCER,
    SECOND,
    FIRST_IN_LINE,
    NEXT_IN_LINE,
    PARTICIPANTS = 64
};
enum { SLOTS = 64, CLASSES = 3, LARGE_BLOCKS = 32 };
enum { INLINE = 40, MIDDLE = 250, LARGE = 700, LARGEST = 1024 }; /* bytes of payloads: in the slot, in a block */
enum { MAX_TRACKED = 24, NOW = 1000, LATER = 50 * NOW };         /* LATER: everything that is delayed is due */
enum { LANE = 5, UNUSED_LANE = 7 };                              /* nobody uses it but who is told to */

/* Others answer a tracked message with a result of their own, so that it shows whose was kept. */
enum { OTHERS_RESULT = 0x5eed, OTHERS_LEN = 300 };

/* How a message has to end, as far as its word told when the victim was stopped. */
typedef enum {
    ANY_END, /* no promise */
    NOT_THERE,
    TO_BE_DELIVERED,
    WITH_RESULT,
    WITHOUT_RESULT,
    LOST,
    DEAD_LETTER,
    EXPIRED,
    DISCARDED,
    TIMED_OUT
} ending;

/* A message whose fate is followed. */
typedef struct {
    char id[16];
    uint32_t seed, result_seed, max_deliveries, lane;
    uint64_t len, result_len, due, expires;
    int watched;
    tsq_lease lease; /* slot and word when last seen */
    ending expected;
    int delivered; /* to others than the victim */
} tracked;

/* What the victim says about its calls: in shared memory, because it does not come back. */
typedef struct {
    int returned; /* calls that came back */
    int finished; /* all of them */
    int rc;       /* of the last one */
    tsq_lease lease;
    tsq_call call;
    uint64_t wakes[TSQ_WAKE_WORDS];
    char id[TSQ_MAX_ID];
    uint32_t id_len;
    uint64_t len;
    tsq_outcome outcome;
    tsq_view view;
    char data[LARGEST];
} report;

extern tsq Q;
extern report *said;
extern tracked track[MAX_TRACKED];
extern unsigned tracked_count;
extern uint64_t now_ns; /* the others' clock */
extern uint64_t rung[TSQ_WAKE_WORDS]; /* by others and by repairs */

/* Prints what the test was doing (see doing()) and why that failed, and exits. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void doing(const char *mode, const char *scenario, long instruction);

void world_open(void);
void world_reset(void); /* an empty queue whose rings have gone round, all participants joined */
void world_save(void);  /* and what is tracked and said */
void world_load(void);

void fill(char *out, uint64_t len, uint32_t seed);
int filled(const char *data, uint64_t len, uint32_t seed);

tracked *tracked_put(uint64_t len, uint64_t result_len, int watched); /* committed by PRODUCER */
tracked *tracked_timed(uint64_t len, uint32_t lane, uint64_t due, uint64_t expires); /* the same, watched */
tracked *tracked_plan(uint64_t len, uint64_t result_len);             /* to be put by the victim */
void tracked_commit(tracked *t, uint32_t who);                        /* what was planned */
tracked *tracked_by_id(const char *id, uint32_t len);
int tracked_message(const tracked *t, tsq_message *m, char *buffer);
void lease_by(uint32_t who, tracked *t);   /* claims; the lane holds nothing else */
void start_by(tracked *t);
void complete_by(uint32_t who, tracked *t);
void outcomes(unsigned n, uint64_t result_len); /* n messages of no interest that have ended */
unsigned fill_up(uint64_t len); /* puts messages of no interest until there is no room; how many */
int view_is_of_one_message(const tsq_view *view);

void traffic(unsigned cycles); /* others put, claim, start and end messages of every size; drains */
void repair(uint32_t dead, uint32_t by);
void drain(void);  /* others take and end everything that is ready */
void custodian(void); /* looks at what is due, if it was told that something is */
void settle(void); /* everything that waits, however long, is delivered or expires */

void announced(void); /* the custodian was told of every time that it has to look at */
void line_served(void); /* nobody stands in line for room that is there */
void observe(void); /* from the words: what each tracked message has to come to */
void watch_all(void); /* observe(), and keep from eviction what others will complete */
void outcomes_held(void);   /* no outcome that is there lies in a block that is free */
void outcomes_intact(void); /* whatever outcome is there has its own bytes */
void verify_once(const tracked *t); /* it ended once, with bytes of the victim or of the others */
void verify(void);  /* that it came to that */
void forget_outcomes(void);   /* without an audit, which would also repair */
void all_accounted_for(void); /* no slot and no block is missing, and each can be had exactly once */

#endif
