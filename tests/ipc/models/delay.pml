/* Delay: a message whose time has come becomes READY, and somebody is told.
 *
 * Abstracts tsq_commit's delayed half and announce_due (ipc/core/due.c), tsq_run_due, the share of
 * tsq_recover (a dead producer's DELAYED message is announced again), and the timers around them in
 * the custodian: it looks when its timer fires, when it is rung, and when it takes the office.
 *
 * Two producers of one delayed message each, due at different times; the custodian; and a deputy that
 * looks now and then by itself, in case the custodian is stopped. One of the four is killed, or a
 * producer or the custodian stopped, between any two steps.
 *
 * A producer rings if the custodian plans to sleep longer than its message may wait. It does not ask
 * whether it lowered next_due: who lowered it further may be stopped before it rings. Two may look at a
 * time, and then one may announce a time whose message the other has just made READY; so who announces
 * must look again at that time, and the custodian looks after the death of anybody.
 */
#define NEVER 3
#define NOBODY 9
#define FREE 0
#define DELAYED 1
#define READY 2
#define KILLED 1
#define STOPPED 2
#define CUSTODIAN 2
#define DEPUTY 3
#define SUCCESSOR 4
#define ALIVE !hit[me]
#define MINE (me == DEPUTY)

byte word[2];     /* slot words; the message of producer p lies in slot p, or in the other order */
byte due[2];      /* 1 and 2, in either order */
byte now;         /* the clock */
byte next_due = NEVER;
byte planned = NEVER; /* when the custodian will look */
byte timer[2] = { NEVER, NEVER }; /* of the custodian and the deputy */
bool bell;
byte hit[5];
bool returned[2];
byte dead = NOBODY; /* and not buried yet */
bool overdue; /* the deputy looks once more */

inline ring_custodian() { bell = true }

/* announce_due's loop of compare and swap, which has the effect of one step */
inline announce(at) {
    atomic {
        ALIVE;
        lowered = (at < next_due);
        next_due = (lowered -> at : next_due)
    }
}

inline announce_and_ring(at) {
    announce(at);
#ifdef MUTANT_rings_only_if_it_lowered
    if
    :: lowered -> atomic { ALIVE; ring_custodian() }
    :: else
    fi
#else
    atomic { ALIVE; seen = planned };
    if
    :: at < seen -> atomic { ALIVE; ring_custodian() }
    :: else
    fi
#endif
}

/* Custodian._look_at: says until when it will sleep, and looks whether that is too long by now. */
inline plan() {
    do
    :: atomic { ALIVE; planned = least };
#ifdef MUTANT_plans_without_a_second_look
       break
#else
       atomic { ALIVE; seen = next_due };
       if
       :: seen < least -> least = seen
       :: else -> break
       fi
#endif
    od;
    atomic { ALIVE; timer[MINE] = least };
    least = NEVER
}

proctype producer(byte me) {
    byte seen;
    bool lowered;
#ifdef MUTANT_announces_before_the_commit
    announce_and_ring(due[me]);
    atomic { ALIVE; word[me] = DELAYED }; /* the commit */
#else
    atomic { ALIVE; word[me] = DELAYED }; /* the commit */
    announce_and_ring(due[me]);
#endif
    atomic { ALIVE; returned[me] = true }
}

/* tsq_run_due */
inline run_due() {
    least = NEVER;
#ifdef MUTANT_looks_before_it_takes_away
    at_slot = 0;
    look_at_slots();
    atomic { ALIVE; next_due = NEVER };
#else
    atomic { ALIVE; next_due = NEVER };
    at_slot = 0;
    look_at_slots();
#endif
    if
    :: least != NEVER -> announce(least)
    :: else
    fi;
    if
    :: me != DEPUTY -> plan()
    :: else ->
        atomic { ALIVE; timer[MINE] = least };
        if
        :: least != NEVER -> atomic { ALIVE; ring_custodian() }
        :: else
        fi;
        least = NEVER
    fi
}
inline look_at_slots() {
    do
    :: at_slot < 2 ->
        atomic {
            ALIVE;
            if
            :: word[at_slot] == DELAYED && due[at_slot] <= now -> word[at_slot] = READY
            :: word[at_slot] == DELAYED && due[at_slot] > now ->
                least = (due[at_slot] < least -> due[at_slot] : least)
            :: else
            fi
        };
        at_slot++
    :: else -> break
    od;
    at_slot = 0
}

/* The custodian, the deputy, and who takes the office after the custodian's death: it looks first,
 * and repairs again what the dead one may have been repairing. */
proctype looker(byte me) {
    byte least = NEVER, at_slot, seen, looks;
    bool lowered;
    if
    :: me == SUCCESSOR -> atomic { hit[CUSTODIAN] == KILLED -> timer[0] = NEVER; bell = true }
    :: else
    fi;
    do
    :: atomic { ALIVE && me != DEPUTY && bell -> bell = false };
        if
        :: me == SUCCESSOR -> run_due() /* also on taking the office */
        :: else ->
            atomic { ALIVE; least = (next_due < timer[MINE] -> next_due : timer[MINE]) };
            plan()
        fi
    :: atomic { ALIVE && timer[MINE] <= now -> timer[MINE] = NEVER };
        run_due()
    :: atomic { ALIVE && me == DEPUTY && (looks == 0 || overdue) -> looks = 1; overdue = false };
        run_due()
    :: atomic { ALIVE && me != DEPUTY && dead != NOBODY };
        /* tsq_recover announces that something is due at once, so the custodian looks */
        atomic { ALIVE; next_due = 0; ring_custodian() };
        atomic { ALIVE; dead = NOBODY }
    od
}

/* Time goes on when it likes. */
proctype clock() {
    now = 1;
    now = 2
}

proctype misfortune() {
    if
    :: atomic { hit[0] = KILLED; dead = 0 }
    :: hit[0] = STOPPED
    :: atomic { hit[DEPUTY] = KILLED; dead = DEPUTY }
    :: hit[CUSTODIAN] = KILLED
    :: hit[CUSTODIAN] = STOPPED
    :: skip
    fi
}

/* All are due, and nothing moves any more. */
#define DONE(p) (word[p] == READY || !returned[p])

proctype quiescence() {
    timeout ->
    if
    :: hit[CUSTODIAN] == STOPPED -> overdue = true; timeout
    :: else
    fi;
    assert(now == 2);
    assert(DONE(0) && DONE(1))
}

init {
    atomic {
        if
        :: due[0] = 1; due[1] = 2
        :: due[0] = 2; due[1] = 1
        fi;
        run producer(0); run producer(1); run looker(CUSTODIAN); run looker(DEPUTY); run looker(SUCCESSOR);
        run clock(); run misfortune(); run quiescence()
    }
}
