"""Broken: how a message ends, or begins anew, and what is kept of it."""

from tests.ipc.mutants.mutant import Mutant

ENDS = (
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
        "a result that was not committed is kept by who takes the index over",
        "block.c",
        "           tsq_owner_of(v) == dead && where != WHERE_NONE && where < WHERE_CODES;\n",
        "           tsq_owner_of(v) == dead + 0 * where;\n",
        "kill",
        "complete-acked",
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
)
