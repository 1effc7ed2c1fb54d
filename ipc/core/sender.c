/* Senders: messages that come in over a connection, and come again when the answer got lost.
 *
 * Who sends them numbers them; here is remembered which number of each sender was accepted last. The
 * commit of a message is the store of its slot word, so the number cannot be stored in the same step. In
 * which of the two a writer died is told by `pending`, which names slot and generation, and is
 *
 *   stored before the commit, taken back after the number (both by the writer), and
 *   taken back by the repair of a slot in WRITING, before that is FREE.
 *
 * So while it is there, the message was committed if and only if its slot is not in WRITING of this
 * generation any more: only the commit, or that repair, moves it on. Whoever writes next looks, and
 * stores the number for the dead one. What has become of the message since does not matter, and who
 * claims it has nothing to do with any of this.
 *
 * One process at a time uses this file, for the whole queue, and the next one only after it has ended or
 * is done; the caller sees to that. What others see is `pending` alone, in a repair.
 *
 * Orders: stores release and loads acquire. That keeps the writer's own steps in their order, which is
 * all that counts when it dies, as nobody looks before; and in a look beside a repair, who sees the slot
 * word that the repair (or who came after it) wrote sees `pending` taken back.
 *
 * Bounded: of those that are remembered the one that was not in use for longest goes. Its entry is
 * emptied before it gets another's id, so that no sender is ever taken for one with a higher number.
 */
#include <string.h>

#include "layout.h"

#define SLOT_BITS 18u
_Static_assert(TSQ_MAX_SLOTS <= 1u << SLOT_BITS, "a slot and a generation fit into one word");

static uint64_t load(const tsq_au64 *at) { return atomic_load_explicit(at, memory_order_acquire); }
static void store(tsq_au64 *at, uint64_t v) { atomic_store_explicit(at, v, memory_order_release); }

static uint64_t pending_of(uint32_t slot_index, uint64_t generation) {
    return generation << SLOT_BITS | slot_index;
}

/* As many as there are slots: a small queue has a small table. A power of two, as they are. */
uint32_t sender_count(const tsq_geometry *geo) {
    return geo->slots < TSQ_MAX_SENDERS ? geo->slots : TSQ_MAX_SENDERS;
}

static void use(sender_book *book, sender *s) {
    uint64_t now = load(&book->uses) + 1;
    store(&book->uses, now);
    store(&s->used, now);
}

/* Before WRITING becomes FREE, its owner being dead. Sequentially consistent, as the step after it is. */
void sending_failed(tsq *q, uint32_t slot_index, uint64_t generation) {
    uint64_t pending = pending_of(slot_index, generation);
    (void)atomic_compare_exchange_strong(&senders(q)->pending, &pending, 0);
}

/* What the last writer left when it died. May be begun again by the next. */
static void settle(tsq *q) {
    sender_book *book = senders(q);
    uint64_t pending = load(&book->pending), entry = load(&book->entry), number = load(&book->number);
    uint32_t i = (uint32_t)pending & ((1u << SLOT_BITS) - 1);
    if (!pending) return;
    if (i < q->geo.slots && entry < sender_count(&q->geo)) { /* else damaged */
        uint64_t w = load(&slot_at(q, i)->word);
        int is_open = tsq_state_of(w) == TSQ_WRITING && tsq_gen_of(w) == pending >> SLOT_BITS;
        sender *s = &book->of[entry];
        /* Still there after the word was read: it was no repair that moved the slot on. */
        if (!is_open && load(&book->pending) == pending && load(&s->last) < number) store(&s->last, number);
    }
    store(&book->pending, 0);
}

typedef struct {
    uint64_t word[2];
} id;

static id id_of(const uint8_t bytes[TSQ_SENDER_ID]) {
    id out;
    memcpy(out.word, bytes, sizeof out.word);
    return out;
}

/* The sender's entry, or else the one it would get. */
static sender *find(const tsq *q, const uint8_t bytes[TSQ_SENDER_ID], int *is_known) {
    sender *of = senders(q)->of, *unused = NULL, *oldest = NULL;
    uint32_t n = sender_count(&q->geo), start = (uint32_t)tsq_hash(bytes, TSQ_SENDER_ID);
    id wanted = id_of(bytes);
    *is_known = 1;
    for (uint32_t k = 0; k < n; k++) {
        sender *s = &of[(start + k) & (n - 1)];
        if (!load(&s->last)) {
            if (!unused) unused = s;
        } else if (load(&s->id[0]) == wanted.word[0] && load(&s->id[1]) == wanted.word[1]) {
            return s;
        } else if (!oldest || load(&s->used) < load(&oldest->used)) {
            oldest = s;
        }
    }
    *is_known = 0;
    return unused ? unused : oldest;
}

uint64_t tsq_last_from(tsq *q, const uint8_t bytes[TSQ_SENDER_ID]) {
    int is_known;
    settle(q);
    sender *s = find(q, bytes, &is_known);
    if (!is_known) return 0;
    use(senders(q), s);
    return load(&s->last);
}

/* Nobody is this sender before the number is stored. */
static void make(sender *s, const uint8_t bytes[TSQ_SENDER_ID]) {
    id new = id_of(bytes);
    store(&s->last, 0);
    store(&s->id[0], new.word[0]);
    store(&s->id[1], new.word[1]);
}

void tsq_commit_from(tsq *q, uint32_t me, tsq_lease *lease, const tsq_sender *from, tsq_call *call) {
    sender_book *book = senders(q);
    int is_known;
    settle(q);
    sender *s = find(q, from->id, &is_known);
    if (!is_known) make(s, from->id);
    use(book, s);
    store(&book->entry, (uint64_t)(s - book->of));
    store(&book->number, from->number);
    store(&book->pending, pending_of(lease->slot, tsq_gen_of(lease->word)));
    tsq_commit(q, me, lease, call);
    store(&s->last, from->number);
    store(&book->pending, 0);
}

int tsq_put_from(tsq *q, uint32_t me, const tsq_message *m, const tsq_sender *from, tsq_lease *out, tsq_call *call) {
    int rc = tsq_reserve(q, me, m, out);
    if (!rc) tsq_commit_from(q, me, out, from, call);
    return rc;
}
