/* Senders: a message that is sent again, because the answer got lost, is in the queue once.
 *
 * Abstracts ipc/core/sender.c: tsq_commit_from, settle, and sending_failed in repair_writing
 * (recover.c). A claim, the end of the message and the release of its slot are a step each.
 *
 * Two slots. Three processes in turn put the same message with the same number, each once the one
 * before has died or is done; as all of them are asked to, each but the first resends. Somebody puts a
 * message without a sender, so that slots are used again; a worker; a repair beside all of them. One of
 * the first two is killed, or both, or one and the repair, between any two steps; a second repair
 * begins again where the first one died.
 */
#define FREE 0
#define WRITING 1
#define READY 2
#define LEASED 3
#define PLAIN 3
#define REPAIR 4
#define SECOND 5
/* state:2 owner:3 generation:3; pending: slot + 1 :2 generation:3 */
#define WORD(s, o, g) ((s) | (o) << 2 | (g) << 5)
#define STATE(w) ((w) & 3)
#define OWNER(w) ((w) >> 2 & 7)
#define GEN(w) ((w) >> 5)
#define PENDING(i, w) ((i) + 1 | GEN(w) << 2)
#define ALIVE !hit[me]

byte word[2];
bool ours[2]; /* the message in the slot is the sender's */
byte pending;
bool last; /* its number is remembered */
bool hit[6], over[3];
byte runs;

inline take_free() {
    atomic {
        ALIVE;
        if
        :: STATE(word[0]) == FREE -> i = 0
        :: STATE(word[1]) == FREE -> i = 1
        fi;
        w = WORD(WRITING, me, GEN(word[i]) + 1);
        word[i] = w
    }
}

inline settle() {
    atomic { ALIVE; p = pending };
    if
    :: p ->
        i = (p & 3) - 1;
        atomic { ALIVE; w = word[i] };
        if
        :: !(STATE(w) == WRITING && GEN(w) == p >> 2) ->
#ifndef MUTANT_does_not_look_again
            atomic { ALIVE; again = pending };
#else
            again = p;
#endif
#ifdef MUTANT_forgets_before_it_stores
            atomic { ALIVE; pending = 0 };
#endif
            if
            :: again == p -> atomic { ALIVE; last = true }
            :: else
            fi
        :: else
        fi;
        atomic { ALIVE; pending = 0 }
    :: else
    fi;
    atomic { p = 0; i = 0; w = 0; again = 0 }
}

proctype writer(byte me) {
    byte i, w, p, again;
    (me < 1 || over[0] || hit[0]) && (me < 2 || over[1] || hit[1]);
    settle();
    if
    :: atomic { ALIVE && last } -> skip
    :: atomic { ALIVE && !last } ->
        take_free();
        atomic { ALIVE; ours[i] = true };
#ifndef MUTANT_does_not_say_what_it_commits
        atomic { ALIVE; pending = PENDING(i, w) };
#endif
#ifdef MUTANT_stores_the_number_first
        atomic { ALIVE; last = true };
#endif
        atomic { ALIVE; word[i] = WORD(READY, me, GEN(w)) };
#ifdef MUTANT_forgets_before_the_number
        atomic { ALIVE; pending = 0 };
#endif
        atomic { ALIVE; last = true };
        atomic { ALIVE; pending = 0 }
    fi;
    atomic { ALIVE; over[me] = true }
}

proctype plain(byte me) {
    byte i, w;
    take_free();
    ours[i] = false;
    word[i] = WORD(READY, me, GEN(w))
}

proctype worker() {
    byte i;
end:
    do
    :: atomic {
            if
            :: STATE(word[0]) == READY -> i = 0
            :: STATE(word[1]) == READY -> i = 1
            fi;
            word[i] = WORD(LEASED, OWNER(word[i]), GEN(word[i]))
        };
        atomic { runs = runs + ours[i]; assert(runs <= 1) };
        atomic { word[i] = WORD(FREE, PLAIN, GEN(word[i])); i = 0 }
    od
}

inline take_back() {
    atomic {
        ALIVE;
        if
        :: pending == PENDING(i, w) -> pending = 0
        :: else
        fi
    }
}

/* The first one may die; the second one begins then. */
proctype repair(byte me; bool is_second) {
    byte i, w;
end:
    do
    :: atomic { (!is_second && ALIVE || is_second && hit[REPAIR]) &&
            STATE(word[0]) == WRITING && OWNER(word[0]) < 2 && hit[OWNER(word[0])] -> i = 0; w = word[0] };
        goto found
    :: atomic { (!is_second && ALIVE || is_second && hit[REPAIR]) &&
            STATE(word[1]) == WRITING && OWNER(word[1]) < 2 && hit[OWNER(word[1])] -> i = 1; w = word[1] };
found:
#ifndef MUTANT_the_repair_leaves_it_pending
#ifndef MUTANT_takes_back_too_late
        take_back();
#endif
#endif
        atomic { ALIVE; word[i] = (word[i] == w -> WORD(FREE, PLAIN, GEN(w)) : word[i]) };
#ifdef MUTANT_takes_back_too_late
        take_back();
#endif
        atomic { i = 0; w = 0 }
    od
}

proctype misfortune() {
    if
    :: hit[0] = true
    :: skip
    fi;
    if
    :: hit[1] = true
    :: hit[REPAIR] = true
    :: skip
    fi
}

/* Nothing moves any more. */
proctype quiescence() {
    timeout ->
    assert(over[2]);
    assert(runs == 1);
    assert(last);
    assert(!pending);
    assert(STATE(word[0]) == FREE && STATE(word[1]) == FREE)
}

init {
    atomic {
        word[0] = WORD(FREE, PLAIN, 0);
        word[1] = WORD(FREE, PLAIN, 0);
        run writer(0); run writer(1); run writer(2); run plain(PLAIN); run worker();
        run repair(REPAIR, false); run repair(SECOND, true); run misfortune(); run quiescence()
    }
}
