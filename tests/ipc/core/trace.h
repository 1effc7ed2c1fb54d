/* A process that is run one instruction at a time, and copies of it that go on from where it stands. */
#ifndef TRACE_H
#define TRACE_H

#include <sys/types.h>

/* Forks a process that stops before `op`, and ends after it. */
pid_t trace_start(void (*op)(void));
int trace_step(pid_t pid);   /* 1: one instruction further. 0: the process has ended. */
pid_t trace_copy(pid_t pid, void (*op)(void), long steps); /* another one that stands at the same instruction */
int trace_finish(pid_t pid); /* lets it run to its end; returns its wait status */

#endif
