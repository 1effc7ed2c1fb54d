/* Random SIGKILLs and SIGSTOPs under load.
 *
 * Producers, workers and a custodian are processes (load.c); this one kills or stops one of them at a
 * random moment, repairs, and starts another. Some repairs are made by a process that is killed over it
 * and is repaired like the others. Afterwards the ledger of each message's story must be possible, and
 * every slot and block must be there. Who ends by himself is not repaired: that would hide leaks.
 *
 * Rounds follow each other in the same segment, because a ledger ends some day. Prints its figures as JSON.
 *
 * stress [--kills N | --seconds S] [--stops] [--seed N]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load.h"

enum { PRODUCERS = 3, WORKERS = 3, PROCESSES = PRODUCERS + WORKERS + 1 };
enum { ROUND_SECONDS = 20, STOP_MS = 30, PATIENCE_SECONDS = 30 };
static const double billion = 1e9;

typedef struct {
    pid_t pid;
    uint32_t index;
    void (*run)(uint32_t me);
    uint64_t stopped_until; /* 0: it runs */
} process;

static struct {
    unsigned long long messages, kills, stops, repairs, half_repairs, timed_out, redelivered, lost, doubled, leaked, rounds;
    uint64_t slowest_repair_ns;
    long memory_before, memory_after; /* of this process, which lives through all rounds; KiB */
} figures;

static process processes[PROCESSES];

static void *shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static long memory_kib(void) {
    long all = 0, resident = 0, of_files = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld %ld", &all, &resident, &of_files) != 3) abort();
    (void)fclose(f);
    return (resident - of_files) * (sysconf(_SC_PAGESIZE) / 1024);
}

/* ---- processes ---- */

static uint32_t next_index(void) {
    static uint32_t last = FIRST - 1;
    tsq_participant p;
    do last = last + 1 < LAST ? last + 1 : FIRST;
    while (tsq_participant_at(&Q, last, &p) || p.live);
    return last;
}

static pid_t start_process(uint32_t index) {
    if (tsq_register(&Q, index, 1, 0, 0, 0)) abort();
    pid_t pid = fork();
    if (pid < 0) abort();
    if (pid == 0) (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static void start(process *p) {
    p->index = next_index();
    p->stopped_until = 0;
    p->pid = start_process(p->index);
    if (p->pid == 0) p->run(p->index);
}

/* ---- deaths ---- */

/* As if that took too long; it goes on meanwhile. */
static void mark_what_it_runs(uint32_t index) {
    for (uint32_t i = 0; i < Q.geo.slots; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        char id[TSQ_MAX_ID];
        uint32_t len;
        if (tsq_owner_of(w) != index || tsq_state_of(w) < TSQ_LEASED || tsq_state_of(w) > TSQ_ACKED) continue;
        if (!tsq_id_of(&Q, i, tsq_gen_of(w), id, &len)) (void)tsq_time_out(&Q, index, id, len);
    }
}

/* What a dead one ran may come again; what it had acknowledged or started once too often, or what took too
 * long, may not. */
static unsigned note_what_it_held(uint32_t dead) {
    unsigned held = 0;
    for (uint32_t i = 0; i < Q.geo.slots; i++) {
        uint64_t w = atomic_load(&slot_at(&Q, i)->word);
        unsigned s = tsq_state_of(w);
        char id[TSQ_MAX_ID];
        uint32_t len;
        if (tsq_owner_of(w) != dead || s < TSQ_LEASED || s > TSQ_ACKED) continue;
        held++;
        if (s == TSQ_LEASED || tsq_id_of(&Q, i, tsq_gen_of(w), id, &len)) continue;
        uint32_t n = number_of(id, len);
        int late = is_overdue(&Q, i, w), ends = late || s == TSQ_ACKED || deliveries_of(n) == 1;
        figures.timed_out += (unsigned)late;
        atomic_fetch_add(ends ? &entry_of(n)->ended : &entry_of(n)->again, 1);
    }
    return held;
}

static unsigned repair_by(uint32_t dead, uint32_t by, uint64_t wake[TSQ_WAKE_WORDS]) {
    tsq_repair *list;
    uint32_t n;
    if (tsq_recover(&Q, dead, by, TSQ_DEATH(TSQ_CAUSE_SIGNAL, 9, 0, dead), wall_ns(), &list, &n, wake)) abort();
    free(list);
    return n;
}

static unsigned finish_repair(uint32_t dead) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    unsigned n = repair_by(dead, KEEPER, wake);
    tsq_unregister(&Q, dead);
    ring_all(wake);
    ring(atomic_load(&state->custodian));
    return n;
}

/* Somebody begins the repair and is killed over it. */
static void half_repair(uint32_t dead) {
    uint32_t by = next_index();
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    int status;
    pid_t pid = start_process(by);
    if (pid == 0) {
        (void)repair_by(dead, by, wake);
        _exit(0);
    }
    (void)usleep((useconds_t)(rand() % 250));
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, &status, 0);
    figures.kills += WIFSIGNALED(status);
    figures.half_repairs += WIFSIGNALED(status);
    /* What it held it had taken over from the dead one, whose books are made. */
    (void)finish_repair(by);
}

