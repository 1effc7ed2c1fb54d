/* Processes that put, run and keep messages, and a ledger of each message's story, in shared memory.
 *
 * An entry is written before and after every call, so that afterwards what the queue did can be told
 * apart from what the kills allow: a message may come again only if its worker was killed while it ran
 * (or gave it back). Every byte of a message follows from its number.
 */
#ifndef LOAD_H
#define LOAD_H

#include "layout.h"

enum { SLOTS = 256, LEDGER = 1 << 22, KEEPER = 1, FIRST = 10, LAST = 1000 };
enum { MILLISECOND = 1000000 };
enum { RUNNING, NO_MORE_PUTS, EMPTY_IT, BROKEN };

/* All counters, because several processes may write about one message over time. */
typedef struct {
    _Atomic uint8_t committed; /* put came back */
    _Atomic uint8_t delivered; /* started */
    _Atomic uint8_t again;     /* how often a kill or a giving back allows one more delivery */
    _Atomic uint8_t ended;
    _Atomic uint8_t withdrawn; /* its producer tries to take it back, or gave it up before the commit */
} entry;

typedef struct {
    _Atomic int stage;
    tsq_au32 next, base, custodian; /* base: the number that the ledger begins with */
    tsq_au64 outcomes_read, expired, discarded, delayed, dead_letters, blocked, overslept, max_latency_ns;
    tsq_au64 audit_at;
    tsq_au32 bells[TSQ_MAX_PARTICIPANTS]; /* futexes: the doorbells */
} shared_state;

extern tsq Q;
extern entry *ledger;
extern shared_state *state;

uint64_t wall_ns(void);
entry *entry_of(uint32_t n);
uint32_t number_of(const char *id, uint32_t len);
uint32_t deliveries_of(uint32_t n);
int may_expire(uint32_t n);
_Noreturn void broken(const char *what, uint32_t n);
void ring(uint32_t participant);
void ring_all(const uint64_t wake[TSQ_WAKE_WORDS]);

/* What the processes do until there is nothing left to do; they exit. */
_Noreturn void produce(uint32_t me);
_Noreturn void work(uint32_t me);
_Noreturn void keep(uint32_t me); /* the custodian: moves what is due, forgets what is old */

#endif
