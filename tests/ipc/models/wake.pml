/* Sleeping and waking: no message waits for ever while a worker is able to run it.
 *
 * Abstracts ipc/core/wake.c (sleep, wake_up, set_empty, pick_sleeper, ignore_unanswering,
 * ready_hints), the end of tsq_put (commit, hint, tail, wake), tsq_recover as far as it hints and
 * rings, and of ipc/aio.py: claim, _take, _leave_to_others, _lose_patience, _emptied, _pass_on,
 * _ring_everywhere and the custodian's audit. Rings are numbers here: `ready` words, `cells` that
 * hint them and can be taken, of which `counted` lie below the tail (ring.pml has the rings).
 *
 * Two workers with room for two tasks each; a task may never end. A producer of two messages, which
 * may leave afterwards. HITS of these are hit by SIGKILL or SIGSTOP between any two steps; the
 * custodian may die once, and its successor begins again. Timers fire whenever they are set.
 */
#define NOBODY 255
#define PRODUCER 2
#define KILLED 1
#define STOPPED 2
#ifndef HITS
#define HITS 1
#endif

byte ready, cells, counted;
bool sleeping[2], vacant[2], bell[2], patience[2];
byte held[2];
bool endless[2]; /* one of those it holds never ends */
byte hit[3];
bool recovered[3];
bool leaves; /* the producer, when it has put: it closes its queue */
bool left, custodian_died;
byte hits = HITS;
bool unhinted[2]; /* READY and in no ring: by the producer, by the custodian */

/* What tsq_ready_hints says. The hint that lies at the tail counts: who put it may not come back to
 * move the tail, and a worker that runs something does not look into the ring unless this says so. */
#ifdef MUTANT_counts_below_the_tail
#define READY_HINTS counted
#else
#define READY_HINTS cells
#endif

#define OTHER (1 - me)
#define ALIVE !hit[me] /* before each step of one that may be hit */

/* In the code the two looks are two steps; nothing depends on it. */
inline pick_sleeper(only_vacant) {
    if
    :: sleeping[0] && vacant[0] -> sleeping[0] = false; who = 0
    :: sleeping[1] && vacant[1] -> sleeping[1] = false; who = 1
    :: else ->
        if
        :: !only_vacant && sleeping[0] -> sleeping[0] = false; who = 0
        :: !only_vacant && sleeping[1] -> sleeping[1] = false; who = 1
        :: else
        fi
    fi
}

inline ring() {
    if
    :: who != NOBODY -> atomic { ALIVE; bell[who] = true; who = NOBODY }
    :: else
    fi
}

inline ring_both() { atomic { bell[0] = true; bell[1] = true } }

/* AsyncTaskQueue._take. Look and claim are one step here: what comes between finds less, never more. */
inline take() {
    atomic {
        ALIVE;
        may = true;
        if
        :: held[me] && !impatient ->
            if
            :: !READY_HINTS -> may = false
            :: READY_HINTS && READY_HINTS <= vacant[OTHER] -> /* leave it to the other one */
                may = false;
                patience[me] = true;
                pick_sleeper(true)
            :: else
            fi
        :: else
        fi;
        if
        :: may ->
            impatient = false; may = false;
            if
            :: cells -> ready--; cells--; counted = cells; held[me]++; got = true
            :: else
            fi
        :: else
        fi
    };
    ring();
    if
    :: got ->
        atomic {
            ALIVE;
            vacant[me] = false;
            if
            :: READY_HINTS -> pick_sleeper(false)
            :: else
            fi
        };
        ring()
    :: else
    fi
}


proctype worker(byte me) {
    byte who = NOBODY;
    bool got, may, impatient;
    do
    :: held[me] < 2 ->
        take();
        do
        :: got -> got = false; break
        :: else ->
            atomic { ALIVE; vacant[me] = (held[me] == 0) };
            atomic { ALIVE; sleeping[me] = true };
#ifndef MUTANT_no_second_look
            take();
            if
            :: got -> atomic { ALIVE; sleeping[me] = false }; got = false; break
            :: else
            fi;
#endif
            do
            :: atomic { ALIVE && bell[me] -> bell[me] = false }; break
            :: atomic { ALIVE && held[me] > endless[me] -> held[me]--; vacant[me] = vacant[me] || !held[me] }
            :: atomic {
                    ALIVE && patience[me] -> patience[me] = false;
                    if
                    :: READY_HINTS ->
#ifndef MUTANT_leaves_for_ever
                        vacant[OTHER] = vacant[OTHER] && sleeping[OTHER];
                        impatient = true
#else
                        skip
#endif
                    :: else
                    fi
                };
                if
                :: impatient -> break
                :: else
                fi
            od;
            atomic { ALIVE; sleeping[me] = false };
            take()
        od;
        atomic { ALIVE; patience[me] = false }
    :: atomic { ALIVE && held[me] == 2 && held[me] > endless[me] -> held[me]-- }
    od
}

