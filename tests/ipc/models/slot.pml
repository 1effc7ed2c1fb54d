/* The life of a slot: put, claim, start, complete, forget; death, and a lease that is taken away.
 *
 * Abstracts tsq_put (ipc/core/put.c), tsq_claim, tsq_start, tsq_complete with refer and conclude
 * (lease.c), slot_reclaim (evict.c), tsq_get_outcome (outcome.c), blocks (block.c) and, of recover.c,
 * repair_slot, conclude and the sweep of blocks. Rings are counters of hints; a hint whose slot has
 * another state is dropped by who finds it.
 *
 * One slot, one block per worker, a producer, two workers, a client that reads, one that forgets the
 * outcome. One of producer, workers and the one that forgets is killed between
 * any two steps, or else a worker loses its lease while it lives, and completes late.
 */
#define FREE 0
#define WRITING 1
#define READY 2
#define LEASED 3
#define RUNNING 4
#define ACKED 5
#define DONE 6
#define NOBODY 9
#define PRODUCER 2
#define EVICTOR 3
#define CUSTODIAN 4
#define NONE 0
#define LOST 7
/* state:3 owner:3 attempt:2 generation:2; ref: attempt:2 generation:2 where:3 (block + 1, or LOST) */
#define WORD(s, o, a, g) ((s) | (o) << 3 | (a) << 6 | (g) << 8)
#define STATE(w) ((w) & 7)
#define OWNER(w) ((w) >> 3 & 7)
#define ATTEMPT(w) ((w) >> 6 & 3)
#define GEN(w) ((w) >> 8 & 3)
#define REF(a, g, w) ((a) | (g) << 2 | (w) << 4)
#define REF_ATTEMPT(r) ((r) & 3)
#define REF_GEN(r) ((r) >> 2 & 3)
#define WHERE(r) ((r) >> 4 & 7)
#define ALIVE !hit[me]

short word, ref;
short held[2];       /* block words: 0, or 1 + attempt << 1 + generation << 3; the owner is its worker */
short content[2];
byte free_hints = 1, done_hints;
byte head, tail; /* of the lane: every hint of it names the slot */
bool hit[5];
byte dead = NOBODY;
byte deaths, expiries, starts, dones, forgotten;
bool returned;

inline swap(from, to) {
    if
    :: word == from -> word = to; ok = true
    :: else -> ok = false
    fi
}

/* Frees the block that ref names if it is held for this generation: result_drop. */
inline drop_result(r, g) {
    atomic {
        ALIVE;
        if
        :: WHERE(r) && WHERE(r) != LOST && held[WHERE(r) - 1] >> 3 == g -> held[WHERE(r) - 1] = 0; content[WHERE(r) - 1] = 0
        :: else
        fi
    }
}

proctype producer(byte me) {
    short w;
    bool ok;
    do
    :: atomic { ALIVE && free_hints && STATE(word) == FREE ->
            w = WORD(WRITING, me, 0, GEN(word) + 1); word = w };
        atomic { ALIVE; free_hints-- };
        atomic { ALIVE; ref = REF(0, GEN(w), NONE) };
#ifdef MUTANT_hints_before_the_commit
        atomic { ALIVE; tail++ };
        atomic { ALIVE; word = WORD(READY, me, 0, GEN(w)) };
#else
        atomic { ALIVE; word = WORD(READY, me, 0, GEN(w)) };
        atomic { ALIVE; tail++ };
#endif
        atomic { ALIVE; returned = true };
        break
    od
}

proctype worker(byte me) {
    short w, r;
    byte pos;
    bool ok;
    do
    :: atomic { ALIVE && head < tail -> pos = head;
            if
            :: STATE(word) == READY ->
                w = WORD(LEASED, me, ATTEMPT(word), GEN(word)); word = w; ok = true
            :: else -> ok = false
            fi
        };
        atomic { ALIVE; head = (head == pos -> pos + 1 : head); pos = 0 };
        if
        :: ok
        :: !ok -> goto next
        fi;
        atomic { ALIVE; r = WORD(RUNNING, me, ATTEMPT(w) + 1, GEN(w)); swap(w, r); w = r;
            if
            :: ok -> starts++; assert(starts <= 1 + deaths + expiries)
            :: else
            fi
        };
        if
        :: ok
        :: !ok -> goto next
        fi;
        if
        :: atomic { ALIVE; r = WORD(ACKED, me, ATTEMPT(w), GEN(w)); swap(w, r); w = r };
            if
            :: ok
            :: !ok -> goto next
            fi
        :: skip
        fi;
        /* block_take, the result, refer, conclude */
        atomic { ALIVE; held[me] = 1 + (ATTEMPT(w) << 1) + (GEN(w) << 3) };
        atomic { ALIVE; content[me] = (ATTEMPT(w) << 1) + (GEN(w) << 3) };
        atomic {
            ALIVE;
#ifdef MUTANT_refers_over_later_attempts
            ok = true; ref = REF(ATTEMPT(w), GEN(w), me + 1)
#else
            if
            :: REF_GEN(ref) == GEN(w) && REF_ATTEMPT(ref) <= ATTEMPT(w) ->
                ref = REF(ATTEMPT(w), GEN(w), me + 1); ok = true
            :: else -> ok = false
            fi
#endif
        };
        if
        :: ok ->
            atomic {
                ALIVE;
                r = WORD(DONE, me, ATTEMPT(w), GEN(w));
#ifdef MUTANT_stores_done
                word = r; ok = true;
#else
                swap(w, r);
#endif
                dones = dones + ok
            }
        :: else
        fi;
        if
        :: ok -> atomic { ALIVE; done_hints++ }
        :: else -> atomic { ALIVE; held[me] = 0 }
        fi;
next:   atomic { w = 0; r = 0; ok = false }
    od
}

