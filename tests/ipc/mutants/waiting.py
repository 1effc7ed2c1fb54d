"""Broken: who is woken, told or called. Sleepers, those who wait, the line for room."""

from tests.ipc.mutants.mutant import Mutant

WAITING = (
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
)
