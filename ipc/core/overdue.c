/* Time limits: a message whose worker is about to be killed for it.
 *
 * It is marked before the kill, so that whoever repairs after the death ends it as timed out instead of
 * giving it back. The mark is the word of the start that it is meant for. It takes nothing from the
 * worker: if that completes the message first, or gives it back, the mark fits no word any more.
 */
#include <string.h>

#include "layout.h"

/* Acknowledging does not begin another start. */
static uint64_t start_of(uint64_t w) {
    return tsq_word(TSQ_RUNNING, tsq_owner_of(w), tsq_attempt_of(w), tsq_gen_of(w));
}

int is_overdue(const tsq *q, uint32_t slot_index, uint64_t w) {
    return atomic_load(&slot_at(q, slot_index)->overdue) == start_of(w);
}

/* Before a start with the word w: a worker that gave the message back and claimed it again comes to the
 * same word a second time. A mark of any other start is left alone. */
void forget_overdue(tsq *q, uint32_t slot_index, uint64_t w) {
    tsq_au64 *mark = &slot_at(q, slot_index)->overdue;
    uint64_t mine = start_of(w);
    if (atomic_load_explicit(mark, memory_order_relaxed) == mine) (void)atomic_compare_exchange_strong(mark, &mine, 0);
}

static int is_running_by(uint64_t w, uint32_t owner) {
    return tsq_owner_of(w) == owner && (tsq_state_of(w) == TSQ_RUNNING || tsq_state_of(w) == TSQ_ACKED);
}

int tsq_time_out(tsq *q, uint32_t owner, const void *id, uint32_t id_len) {
    if (!owner || !id_len || id_len > TSQ_MAX_ID) return TSQ_BAD_ARGUMENT;
    uint64_t hash = tsq_hash(id, id_len);
    int rc = TSQ_FENCED;
    for (uint32_t i = 0; i < q->geo.slots; i++) {
        char seen[TSQ_MAX_ID];
        uint32_t seen_len;
        if (atomic_load_explicit(&hashes(q)[i], memory_order_relaxed) != hash) continue;
        uint64_t w = atomic_load_explicit(&slot_at(q, i)->word, memory_order_acquire);
        if (!is_running_by(w, owner) || tsq_id_of(q, i, tsq_gen_of(w), seen, &seen_len)) continue;
        if (seen_len != id_len || memcmp(seen, id, id_len)) continue;
        atomic_store(&slot_at(q, i)->overdue, start_of(w));
        rc = TSQ_OK;
    }
    return rc;
}