/* tsq_get_outcome: copy, then look at the word again. */
proctype client() {
    short w, r, c;
    atomic { STATE(word) == DONE -> w = word };
    r = ref;
    if
    :: WHERE(r) && WHERE(r) != LOST -> c = content[WHERE(r) - 1]
    :: else
    fi;
    atomic {
        if
#ifdef MUTANT_does_not_look_again
        :: true ->
#else
        :: word == w ->
#endif
            assert(WHERE(r));
            assert(WHERE(r) == LOST || c == (ATTEMPT(w) << 1) + (GEN(w) << 3))
        :: else
        fi
    }
}

/* slot_reclaim */
proctype evictor(byte me) {
    short w;
    bool ok;
    atomic { ALIVE && done_hints && STATE(word) == DONE -> w = word; word = WORD(WRITING, me, 0, GEN(w) + 1) };
    drop_result(ref, GEN(w));
    atomic { ALIVE; ref = REF(0, GEN(w) + 1, NONE) };
    atomic { ALIVE; word = WORD(FREE, me, 0, GEN(w) + 1) };
    atomic { ALIVE; free_hints++ };
    atomic { ALIVE; done_hints = 0; forgotten++ }
}

/* tsq_recover. What it did half way is done by its successor, which comes to the same: each step is
 * one compare and swap from what the dead one left. */
proctype custodian(byte me) {
    short w, r, old;
    bool ok;
end:
    do
    :: dead != NOBODY ->
        w = word;
        if
        :: OWNER(w) != dead -> skip
        :: OWNER(w) == dead && STATE(w) == FREE && GEN(w) && !free_hints -> free_hints++
        :: OWNER(w) == dead && STATE(w) == WRITING ->
            if
            :: REF_GEN(ref) != GEN(w) -> drop_result(ref, REF_GEN(ref))
            :: else
            fi;
            atomic { swap(w, WORD(FREE, me, 0, GEN(w))) };
#ifndef MUTANT_frees_without_a_hint
            free_hints = free_hints + ok
#endif
        :: OWNER(w) == dead && STATE(w) == READY ->
#ifndef MUTANT_does_not_roll_forward
            if
            :: head == tail -> tail++
            :: else
            fi
#else
            skip
#endif
        :: OWNER(w) == dead && (STATE(w) == LEASED || STATE(w) == RUNNING) ->
            atomic { swap(w, WORD(READY, me, ATTEMPT(w), GEN(w))) };
            tail = tail + ok
        :: OWNER(w) == dead && STATE(w) == ACKED ->
#ifdef MUTANT_runs_again_what_was_acknowledged
            atomic { swap(w, WORD(READY, me, ATTEMPT(w), GEN(w))) };
            assert(!ok);
#else
            old = ref;
            ref = REF(ATTEMPT(w), GEN(w), LOST);
            atomic { swap(w, WORD(DONE, me, ATTEMPT(w), GEN(w))); dones = dones + ok };
            if
            :: ok && REF_GEN(old) == GEN(w) -> drop_result(old, GEN(w))
            :: else
            fi;
            done_hints = done_hints + ok
#endif
        :: OWNER(w) == dead && STATE(w) == DONE ->
            if
            :: !done_hints -> done_hints++
            :: else
            fi
        :: else
        fi;
        /* blocks_sweep */
#ifndef MUTANT_sweeps_no_blocks
        if
        :: dead < 2 ->
            atomic {
                if
                :: held[dead] && !(STATE(word) == DONE && WHERE(ref) == dead + 1 &&
                        held[dead] == 1 + (ATTEMPT(word) << 1) + (GEN(word) << 3) && OWNER(word) == dead) ->
                    held[dead] = 0; content[dead] = 0
                :: else
                fi
            }
        :: else
        fi;
#endif
        atomic { dead = NOBODY; w = 0; r = 0; old = 0 }
    od
}

/* Once: a death, or a lease whose time is over (not of an acknowledged one). */
proctype misfortune() {
    if
    :: atomic { hit[0] = true; dead = 0; deaths++ }
    :: atomic { hit[PRODUCER] = true; dead = PRODUCER; deaths++ }
    :: atomic { hit[EVICTOR] = true; dead = EVICTOR; deaths++ }
    :: atomic { (STATE(word) == LEASED || STATE(word) == RUNNING) ->
            word = WORD(READY, CUSTODIAN, ATTEMPT(word), GEN(word)); expiries++ };
        tail++
    :: skip
    fi
}

/* Nothing moves any more: the message has ended and was forgotten, or was never committed. */
proctype quiescence() {
    timeout ->
    assert(!returned || dones == 1);
    assert(dones <= 1);
    assert(STATE(word) == FREE || STATE(word) == DONE && hit[EVICTOR]);
    assert(STATE(word) != FREE || free_hints);
    assert(STATE(word) != DONE || done_hints);
    assert(STATE(word) == DONE || !held[0] && !held[1])
}

init {
    atomic {
        run producer(PRODUCER); run worker(0); run worker(1); run evictor(EVICTOR); run client();
        run custodian(CUSTODIAN); run misfortune(); run quiescence()
    }
}
