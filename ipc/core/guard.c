/* A thread that waits for the end of the parent and then kills our process group.
 *
 * The kernel's own means, PR_SET_PDEATHSIG, sends a signal that Python handles between two bytecodes: a
 * worker whose event loop is blocked in C code would never get there and outlive its supervisor. This
 * thread needs neither the interpreter nor its lock. It costs nothing while it waits.
 */
#include "guard.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static struct {
    int pidfd, milliseconds;
} guarded;

static void *watch(void *unused) {
    struct pollfd parent = {.fd = guarded.pidfd, .events = POLLIN};
    struct timespec grace = {.tv_sec = guarded.milliseconds / 1000,
                             .tv_nsec = (long)(guarded.milliseconds % 1000) * 1000000L};
    while (poll(&parent, 1, -1) < 0 && errno == EINTR) continue;
    while (nanosleep(&grace, &grace) && errno == EINTR) continue;
    (void)kill(0, SIGKILL);
    return unused;
}

int guard_parent(int parent, int milliseconds) {
    pthread_t thread;
    sigset_t all, before;
    guarded.pidfd = (int)syscall(SYS_pidfd_open, parent, 0);
    guarded.milliseconds = milliseconds;
    if (guarded.pidfd < 0) return -errno;
    /* Signals are for the threads that know what to do with them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) return -rc;
    (void)pthread_detach(thread);
    return 0;
}