static void bury(const process *p) {
    uint64_t began = wall_ns();
    unsigned held = note_what_it_held(p->index);
    if (figures.kills % 8 == 0) half_repair(p->index);
    unsigned n = finish_repair(p->index);
    uint64_t took = wall_ns() - began;
    if (figures.kills % 8 && took > figures.slowest_repair_ns) figures.slowest_repair_ns = took;
    figures.repairs += n;
    if (n > held) {
        (void)fprintf(stderr, "%u were repaired of %u that the dead one held\n", n, held);
        atomic_store(&state->stage, BROKEN);
    }
}

/* 0: it had ended by itself, because it found something or there is no more to do. */
static int kill_one(process *p) {
    int status;
    if (rand() % 2) mark_what_it_runs(p->index);
    (void)kill(p->pid, SIGKILL);
    (void)waitpid(p->pid, &status, 0);
    if (WIFEXITED(status)) {
        tsq_unregister(&Q, p->index);
        p->pid = 0;
        return 0;
    }
    figures.kills++;
    bury(p);
    start(p);
    return 1;
}

static void let_go_on(process *p) {
    (void)kill(p->pid, SIGCONT);
    p->stopped_until = 0;
}

static void stop_one(process *p) {
    (void)kill(p->pid, SIGSTOP);
    p->stopped_until = wall_ns() + (uint64_t)(1 + rand() % STOP_MS) * MILLISECOND;
    figures.stops++;
}

/* ---- a round ---- */

static int stage(void) { return atomic_load(&state->stage); }

static void enter(int from, int to) {
    (void)atomic_compare_exchange_strong(&state->stage, &from, to);
    for (unsigned i = 0; i < PROCESSES; i++) {
        if (processes[i].stopped_until) let_go_on(&processes[i]);
        ring(processes[i].index);
    }
}

static void await_end(process *p) {
    int status;
    while (p->pid && !waitpid(p->pid, &status, WNOHANG)) {
        ring(p->index);
        (void)usleep(1000);
    }
    tsq_unregister(&Q, p->index); /* nothing is repaired */
    p->pid = 0;
}

/* Until nothing waits any more; 0: something does, for good. */
static int await_empty(void) {
    for (uint64_t until = wall_ns() + (uint64_t)PATIENCE_SECONDS * 1000 * MILLISECOND; wall_ns() < until;) {
        tsq_counts n;
        tsq_count(&Q, &n);
        if (n.ready + n.delayed + n.leased + n.running + n.acked + n.writing == 0 || stage() == BROKEN) return 1;
        (void)usleep(1000);
    }
    return 0;
}

static void torment(uint64_t until, unsigned long long kills, int stops) {
    while (wall_ns() < until && figures.kills < kills && stage() == RUNNING &&
           atomic_load(&state->next) - atomic_load(&state->base) < LEDGER) {
        (void)usleep((useconds_t)(rand() % 1500));
        process *p = &processes[rand() % PROCESSES];
        if (stops && rand() % 4 == 0 && !p->stopped_until) stop_one(p);
        else if (!kill_one(p)) return;
        for (unsigned i = 0; i < PROCESSES; i++)
            if (processes[i].stopped_until && processes[i].stopped_until < wall_ns()) let_go_on(&processes[i]);
    }
}

/* How many slots and blocks cannot be had though nothing is in the queue any more. */
static unsigned count_leaks(void) {
    static tsq_lease slots[SLOTS];
    static uint32_t blocks[1024];
    uint32_t expired, hinted, n = 0, all = 0, taken = 0;
    holder h = {.owner = KEEPER, .role = ROLE_RESULT, .slot = 0, .attempt = 1, .gen = 0xabcdef};
    tsq_message m = {.id = "x", .id_len = 1, .payload = "", .len = 0, .privileged = 1, .now_ns = 1};
    uint64_t ttl = atomic_exchange(tsq_result_ttl(&Q), 1);
    if (tsq_audit(&Q, KEEPER, UINT64_MAX, 1, &expired, &hinted)) abort();
    atomic_store(tsq_result_ttl(&Q), ttl);
    for (uint32_t c = 0; c < Q.geo.classes; c++) all += Q.geo.block[c].count;
    /* Small ones come from the larger classes when theirs is used up: so each block is given out. */
    while (taken < 1024 && !block_write(&Q, &h, "x", 1, 0, &blocks[taken])) taken++;
    while (n < SLOTS && !tsq_reserve(&Q, KEEPER, &m, &slots[n])) n++;
    for (uint32_t i = 0; i < taken; i++) block_free(&Q, KEEPER, ROLE_RESULT, 0, 0xabcdef, blocks[i]);
    for (uint32_t i = 0; i < n; i++) tsq_give_up(&Q, KEEPER, &slots[i]);
    return all - taken + SLOTS - n;
}

