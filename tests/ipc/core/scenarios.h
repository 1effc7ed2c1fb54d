/* What the victim is stopped at: an operation, and the state of the queue in which it begins. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "world.h"

typedef enum { PUTTING, CLAIMING, STARTING, COMPLETING, ENDING, READING, EXPIRING, RECOVERING } kind;

typedef struct {
    const char *name;
    kind kind; /* which promises hold; ENDING: steps of a lease that have none of their own */
    void (*prepare)(void);
    void (*op)(void); /* by VICTIM, on track[0] or on what it finds; reports each call that came back */
} scenario;

enum { SCENARIOS = 25 };
extern const scenario scenarios[SCENARIOS];

/* What the operations put and complete with; to be set before the process that runs them is forked. */
extern char result[LARGEST], payload[LARGEST];
extern tsq_message message;

#endif
