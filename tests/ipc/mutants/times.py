"""Broken: what is due, what expires, and what takes too long."""

from tests.ipc.mutants.mutant import Mutant

TIMES = (
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
