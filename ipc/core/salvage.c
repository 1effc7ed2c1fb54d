/* After a reboot: what of an old segment is whole.
 *
 * Only segments on a disk outlive a boot, and only those keep checksums. Nobody uses the old segment any
 * more, so it is read without any of the protocol; but the disk may have lost or torn any page of it, so
 * nothing in it is believed before the message's checksum fits. The new segment is not visible to anybody
 * yet, so filling it needs none either.
 */
#include <string.h>

#include "layout.h"

/* Over what tells how to deliver it, the id and the payload. */
uint32_t message_checksum(const tsq_message *m) {
    const uint64_t fields[] = {m->id_len, m->len, m->size, m->max_deliveries, m->lane, m->format,
                               m->now_ns, m->due_ns, m->expires_ns};
    uint32_t crc = tsq_crc32c(0, fields, sizeof fields);
    crc = tsq_crc32c(crc, m->id, m->id_len);
    return tsq_crc32c(crc, m->payload, m->len);
}

void tsq_keep_checksums(void *base) { atomic_store(&((header *)base)->checked, 1); }

int tsq_is_checked(const tsq *q) { return atomic_load(&head_of(q)->checked) != 0; }

/* Reads the message in a slot of a segment that nobody uses. id and payload: room for TSQ_MAX_ID and for
 * the largest block. TSQ_GONE: none is there; TSQ_FENCED: it is not whole. */
int tsq_salvage(tsq *q, uint32_t slot_index, tsq_message *m, uint64_t *word, char *id, char *payload) {
    if (slot_index >= q->geo.slots) return TSQ_BAD_ARGUMENT;
    slot *s = slot_at(q, slot_index);
    *word = atomic_load(&s->word);
    if (!in_use(tsq_state_of(*word)) || tsq_state_of(*word) == TSQ_DONE) return TSQ_GONE;
    tsq_lease lease = {.slot = slot_index, .word = *word};
    uint64_t room = block_max(q) > q->geo.inline_size ? block_max(q) : q->geo.inline_size;
    memset(m, 0, sizeof *m);
    if (tsq_read_request(q, &lease, id, &m->id_len, payload, room, &m->len)) return TSQ_FENCED;
    m->id = id;
    m->payload = payload;
    m->size = atomic_load(&s->size);
    m->max_deliveries = atomic_load(&s->max_deliveries);
    m->lane = atomic_load(&s->lane);
    m->format = atomic_load(&s->format);
    m->now_ns = atomic_load(&s->created_ns);
    m->due_ns = atomic_load(&s->due_ns);
    m->expires_ns = atomic_load(&s->expires_ns);
    return m->id_len && message_checksum(m) == atomic_load(&s->checksum) ? TSQ_OK : TSQ_FENCED;
}

/* Gives a message that has been put, and not been seen by anybody, the starts of its former life. */
void tsq_set_attempts(tsq *q, tsq_lease *lease, uint32_t attempts, uint64_t death) {
    slot *s = slot_at(q, lease->slot);
    lease->word = tsq_word(tsq_state_of(lease->word), tsq_owner_of(lease->word), attempts, tsq_gen_of(lease->word));
    atomic_store(&s->ref, ref_make(attempts, tsq_gen_of(lease->word), WHERE_NONE));
    atomic_store(&s->death, death);
    atomic_store(&s->word, lease->word);
}