static void settle_books(void) {
    uint32_t messages = atomic_load(&state->next) - atomic_load(&state->base);
    for (uint32_t i = 0; i < messages && i < LEDGER; i++) {
        const entry *e = &ledger[i];
        uint32_t n = atomic_load(&state->base) + i;
        figures.messages += e->committed;
        figures.lost += e->committed && !e->delivered && !e->ended && !e->withdrawn && !may_expire(n);
        figures.redelivered += e->delivered > 1 ? e->delivered - 1u : 0u;
        if (e->delivered > 1u + e->again) {
            figures.doubled++;
            (void)fprintf(stderr, "message %u: delivered %u, again %u\n", n, e->delivered, e->again);
        }
    }
}

static int one_round(uint64_t until, unsigned long long kills, int stops) {
    if (madvise(ledger, sizeof(entry) * LEDGER, MADV_REMOVE)) abort(); /* an empty page again */
    atomic_store(&state->base, atomic_load(&state->next));
    atomic_store(&state->stage, RUNNING);
    for (unsigned i = 0; i < PROCESSES; i++) start(&processes[i]);
    torment(until, kills, stops);
    enter(RUNNING, NO_MORE_PUTS);
    for (unsigned i = 0; i < PRODUCERS; i++) await_end(&processes[i]);
    int empty = await_empty();
    enter(NO_MORE_PUTS, EMPTY_IT);
    for (unsigned i = PRODUCERS; i < PROCESSES; i++) await_end(&processes[i]);
    figures.rounds++;
    settle_books();
    if (!empty) (void)fprintf(stderr, "something waits for good\n");
    if (stage() == BROKEN || !empty) return 0;
    figures.leaked += count_leaks();
    return !figures.leaked && !figures.lost && !figures.doubled;
}

static void print_figures(unsigned seed, double seconds, int sound) {
    const struct {
        const char *name;
        unsigned long long value;
    } all[] = {{"seed", seed},
               {"rounds", figures.rounds},
               {"messages", figures.messages},
               {"kills", figures.kills},
               {"stops", figures.stops},
               {"half_repairs", figures.half_repairs},
               {"repaired", figures.repairs},
               {"timed_out", figures.timed_out},
               {"redelivered", figures.redelivered},
               {"lost", figures.lost},
               {"doubled", figures.doubled},
               {"leaked", figures.leaked},
               {"delayed", atomic_load(&state->delayed)},
               {"expired", atomic_load(&state->expired)},
               {"discarded", atomic_load(&state->discarded)},
               {"dead_letters", atomic_load(&state->dead_letters)},
               {"waited_for_room", atomic_load(&state->blocked)},
               {"results_read", atomic_load(&state->outcomes_read)},
               {"overslept", atomic_load(&state->overslept)}};
    (void)printf("{\"sound\": %s, \"seconds\": %.1f", sound ? "true" : "false", seconds);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) (void)printf(", \"%s\": %llu", all[i].name, all[i].value);
    (void)printf(", \"max_latency_ms\": %.1f, \"slowest_repair_ms\": %.1f, \"memory_growth_kib\": %ld}\n",
                 (double)atomic_load(&state->max_latency_ns) / MILLISECOND,
                 (double)figures.slowest_repair_ns / MILLISECOND, figures.memory_after - figures.memory_before);
}

int main(int argc, char **argv) {
    double seconds = 3;
    unsigned long long kills = ~0ull;
    unsigned seed = (unsigned)getpid();
    int stops = 0, sound = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--stops")) stops = 1;
        else if (i + 1 < argc && !strcmp(argv[i], "--seconds")) seconds = strtod(argv[++i], NULL);
        else if (i + 1 < argc && !strcmp(argv[i], "--seed")) seed = (unsigned)strtoul(argv[++i], NULL, 10);
        else if (i + 1 < argc && !strcmp(argv[i], "--kills")) kills = strtoull(argv[++i], NULL, 10), seconds = 1e6;
        else return 2;
    }
    srand(seed);
    Q.geo = (tsq_geometry){.slots = SLOTS, .inline_size = 256, .participants = 1024, .classes = 3,
                           .block = {{64, 256}, {256, 256}, {1024, 64}}};
    if (tsq_layout_of(&Q.geo, &Q.at)) return 2;
    Q.base = shared(Q.at.total);
    ledger = shared(sizeof(entry) * LEDGER);
    state = shared(sizeof *state);
    static const uint8_t boot[16];
    tsq_init(Q.base, &Q.geo, &Q.at, boot);
    atomic_store(tsq_result_ttl(&Q), UINT64_C(500) * MILLISECOND);
    if (tsq_register(&Q, KEEPER, 1, 0, 0, 0)) return 2;
    for (unsigned i = 0; i < PROCESSES; i++) processes[i].run = i < PRODUCERS ? produce : i < PROCESSES - 1 ? work : keep;
    uint64_t began = wall_ns(), until = began + (uint64_t)(seconds * billion);
    while (sound && wall_ns() < until && figures.kills < kills) {
        uint64_t round = wall_ns() + (uint64_t)ROUND_SECONDS * 1000 * MILLISECOND;
        sound = one_round(round < until ? round : until, kills, stops);
        figures.memory_after = memory_kib();
        if (figures.rounds == 1) figures.memory_before = figures.memory_after;
    }
    print_figures(seed, (double)(wall_ns() - began) / billion, sound);
    return !sound || !figures.kills || !figures.messages;
}