proctype producer() {
    byte me = PRODUCER, who = NOBODY, puts;
    bool passing, unheard;
    do
    :: puts < 1 ->
#ifdef MUTANT_wakes_before_the_hint
        atomic { ALIVE; pick_sleeper(false) };
        ring();
#endif
        atomic { ALIVE; ready++; unhinted[0] = true };  /* the commit */
        atomic { ALIVE; cells++; unhinted[0] = false }; /* ring_put: the cell */
        atomic { ALIVE; counted = cells };              /* ring_put: the tail */
#ifndef MUTANT_wakes_before_the_hint
        atomic { ALIVE; pick_sleeper(false) };
        ring();
#endif
        atomic { passing = true; puts++ }
#ifndef MUTANT_passes_nothing_on
    :: atomic {
            ALIVE && passing -> passing = false;
            if
            :: READY_HINTS ->
                pick_sleeper(false);
                if
                :: who != NOBODY -> passing = true
                :: else -> unheard = true
                fi
            :: else
            fi
        };
        ring()
    :: atomic {
            ALIVE && unheard -> unheard = false;
            if
            :: READY_HINTS -> bell[0] = true; bell[1] = true
            :: else
            fi
        }
#endif
    :: atomic { ALIVE && puts == 1 && leaves -> left = true }; break
    od
}

inline hint_what_nobody_hints(by) {
    if
    :: unhinted[by] -> atomic { cells++; unhinted[by] = false }; counted = cells
    :: else
    fi
}

/* tsq_recover, and the rings that its caller makes. */
inline recover_worker(p) {
#ifndef MUTANT_keeps_the_bits_of_the_dead
    sleeping[p] = false;
    vacant[p] = false;
#endif
    do
    :: held[p] ->
        atomic { held[p]--; ready++; unhinted[1] = true };
        atomic { cells++; unhinted[1] = false };
        counted = cells
    :: else -> break
    od;
    endless[p] = false;
    tell(p)
}

inline tell(p) {
#ifndef MUTANT_rings_nobody_after_a_death
    ring_both();
#endif
    recovered[p] = true
}

inline repair_the_dead() {
    do
    :: hit[0] == KILLED && !recovered[0] -> recover_worker(0)
    :: hit[1] == KILLED && !recovered[1] -> recover_worker(1)
    :: hit[PRODUCER] == KILLED && !recovered[PRODUCER] ->
        hint_what_nobody_hints(0);
        tell(PRODUCER)
    od
}

proctype custodian() {
    { repair_the_dead() } unless { custodian_died };
    /* The successor repairs what the custodian left too, which rings everybody, and begins again. */
    hint_what_nobody_hints(1);
    ring_both();
    repair_the_dead()
}

/* The kernel. */
proctype misfortune() {
    do
    :: hits && !hit[0] -> atomic { hits--; if :: hit[0] = KILLED :: hit[0] = STOPPED fi }
    :: hits && !hit[1] -> atomic { hits--; if :: hit[1] = KILLED :: hit[1] = STOPPED fi }
    :: hits && !hit[PRODUCER] && !left ->
        atomic { hits--; if :: hit[PRODUCER] = KILLED :: hit[PRODUCER] = STOPPED fi }
    :: !custodian_died && hits < HITS -> custodian_died = true
    :: break
    od
}

#define ABLE(i) (!hit[i] && held[i] < 2)
#define STUCK (ready && (ABLE(0) || ABLE(1)))

/* When nothing moves any more without the audit, only a stopped one may have left work lying: its
 * producer, or a worker whose producer is not there to pass the wake on. After the audit, nobody. */
proctype quiescence() {
    byte audits;
    bool stopped_worker;
end:
    do
    :: timeout ->
        atomic {
            stopped_worker = hit[0] == STOPPED || hit[1] == STOPPED;
            if
            :: audits == 0 ->
                assert(!STUCK || hit[PRODUCER] == STOPPED ||
                       ((left || hit[PRODUCER]) && stopped_worker))
            :: audits == 2 -> assert(!STUCK)
            :: else
            fi
        };
        if
        :: audits == 2 -> break
        :: else
        fi;
        audits++;
        hint_what_nobody_hints(0);
        if
        :: READY_HINTS -> ring_both()
        :: else
        fi
    od
}

init {
    atomic {
        if
        :: leaves = true
        :: skip
        fi;
        if
        :: held[1] = 1; endless[1] = true
        :: skip
        fi;
        run worker(0); run worker(1); run producer(); run custodian(); run misfortune(); run quiescence()
    }
}
