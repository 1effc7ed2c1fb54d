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
        "complete-large",
    ),
    Mutant(
        "the request's block goes before the outcome is there",
        "lease.c",
        "    int rc = conclude_with(q, me, lease, TSQ_DONE, result, len, format, now_ns);\n",
        """\
    drop_request(q, me, lease, block);
    int rc = conclude_with(q, me, lease, TSQ_DONE, result, len, format, now_ns);
""",
        "kill",
        "complete-large",
    ),
    Mutant(
        "an outcome's block goes before its generation does",
        "evict.c",
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
        "            uint64_t now = free_word(me);\n"
        "            if (!((hinted[i / 8] >> (i % 8)) & 1)) "
        "(void)ring_put(q, RING_BLOCK + c, i, 0);\n",
        "            uint64_t now = free_word(me);\n",
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
        "    case TSQ_ACKED: conclude(r, i, w, TSQ_DONE, "
        "is_overdue(r->q, i, w) ? WHERE_TIMED_OUT : WHERE_LOST); break;\n",
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
        "            if (valid && awaited(q, s, w)) {\n",
        "            if (valid && !q && awaited(q, s, w)) {\n",
        "kill",
        "put-sparing-awaited",
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
        "a time is announced before the commit",
        "put.c",
        """\
    atomic_store(&s->word, lease->word);
    if (delayed || expires) {
        uint64_t at = !delayed || (expires && expires < due) ? expires : due;
        call->due = (uint32_t)announce_due(q, at);
    }
""",
        """\
    if (delayed || expires) {
        uint64_t at = !delayed || (expires && expires < due) ? expires : due;
        call->due = (uint32_t)announce_due(q, at);
    }
    atomic_store(&s->word, lease->word);
""",
        "freeze",
        "put-delayed",
    ),
    Mutant(
        "only delays are announced",
        "put.c",
        "    if (delayed || expires) {\n",
        "    if (delayed) {\n",
        "freeze",
        "put-expiring",
    ),
    Mutant(
        "a repair has nobody look at what is due",
        "recover.c",
        "        (void)announce_due(q, 0);\n",
        "",
        "kill",
        "put-delayed",
    ),
    Mutant(
        "a look at what is due takes the time away at its end",
        "due.c",
        "    if (next != UINT64_MAX) (void)announce_due(q, next);\n",
        """\
    atomic_exchange(tsq_next_due(q), UINT64_MAX);
    if (next != UINT64_MAX) (void)announce_due(q, next);
""",
        "freeze",
        "run-due",
    ),
    Mutant(
        "a look at what is due does not take the time away",
        "due.c",
        "    atomic_exchange(tsq_next_due(q), UINT64_MAX);\n",
        "",
        "freeze",
        "run-due",
    ),
    Mutant(
        "a look forgets what is not due yet",
        "due.c",
        "    if (next != UINT64_MAX) (void)announce_due(q, next);\n",
        "",
        "freeze",
        "run-due",
    ),
    Mutant(
        "what became due is delivered by each who looks",
        "due.c",
        "    if (!atomic_compare_exchange_strong(&slot_at(q, i)->word, &w, to)) return 0;\n",
        "    if (w) atomic_store(&slot_at(q, i)->word, to);\n",
        "freeze",
        "run-due",
    ),
    Mutant(
        "what became due is not hinted",
        "due.c",
        "    hint_ready(q, i, tsq_gen_of(to));\n",
        "",
        "freeze",
        "run-due",
    ),
    Mutant(
        "what was taken before it was due is given back as ready",
        "due.c",
        "    return atomic_load_explicit(&slot_at(q, slot_index)->due_ns, "
        "memory_order_relaxed) > now_ns;\n",
        "    return 0 * (slot_at(q, slot_index)->due_ns > now_ns);\n",
        "kill",
        "discard-delayed",
    ),
    Mutant(
        "what was given back is not announced",
        "lease.c",
        "    if (at) call->due = (uint32_t)announce_due(q, at);\n",
        "    if (at) call->due = 0;\n",
        "freeze",
        "release-leased",
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
        "a late result replaces the reference of a later message",
        "lease.c",
        "        if (ref_gen(seen) != ref_gen(mine) || ref_attempt(seen) > "
        "ref_attempt(mine)) return TSQ_FENCED;\n",
        "        if (ref_attempt(seen) > ref_attempt(mine)) return TSQ_FENCED;\n",
        "fence",
        "complete-large",
    ),
    Mutant(
        "a start that does not count keeps its reference",
        "recover.c",
        "        atomic_store_explicit(&s->ref, ref_make(before, tsq_gen_of(w), "
        "WHERE_NONE), memory_order_release);\n",
        "",
        "kill",
        "recover-explained",
    ),
    Mutant(
        "those in line are called before the room is there",
        "lease.c",
        """\
    if (where) hint_slot(q, RING_DONE, lease->slot, tsq_gen_of(lease->word), TSQ_DONE);
    else (void)ring_put(q, RING_FREE, lease->slot, 0);
    tsq_call_next(q, wake);
""",
        """\
    tsq_call_next(q, wake);
    if (where) hint_slot(q, RING_DONE, lease->slot, tsq_gen_of(lease->word), TSQ_DONE);
    else (void)ring_put(q, RING_FREE, lease->slot, 0);
""",
        "kill",
        "finish-calling",
    ),
    Mutant(
        "who stands in line only in the ring is not called",
        "room.c",
        "    if (!(atomic_fetch_or(waiting_word(q, me), bit) & bit)) "
        "(void)ring_put(q, RING_ROOM, me, 0);\n",
        "    if (!(atomic_load(waiting_word(q, me)) & bit)) (void)ring_put(q, RING_ROOM, me, 0);\n",
        "freeze",
        "line-up",
    ),
    Mutant(
        "who stands in line and not in the ring is not called",
        "room.c",
        "        if (tsq_is_waiting(q, i) && call(q, i, wake)) return;\n",
        "        if (i && !q && call(q, i, wake)) return;\n",
        "kill",
        "complete-calling",
    ),
    Mutant(
        "the dead stay in line",
        "recover.c",
        "        tsq_step_out(q, dead);\n",
        "",
        "kill",
        "line-up",
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
    Mutant(
        "a slot is taken from an outcome within its generation",
        "evict.c",
        "taken = tsq_word(TSQ_WRITING, me, 0, gen + 1), w = word;\n",
        "taken = tsq_word(TSQ_WRITING, me, 0, gen), w = word;\n",
        "kill",
        "put-evicting",
    ),
    Mutant(
        "a dead letter keeps its request",
        "evict.c",
        "    if (block && tsq_state_of(word) == TSQ_DEAD) block_free(q, me, "
        "ROLE_REQUEST, slot_index, gen, block - 1);\n",
        "    (void)block;\n",
        "freeze",
        "forget-dead",
    ),
    Mutant(
        "who looks does not look again",
        "outcome.c",
        "        if (atomic_load_explicit(&s->word, memory_order_acquire) == w) "
        "return damaged ? TSQ_GONE : TSQ_OK;\n",
        "        if (w) return damaged ? TSQ_GONE : TSQ_OK;\n",
        "freeze",
        "look",
    ),
    Mutant(
        "those who wait are not told that it was discarded",
        "lease.c",
        """\
    if (rc) return rc;
    notify_watchers(q, lease->slot, wake);
    drop_request(q, me, lease, block);
    if (where)""",
        """\
    if (rc) return rc;
    drop_request(q, me, lease, block);
    if (where)""",
        "freeze",
        "finish-discarded",
    ),
    Mutant(
        "what is marked is given back all the same",
        "recover.c",
        "    if (is_overdue(r->q, i, w)) conclude(r, i, w, TSQ_DONE, WHERE_TIMED_OUT);\n",
        "    if (!r) conclude(r, i, w, TSQ_DONE, WHERE_TIMED_OUT);\n",
        "kill",
        "time-out",
    ),
    Mutant(
        "what was acknowledged has not timed out",
        "recover.c",
        "is_overdue(r->q, i, w) ? WHERE_TIMED_OUT : WHERE_LOST); break;\n",
        "WHERE_LOST); break;\n",
        "kill",
        "ack-overdue",
    ),
    Mutant(
        "a planned death excuses what takes too long",
        "recover.c",
        "    if (is_overdue(r->q, i, w)) conclude",
        "    if (!r->explained && is_overdue(r->q, i, w)) conclude",
        "kill",
        "recover-explained",
    ),
    Mutant(
        "a mark outlives the start that it is meant for",
        "lease.c",
        "    if (lease->slot < q->geo.slots) forget_overdue(q, lease->slot, to);\n",
        "",
        "kill",
        "start-overdue",
    ),
    Mutant(
        "a mark means every message that the worker runs in the slot",
        "overdue.c",
        "    return atomic_load(&slot_at(q, slot_index)->overdue) == start_of(w);\n",
        "    return (atomic_load(&slot_at(q, slot_index)->overdue) ^ start_of(w)) >> 48 == 0;\n",
        "kill",
        "time-out-used-again",
    ),
    Mutant(
        "a mark takes the message away from its worker",
        "overdue.c",
        "        atomic_store(&slot_at(q, i)->overdue, start_of(w));\n",
        "        atomic_store(&slot_at(q, i)->overdue, start_of(w));\n"
        "        atomic_store(&slot_at(q, i)->word, w);\n",
        "freeze",
        "time-out-ended",
    ),
)
