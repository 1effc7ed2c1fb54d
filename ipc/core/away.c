/* A fork whose child belongs to the nearest subreaper: the one in between ends at once.
 *
 * The one in between is a vfork: it has our memory instead of a copy, so that only one copy is made and
 * none has to be taken down (of a process of 90 MB: 6 ms instead of 16). It does nothing in that memory
 * but fork on and write down what came of it, while we stand still. All signals must be blocked.
 */
#include "away.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t fork_away(pid_t *between) {
    volatile pid_t child = -1, middle = 0;
    volatile int failed = ECHILD; /* it was killed before it could say more */
    pid_t pid = vfork();
    if (pid == 0) {
        middle = getpid();
        pid_t forked = fork();
        if (forked == 0) { /* memory of its own from here on */
            *between = middle;
            return 0;
        }
        child = forked;
        failed = errno;
        _exit(0);
    }
    if (pid < 0) return -errno;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
    *between = pid;
    return child < 0 ? -failed : child;
}
