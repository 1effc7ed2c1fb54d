"""Broken: how the number of a sender's message is remembered."""

from tests.ipc.mutants.mutant import Mutant

SENDERS = (
    Mutant(
        "the number is stored before the commit",
        "sender.c",
        """\
    tsq_commit(q, me, lease, call);
    store(&s->last, from->number);
""",
        """\
    store(&s->last, from->number);
    tsq_commit(q, me, lease, call);
""",
        "kill",
        "put-from",
    ),
    Mutant(
        "nothing says what is being committed",
        "sender.c",
        "    store(&book->pending, pending_of(lease->slot, tsq_gen_of(lease->word)));\n",
        "",
        "kill",
        "put-from-known",
    ),
    Mutant(
        "what is being committed is said before whose it is",
        "sender.c",
        """\
    store(&book->entry, (uint64_t)(s - book->of));
    store(&book->number, from->number);
    store(&book->pending, pending_of(lease->slot, tsq_gen_of(lease->word)));
    tsq_commit(q, me, lease, call);
""",
        """\
    store(&book->pending, pending_of(lease->slot, tsq_gen_of(lease->word)));
    tsq_commit(q, me, lease, call);
    store(&book->entry, (uint64_t)(s - book->of));
    store(&book->number, from->number);
""",
        "kill",
        "put-from-known",
    ),
    Mutant(
        "the repair of what was not committed leaves it pending",
        "recover.c",
        "    sending_failed(r->q, i, tsq_gen_of(w));\n",
        "",
        "kill",
        "put-from",
    ),
    Mutant(
        "it is taken back after its slot is free",
        "recover.c",
        """\
    sending_failed(r->q, i, tsq_gen_of(w));
    if (change(r, i, w, tsq_word(TSQ_FREE, r->me, 0, tsq_gen_of(w)))) \
(void)ring_put(r->q, RING_FREE, i, 0);
""",
        """\
    if (change(r, i, w, tsq_word(TSQ_FREE, r->me, 0, tsq_gen_of(w)))) \
(void)ring_put(r->q, RING_FREE, i, 0);
    sending_failed(r->q, i, tsq_gen_of(w));
""",
        "freeze",
        "recover-sender",
    ),
    Mutant(
        "the next writer does not look again",
        "sender.c",
        "        if (!is_open && load(&book->pending) == pending && load(&s->last) < number) "
        "store(&s->last, number);\n",
        "        if (!is_open && load(&s->last) < number) store(&s->last, number);\n",
        "freeze",
        "resend-uncommitted",
    ),
    Mutant(
        "the next writer forgets what is pending before it has stored the number",
        "sender.c",
        "load(&s->last) < number) store(&s->last, number);\n",
        "load(&s->last) < number) {\n"
        "            store(&book->pending, 0);\n"
        "            store(&s->last, number);\n"
        "        }\n",
        "kill",
        "resend-committed",
    ),
    Mutant(
        "an entry gets another's id before it is emptied",
        "sender.c",
        """\
    store(&s->last, 0);
    store(&s->id[0], new.word[0]);
    store(&s->id[1], new.word[1]);
""",
        """\
    store(&s->id[0], new.word[0]);
    store(&s->id[1], new.word[1]);
    store(&s->last, 0);
""",
        "kill",
        "put-from-displacing",
    ),
)
