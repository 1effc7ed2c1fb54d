/* A fork whose child is not ours but the nearest subreaper's. */
#ifndef AWAY_H
#define AWAY_H

#include <sys/types.h>

/* The child's pid, in the child 0, or a negative errno. `between`: the process that was in between. The
 * child has its final parent once that one has ended. */
pid_t fork_away(pid_t *between);

#endif
