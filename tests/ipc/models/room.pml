/* Back-pressure: no producer waits for ever while there is room.
 *
 * Abstracts ipc/core/room.c (tsq_queue_up, tsq_step_out, tsq_call_next: the first in line out of the
 * ring, else whoever has its bit set), take_free in tsq_put, the end of a lease as far as it frees a
 * slot, the rings of tsq_recover, and the waiting in AsyncTaskQueue.put with its look once a second.
 * A producer that was called and got nothing gets in line again.
 *
 * Two producers of one message each; one slot, full at first; a worker that ends whatever is there. HITS of the producers and the worker are killed or stopped.
 */
#define P 2
#define WORKER 2
#define KILLED 1
#define STOPPED 2
#define ALIVE !hit[me]
#ifndef HITS
#define HITS 1
#endif

byte room;            /* free slots */
byte used = 1;        /* messages that the worker has not ended */
bool waiting[P], bell[P], served[P];
chan line = [6] of { byte };
byte hit[3];
bool buried[3];
byte hits = HITS;
byte lookers;

inline try_to_put() {
    atomic {
        ALIVE;
        if
        :: room -> room--; used++; served[me] = true
        :: else
        fi
    }
}

/* tsq_queue_up */
inline queue_up() {
    atomic { ALIVE; was = waiting[me]; waiting[me] = true };
    if
    :: !was -> atomic { ALIVE; line!me }
    :: else
    fi
}

/* tsq_call_next, and the ring that the caller makes */
inline call_next() {
    do
    :: atomic {
            ALIVE;
            if
            :: nempty(line) ->
                line?called;
#ifdef MUTANT_calls_by_the_ring_alone
                found = true
#else
                if
                :: waiting[called] && hit[called] != KILLED -> waiting[called] = false; found = true
                :: else -> waiting[called] = false
                fi
#endif
            :: empty(line) ->
                if
                :: waiting[0] && hit[0] != KILLED -> waiting[0] = false; called = 0; found = true
                :: waiting[1] && hit[1] != KILLED -> waiting[1] = false; called = 1; found = true
                :: else -> called = P
                fi
            fi
        };
        if
        :: found -> atomic { ALIVE; bell[called] = true }; found = false; break
        :: called == P -> break
        :: else
        fi
    od
}

proctype producer(byte me) {
    byte called;
    bool was, found;
    try_to_put();
    do
    :: served[me] -> break
    :: else ->
#ifdef MUTANT_tries_only_before_it_queues_up
        queue_up();
#else
        queue_up();
        try_to_put();
#endif
        if
        :: served[me] -> break
        :: else
        fi;
        atomic { ALIVE && bell[me] -> bell[me] = false };
        try_to_put()
    od;
    /* It was called and did not need it, or it found room by itself: the call is passed on. */
    atomic { ALIVE; waiting[me] = false };
#ifndef MUTANT_keeps_a_call_to_itself
    if
    :: room -> call_next()
    :: else
    fi
#endif
}

/* The end of a lease: the slot is free, then the next one is called. */
proctype worker(byte me) {
    byte called;
    bool found;
    do
    :: atomic { ALIVE && used -> used--; room++ };
#ifndef MUTANT_calls_nobody
        call_next()
#else
        skip
#endif
    od
}

/* tsq_recover: the dead are out of the line, a call that one of them owed or had got goes to all. */
#define DEAD(p) (hit[p] == KILLED && !buried[p])
proctype custodian() {
    byte p;
    do
    :: DEAD(0) || DEAD(1) || DEAD(WORKER) ->
        atomic { p = (DEAD(0) -> 0 : (DEAD(1) -> 1 : WORKER)); buried[p] = true };
        if
        :: p < P -> waiting[p] = false
        :: else
        fi;
#ifndef MUTANT_rings_nobody_after_a_death
        atomic { bell[0] = true; bell[1] = true }
#endif
    od
}

proctype misfortune() {
    do
    :: hits ->
        atomic {
            hits--;
            if
            :: !hit[0] -> hit[0] = KILLED
            :: !hit[0] -> hit[0] = STOPPED
            :: !hit[1] -> hit[1] = KILLED
            :: !hit[1] -> hit[1] = STOPPED
            :: !hit[WORKER] -> hit[WORKER] = KILLED
            :: !hit[WORKER] -> hit[WORKER] = STOPPED
            fi
        }
    :: break
    od
}

#define WAITS(p) (!served[p] && !hit[p])
#define SOMEBODY_STOPPED (hit[0] == STOPPED || hit[1] == STOPPED || hit[WORKER] == STOPPED)

/* Nothing moves any more. Only one that is stopped may have kept a call, until all look again. */
proctype quiescence() {
    timeout ->
    assert(!room || SOMEBODY_STOPPED || !(WAITS(0) || WAITS(1)));
#ifndef MUTANT_never_looks_again
    do
    :: room && (WAITS(0) || WAITS(1)) ->
        atomic { bell[0] = true; bell[1] = true; lookers++ };
        timeout;
        if
        :: lookers == 3 -> break
        :: else
        fi
    :: else -> break
    od;
#endif
    assert(!room || !(WAITS(0) || WAITS(1)))
}

init {
    atomic {
        run producer(0); run producer(1); run worker(WORKER);
        run custodian(); run misfortune(); run quiescence()
    }
}
