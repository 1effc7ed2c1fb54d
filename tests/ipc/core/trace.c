/* Single-stepping by ptrace.
 *
 * A step costs about 20 µs in a virtual machine, so walking to every instruction k from the start,
 * which takes N²/2 steps, is only affordable for short operations. Instead one walker goes through the
 * operation once, and wherever a process is wanted that goes on from instruction k, the walker is made
 * to fork there: its registers are pointed at a fork system call, and put back in both afterwards.
 */
#include "trace.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "world.h"

static int wait_stop(pid_t pid) {
    int status;
    while (waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR) fail("waitpid: errno %d", errno);
    return status;
}

pid_t trace_start(void (*op)(void)) {
    pid_t pid = fork();
    if (pid < 0) fail("fork: errno %d", errno);
    if (pid == 0) {
        (void)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        (void)raise(SIGSTOP);
        op();
        _exit(0);
    }
    int status = wait_stop(pid);
    if (!WIFSTOPPED(status)) fail("the victim did not come up");
    long options = PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK;
    if (ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)options)) fail("ptrace: errno %d", errno);
    return pid;
}

int trace_step(pid_t pid) {
    if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL)) fail("single step: errno %d", errno);
    int status = wait_stop(pid);
    if (WIFEXITED(status)) return 0;
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) fail("the victim got a signal: status %x", (unsigned)status);
    return 1;
}

#ifdef __x86_64__

void fork_gate(void);
__asm__(".text\n.globl fork_gate\nfork_gate:\n  syscall\n  int3\n");

pid_t trace_copy(pid_t pid, void (*op)(void), long steps) {
    enum { SYS_CLONE = 56, AS_OUR_CHILD = 0x8000 /* CLONE_PARENT: ours to wait for, not the walker's */ };
    struct user_regs_struct before, gate;
    unsigned long copy = 0;
    (void)op;
    (void)steps;
    if (ptrace(PTRACE_GETREGS, pid, NULL, &before)) fail("get registers: errno %d", errno);
    gate = before;
    gate.rip = (unsigned long)fork_gate;
    gate.rax = SYS_CLONE;
    gate.rdi = AS_OUR_CHILD | SIGCHLD;
    gate.rsi = gate.rdx = gate.r10 = gate.r8 = 0;
    gate.orig_rax = (unsigned long)-1; /* no system call to restart */
    (void)ptrace(PTRACE_SETREGS, pid, NULL, &gate);
    (void)ptrace(PTRACE_CONT, pid, NULL, NULL);
    int status = wait_stop(pid);
    if (status >> 8 != (SIGTRAP | (PTRACE_EVENT_FORK << 8))) fail("no fork: status %x", (unsigned)status);
    (void)ptrace(PTRACE_GETEVENTMSG, pid, NULL, &copy);
    (void)ptrace(PTRACE_CONT, pid, NULL, NULL);
    (void)wait_stop(pid); /* at the int3 */
    (void)wait_stop((pid_t)copy);
    if (ptrace(PTRACE_SETREGS, pid, NULL, &before) || ptrace(PTRACE_SETREGS, (pid_t)copy, NULL, &before))
        fail("set registers: errno %d", errno);
    return (pid_t)copy;
}

#else

pid_t trace_copy(pid_t pid, void (*op)(void), long steps) {
    (void)pid;
    pid_t copy = trace_start(op);
    while (steps-- && trace_step(copy)) continue;
    return copy;
}

#endif

int trace_finish(pid_t pid) {
    for (int signal = 0;;) {
        if (ptrace(PTRACE_CONT, pid, NULL, (void *)(long)signal)) fail("continue: errno %d", errno);
        int status = wait_stop(pid);
        if (!WIFSTOPPED(status)) return status;
        signal = WSTOPSIG(status);
    }
}
