/* What the victim is stopped at: an operation, and the state of the queue in which it begins. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "world.h"

/* Which promises hold. ENDING: steps of a lease that have none of their own. CLAIMING … ENDING: with a lease
 * that can be taken away. TIMING: it marks
 * what REPAIRER runs, which dies too. RESENDING: REPAIRER has died over a put with a sender, the victim begins
 * where it was. CALLING: others stand in line for room. LINING: the victim does, and puts. */
typedef enum {
    PUTTING,
    REFUSED,
    GIVING_UP,
    LINING,
    CLAIMING,
    STARTING,
    COMPLETING,
    ENDING,
    CALLING,
    READING,
    LOOKING,
    FORGETTING,
    EXPIRING,
    DUE,
    TIMING,
    RESENDING,
    RECOVERING
} kind;

typedef struct {
    const char *name;
    kind kind;
    void (*prepare)(void);
    void (*op)(void);        /* by VICTIM, on track[0] or on what it finds; reports each call that came back */
    ending promised;         /* what track[0] has come to when all calls came back well */
    void (*meanwhile)(void); /* what others do while it stands still; NULL: every kind of message goes through */
} scenario;

extern const scenario scenarios[];
extern const size_t scenario_count;

/* What the operations put and complete with; to be set before the process that runs them is forked. */
extern char result[LARGEST], payload[LARGEST];
extern tsq_message message;
extern tsq_sender from;

void op_put(void);
void op_put_from(void);
void op_reserve_commit_from(void);
void op_reserve_commit(void);
void op_give_up(void);
void op_line_up(void);
void op_step_out(void);
void op_claim(void);
void op_sleep_and_claim(void);
void op_start(void);
void op_ack(void);
void op_complete(void);
void op_whole(void);
void op_finish_no_result(void);
void op_finish_forget(void);
void op_finish_expired(void);
void op_finish_discarded(void);
void op_discard(void);
void op_release(void);
void op_dead_letter(void);
void op_read(void);
void op_look(void);
void op_forget(void);
void op_audit(void);
void op_run_due(void);
void op_recover(void);
void op_time_out(void);

void conclude_for_victim(void); /* it goes on with the leases it holds, and ends them */

/* sending.c: the message is `from` a sender. The first three: REPAIRER has died before its number was stored. */
void sender_left_writing(void);
void sender_left_ready(void);
void sender_left_ended(void);
void sender_unknown(void);
void sender_known(void);
void sender_displaces(void); /* one with a higher number */
void resend(void);           /* by OTHER, the next that puts with senders: it is there once afterwards */
void remembered(void);

void left_behind(void); /* by REPAIRER: everything that a participant can leave behind, all at once */
tracked *running_of(uint64_t len, uint32_t max_deliveries); /* by REPAIRER */

#endif
