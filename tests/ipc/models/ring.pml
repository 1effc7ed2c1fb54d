/* The helping ring: nobody waits for anybody in it, and it loses no hint.
 *
 * Abstracts ipc/core/ring.c (ring_put, ring_peek, ring_advance) and its use by tsq_put, tsq_release
 * and claim_from (ipc/core/lease.c): the slot word first, then the head. A cell holds lap and slot in
 * one word, written by one CAS.
 *
 * Two putters own a slot each and put it PUTS times, again when it was taken; two takers. HITS of the
 * four stop for ever between any two steps; to the others SIGKILL looks the same.
 * Every operation ends after finitely many steps of its own and of the others: the state graph has
 * no cycle, which is checked with pan's search for cycles without progress.
 */
#ifndef HITS
#define HITS 1
#endif
#define PUTS(slot) (2 - (slot))
#define N 4 /* cells: twice as many as slots, as in the core */
#define LAP(pos) ((pos) / N + 1)

byte cell_lap[N], cell_slot[N];
byte head, tail;
bool ready[2];   /* the slot words */
byte taken[2];
byte refused;
byte hits = HITS;
bool hit[4];

inline help(end, pos) {
    if
    :: end == pos -> end = pos + 1
    :: else
    fi
}

#define ALIVE !hit[me]

inline ring_put() {
    do
    :: atomic { ALIVE; t = tail };
        atomic { ALIVE; filled = (t >= head + N) };
        atomic { ALIVE; lap = cell_lap[t % N]; stale = (tail != t) };
        if
        :: (filled || (lap != LAP(t) && lap != LAP(t) - 1)) && !stale -> refused++; break
        :: (filled || (lap != LAP(t) && lap != LAP(t) - 1)) && stale -> skip
        :: !filled && lap == LAP(t) ->
#ifndef MUTANT_does_not_help_the_tail
            atomic { ALIVE; help(tail, t) }
#else
            skip
#endif
        :: !filled && lap == LAP(t) - 1 ->
#ifdef MUTANT_takes_a_ticket_first
            atomic {
                ALIVE;
                if
                :: tail == t -> tail = t + 1; won = true
                :: else
                fi
            };
            if
            :: won -> atomic { ALIVE; cell_lap[t % N] = LAP(t); cell_slot[t % N] = me }; break
            :: else
            fi
#else
            atomic {
                ALIVE;
                if
#ifdef MUTANT_overwrites_the_cell
                :: true ->
#else
                :: cell_lap[t % N] == lap ->
#endif
                    cell_lap[t % N] = LAP(t); cell_slot[t % N] = me; won = true
                :: else
                fi
            };
            if
            :: won -> atomic { ALIVE; help(tail, t) }; break
            :: else
            fi
#endif
        fi
    od;
    atomic { won = false; filled = false; stale = false; t = 0; lap = 0 }
}

proctype putter(byte me) {
    byte puts, t, lap;
    bool won, filled, stale;
    do
    :: atomic { ALIVE && puts < PUTS(me) && !ready[me] -> puts++; ready[me] = true }; /* the commit */
        ring_put()
    :: puts == PUTS(me) -> break
    od
}

/* ring_peek, and claim_from around it. It looks when there may be something: an empty look changes
 * nothing. */
proctype taker(byte me) {
    byte h, lap, s;
    bool at_tail;
    do
    :: atomic { ALIVE && (head < tail || cell_lap[head % N] == LAP(head)) -> h = head };
        atomic { ALIVE; lap = cell_lap[h % N]; s = cell_slot[h % N] };
        if
        :: lap != LAP(h) -> skip /* again, or empty */
        :: lap == LAP(h) ->
            atomic { ALIVE; at_tail = (tail == h) };
            if
#ifndef MUTANT_peeks_beyond_the_tail
            :: at_tail -> atomic { ALIVE; help(tail, h) }
            :: !at_tail ->
#else
            :: true ->
#endif
#ifdef MUTANT_moves_the_head_first
                atomic { ALIVE; help(head, h) };
#endif
                atomic {
                    ALIVE;
                    if
                    :: ready[s] -> ready[s] = false; taken[s]++
                    :: else
                    fi
                };
#ifndef MUTANT_moves_the_head_first
                atomic { ALIVE; help(head, h) }
#endif
            fi
        fi;
        atomic { h = 0; lap = 0; s = 0; at_tail = false }
    od
}

proctype misfortune() {
    byte i;
    do
    :: hits ->
        atomic {
            hits--;
            if
            :: i = 0
            :: i = 1
            :: i = 2
            :: i = 3
            fi;
            hit[i] = true
        }
    :: break
    od
}

/* Nothing moves any more: whoever is still there has taken all that was hinted. The word of a putter
 * that was hit before its hint is what a repair looks for (slot.pml). */
proctype quiescence() {
end:
    timeout ->
    assert(!refused);
    assert(!(ready[0] && !hit[0]) && !(ready[1] && !hit[1]));
    assert(hit[0] || taken[0] == PUTS(0));
    assert(hit[1] || taken[1] == PUTS(1));
    assert(head <= tail)
}

/* It begins with the ring nearly once round. */
init {
    atomic {
        cell_lap[0] = 1; cell_lap[1] = 1; cell_lap[2] = 1; head = 3; tail = 3;
        run putter(0); run putter(1); run taker(2); run taker(3); run misfortune(); run quiescence()
    }
}
