"""The core, broken on purpose: each a mistake that is easy to make, and where it has to show.

A test that cannot tell these from the real thing proves nothing. Some escaped at first, because a
repair hid what an operation did wrong: the reason why `freeze` never repairs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file of the core, and the run of stepkill that must fail with it."""

    name: str
    file: str
    old: str
    new: str
    mode: str
    scenario: str

    def __str__(self) -> str:
        return self.name


MUTANTS = (
    Mutant(
        "the head moves before the message is leased",
        "lease.c",
        """\
                if (!atomic_compare_exchange_strong(&slot_at(q, i)->word, &w, mine)) continue;
                (void)ring_advance(q, r, pos);
""",
        """\
                (void)ring_advance(q, r, pos);
                if (!atomic_compare_exchange_strong(&slot_at(q, i)->word, &w, mine)) continue;
""",
        "kill",
        "claim",
    ),
    Mutant(
        "the head moves before the slot is taken",
        "put.c",
        """\
                if (!atomic_compare_exchange_strong(&s->word, &w, mine)) continue;
                (void)ring_advance(q, RING_FREE, pos);
""",
        """\
                (void)ring_advance(q, RING_FREE, pos);
                if (!atomic_compare_exchange_strong(&s->word, &w, mine)) continue;
""",
        "kill",
        "put",
    ),
    Mutant(
        "the head moves before the block is taken",
        "block.c",
        """\
                if (!atomic_compare_exchange_strong(block_word(q, c, i), &w, held)) continue;
                (void)ring_advance(q, RING_BLOCK + c, pos);
""",
        """\
                (void)ring_advance(q, RING_BLOCK + c, pos);
                if (!atomic_compare_exchange_strong(block_word(q, c, i), &w, held)) continue;
""",
        "kill",
        "put-block",
    ),
    Mutant(
        "the hint is published before the commit",
        "put.c",
        """\
    atomic_store(&s->word, ready);
    (void)ring_put(q, RING_LANE, i, tsq_gen_of(w));
""",
        """\
    (void)ring_put(q, RING_LANE, i, tsq_gen_of(w));
    atomic_store(&s->word, ready);
""",
        "freeze",
        "put",
    ),
    Mutant(
        "a cell is filled in two steps",
        "ring.c",
        """\
        if (atomic_compare_exchange_strong(cell, &v, hint)) {
            (void)help(&e->tail, tail);
            return TSQ_OK;
        }
""",
        """\
        if (help(&e->tail, tail)) {
            atomic_store(cell, hint);
            return TSQ_OK;
        }
""",
        "kill",
        "put",
    ),
    Mutant(
        "a committed message without a hint is not rolled forward",
        "recover.c",
        "        if (!hinted(r->lane, i)) (void)ring_put(r->q, RING_LANE, i, tsq_gen_of(w));\n",
        "",
        "kill",
        "put",
    ),
    Mutant(
        "a completion does not look whose generation it is",
        "lease.c",
        "    return atomic_compare_exchange_strong("
        "&slot_at(q, lease->slot)->word, &w, to) ? TSQ_OK : TSQ_FENCED;\n",
        "    atomic_store(&slot_at(q, lease->slot)->word, to + (w & 0));\n    return TSQ_OK;\n",
        "fence",
        "complete",
    ),
    Mutant(
        "a late result replaces the reference of a later attempt",
        "lease.c",
        "        if (ref_gen(seen) != ref_gen(mine) || ref_attempt(seen) > ref_attempt(mine)) "
        "return TSQ_FENCED;\n",
        "        if (ref_gen(seen) != ref_gen(mine)) return TSQ_FENCED;\n",
        "fence",
        "complete-table",
    ),
    Mutant(
        "the request's blocks go before the outcome is there",
        "lease.c",
        "    rc = conclude(q, lease, TSQ_DONE, where, now_ns);\n",
        "    drop_request(q, me, lease, extent);\n"
        "    rc = conclude(q, lease, TSQ_DONE, where, now_ns);\n",
        "kill",
        "complete",
    ),
    Mutant(
        "an outcome's blocks go before its generation does",
        "outcome.c",
        """\
    if (!atomic_compare_exchange_strong(&s->word, &w, taken)) return 0;
    result_drop(q, me, slot_index, atomic_load_explicit(&s->ref, memory_order_acquire));
""",
        """\
    result_drop(q, me, slot_index, atomic_load_explicit(&s->ref, memory_order_acquire));
    if (!atomic_compare_exchange_strong(&s->word, &w, taken)) return 0;
""",
        "kill",
        "put-evicting",
    ),
    Mutant(
        "a reader does not look again",
        "outcome.c",
        "    if (rc == TSQ_GONE || "
        "atomic_load_explicit(&s->word, memory_order_acquire) != w) return TSQ_GONE;\n",
        "    if (rc == TSQ_GONE) return TSQ_GONE;\n",
        "freeze",
        "read",
    ),
    Mutant(
        "a table goes before the blocks it lists",
        "block.c",
        """\
    uint64_t len = atomic_load_explicit(block_size(q, c, i), memory_order_acquire);
    uint32_t size = q->geo.block[c].size;
    if (c ==""",
        """\
    uint64_t len = atomic_load_explicit(block_size(q, c, i), memory_order_acquire);
    uint32_t size = q->geo.block[c].size;
    block_drop(q, me, c, i, head);
    if (c ==""",
        "kill",
        "put-evicting",
    ),
    Mutant(
        "what a half forgotten outcome held is not freed",
        "recover.c",
        "    if (ref_gen(ref) != (uint32_t)tsq_gen_of(w)) result_drop(r->q, r->me, i, ref);\n",
        "    (void)ref;\n",
        "kill",
        "put-evicting",
    ),
    Mutant(
        "a freed block without a hint is not hinted",
        "block.c",
        "            if (!((hinted[i / 8] >> (i % 8)) & 1)) "
        "(void)ring_put(q, RING_BLOCK + c, i, 0);\n",
        "",
        "kill",
        "complete",
    ),
    Mutant(
        "a result that was not committed is kept by who takes the index over",
        "block.c",
        "           tsq_owner_of(v) == dead && where != WHERE_NONE && where < WHERE_CODES;\n",
        "           tsq_owner_of(v) == dead + 0 * where;\n",
        "kill",
        "complete-acked",
    ),
    Mutant(
        "the marks of a dead sleeper stay",
        "recover.c",
        "        atomic_fetch_and(&bitmap(q, q->at.sleeping)[dead / 64], mask);\n",
        "",
        "kill",
        "sleep-claim",
    ),
    Mutant(
        "a repair wakes nobody",
        "recover.c",
        "            if (p != dead && participant_live(q, p)) "
        "wake[p / 64] |= UINT64_C(1) << (p % 64);\n",
        "            (void)wake[p / 64];\n",
        "kill",
        "put",
    ),
    Mutant(
        "those who wait are not told of an end that the dead one reached",
        "recover.c",
        """\
    case TSQ_DEAD:
        notify_watchers(r->q, i, r->wake);
""",
        "    case TSQ_DEAD:\n",
        "kill",
        "complete",
    ),
    Mutant(
        "an acknowledged message runs again",
        "recover.c",
        "    case TSQ_ACKED: conclude(r, i, w, TSQ_DONE, WHERE_LOST); break;\n",
        "    case TSQ_ACKED: redeliver(r, i, w, tsq_attempt_of(w)); break;\n",
        "kill",
        "ack",
    ),
    Mutant(
        "a message that kills its workers runs for ever",
        "recover.c",
        "    else if (attempt >= limit) conclude(r, i, w, TSQ_DEAD, WHERE_DEATH);\n",
        "    else if (attempt > limit + 1000) conclude(r, i, w, TSQ_DEAD, WHERE_DEATH);\n",
        "kill",
        "recover",
    ),
    Mutant(
        "a reader's outcome is forgotten although it is waited for",
        "evict.c",
        "            if (valid && state == TSQ_DONE && awaited(q, s, w)) {\n",
        "            if (valid && state == TSQ_FREE && awaited(q, s, w)) {\n",
        "kill",
        "put-sparing-awaited",
    ),
)
