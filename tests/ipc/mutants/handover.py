"""Broken: how a message gets in and to a worker. Slots and blocks, rings and their hints."""

from tests.ipc.mutants.mutant import Mutant

HANDOVER = (
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
        "freeze",
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
        "    atomic_store(&s->word, lease->word);\n",
        """\
    if (!delayed) hint_ready(q, lease->slot, gen);
    atomic_store(&s->word, lease->word);
    if (!delayed) return;
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
        "        if (!hinted(r->lane, i)) hint_ready(r->q, i, tsq_gen_of(w));\n",
        "",
        "kill",
        "put",
    ),
    Mutant(
        "a freed block without a hint is not hinted",
        "block.c",
        "            uint64_t now = free_word(me);\n"
        "            if (!((hinted[i / 8] >> (i % 8)) & 1)) "
        "(void)ring_put(q, RING_BLOCK + c, i, 0);\n",
        "            uint64_t now = free_word(me);\n",
        "kill",
        "complete",
    ),
    Mutant(
        "a lane is marked as used after the hint",
        "ring.c",
        """\
    if (!(atomic_load(used) >> lane & 1)) atomic_fetch_or(used, UINT32_C(1) << lane);
    hint_slot(q, RING_LANE + lane, index, gen, TSQ_READY);
""",
        """\
    hint_slot(q, RING_LANE + lane, index, gen, TSQ_READY);
    if (!(atomic_load(used) >> lane & 1)) atomic_fetch_or(used, UINT32_C(1) << lane);
""",
        "kill",
        "put-new-lane",
    ),
    Mutant(
        "a full lane takes no hint",
        "ring.c",
        "    for (uint64_t tries = q->at.ring_size[r]; tries && ring_put(q, r, "
        "index, gen); tries--) {\n",
        "    for (uint64_t tries = 1; tries && ring_put(q, r, index, gen); tries--) {\n",
        "freeze",
        "put-full-lane",
    ),
    Mutant(
        "a full lane that others emptied takes no hint",
        "ring.c",
        "        if (!ring_peek(q, r, &pos, &k, &gen12)) continue;",
        "        if (!ring_peek(q, r, &pos, &k, &gen12)) return;",
        "freeze",
        "put-full-lane",
    ),
    Mutant(
        "a hint that was taken away to be put back is not missed",
        "recover.c",
        "            else if (tsq_state_of(w) == TSQ_READY && !hinted(r.lane, i)) "
        "hint_ready(q, i, tsq_gen_of(w));\n",
        "",
        "kill",
        "put-full-lane",
    ),
    Mutant(
        "what was given back is not hinted",
        "lease.c",
        "    hint_slot(q, RING_AGAIN, lease->slot, tsq_gen_of(lease->word), TSQ_READY);\n",
        "",
        "freeze",
        "release",
    ),
    Mutant(
        "a message keeps the block of the slot's last one",
        "put.c",
        "    atomic_store_explicit(&s->block, 0, memory_order_relaxed);\n",
        "",
        "kill",
        "put",
    ),
    Mutant(
        "what is given up keeps its block",
        "put.c",
        "    if (block) block_free(q, me, ROLE_REQUEST, lease->slot, tsq_gen_of(w), block - 1);\n",
        "    (void)block, (void)me;\n",
        "freeze",
        "reserve-give-up",
    ),
    Mutant(
        "what is given up is not hinted",
        "put.c",
        "        (void)ring_put(q, RING_FREE, lease->slot, 0);\n",
        "        return;\n",
        "freeze",
        "reserve-give-up",
    ),
)
