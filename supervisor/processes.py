"""Children by pidfd: who ended, how, and what has to be killed before anybody is reaped.

A pidfd names one process for good, so nothing here can hit a stranger that was given a used pid.
Each known child has its own in the event loop; that is how its exit arrives, without polling and
without a handler that has to guess whose SIGCHLD it was.

SIGCHLD is left for children nobody told us about: the supervisor is a child subreaper (and may be
PID 1 of a container), so whatever the workers' own children leave behind comes to it. They are
reaped and not interpreted. One exception: while an answer to a fork is outstanding, an unknown
zombie may be that very worker, dead before the zygote could name it; it is left alone until then.
SIGCHLD tells of job control as well: a child that was stopped or continued does not exit, so its
pidfd stays silent, but waitid says so.

A process group is killed before its leader is reaped: once the leader is gone its number may be
used again, and a pidfd cannot signal a group (PIDFD_SIGNAL_PROCESS_GROUP needs Linux 6.9).
"""

import asyncio
import ctypes
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from taskiq_supervise.supervisor.core.model import ExitStatus

logger = logging.getLogger("taskiq_supervise.processes")

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def become_subreaper() -> None:
    """Orphaned descendants become our children. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def raise_descriptor_limit() -> int:
    """To the hard limit, since each worker takes five of ours; returns what it was.

    Programs that use select() must not get the higher one: whoever is started gets the old.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def spawn(arguments: list[str], environment: Mapping[str, str], keep_fd: int) -> int:
    """Start a program in its own process group with one descriptor beyond the standard three.

    Its standard input is empty: it is not the terminal's foreground group, and reading from there
    would stop it. Signals are back at their defaults (Python's own ignored SIGPIPE included).
    """
    os.set_inheritable(keep_fd, True)  # one thread: nothing else forks in between
    try:
        return os.posix_spawn(
            arguments[0],
            arguments,
            environment,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigmask=(),
            setsigdef=_resettable(),
        )
    finally:
        os.set_inheritable(keep_fd, False)


def _resettable() -> Iterable[signal.Signals]:
    return signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


class Child:
    """A process of ours until it is reaped; afterwards signals go nowhere."""

    def __init__(
        self,
        pid: int,
        pidfd: int,
        on_exit: Callable[[ExitStatus], None],
        on_stop: Callable[[bool], None] | None = None,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.on_exit = on_exit
        self.on_stop = on_stop
        self.stopped = False
        """By a signal, as far as we have been told."""
        self.gone = False

    def signal(self, number: signal.Signals) -> None:
        if not self.gone:
            with suppress(ProcessLookupError):  # a zombie whose exit we have not read yet
                signal.pidfd_send_signal(self.pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL it and everything in its process group."""
        if self.gone:
            return
        with suppress(ProcessLookupError):
            # Only a process can found the group that has its number, so this is its own or none.
            os.killpg(self.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)


class Children:
    """The book of known children, and the sweep for unknown ones."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fork_outstanding: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._fork_outstanding = fork_outstanding
        self._known: dict[int, Child] = {}

    def adopt(
        self,
        pid: int,
        on_exit: Callable[[ExitStatus], None],
        on_stop: Callable[[bool], None] | None = None,
    ) -> Child:
        """Watch a child; `on_exit` is called once, from the loop, also if it is dead already.

        `on_stop` is called with True when a signal stopped it and with False when it was continued,
        in turns; after its exit no more. Also if it is stopped already.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            child = Child(pid, -1, on_exit, on_stop)
            child.gone = True
            self._loop.call_soon(on_exit, ExitStatus())
            return child
        child = Child(pid, pidfd, on_exit, on_stop)
        self._known[pid] = child
        self._loop.add_reader(pidfd, self._ended, child)
        # Its SIGCHLD may have come before it was known.
        self._loop.call_soon(self._look_for_stops, child)
        return child

    def sweep(self) -> None:
        """Reap children that nobody knows, and see who was stopped or continued.

        To be called on SIGCHLD and after answers to forks.
        """
        for child in list(self._known.values()):
            self._look_for_stops(child)
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            known = self._known.get(found.si_pid)
            if known is not None:
                self._ended(known)
            elif self._fork_outstanding():
                return
            else:
                os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
                logger.debug("reaped pid=%d, which somebody left to us", found.si_pid)

    def kill_stray(self, pid: int) -> None:
        """SIGKILL a process that is our child but not in the book; anything else is left alone."""
        if pid in self._known:
            return
        with suppress(ChildProcessError, ProcessLookupError):
            # Not reaped by anybody while it is our child, so the number cannot be another's.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for child in list(self._known.values()):
            self._forget(child)

    def _look_for_stops(self, child: Child) -> None:
        if child.on_stop is None:
            return
        while not child.gone:
            try:
                found = os.waitid(os.P_PIDFD, child.pidfd, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
            except ChildProcessError:  # a zombie, or not our child: its end is told elsewhere
                return
            if found is None:
                return
            stopped = found.si_code == os.CLD_STOPPED
            # The kernel keeps the last change only: stopped again means that it ran in between,
            # and continued may be all that is left of a short stop.
            if stopped and child.stopped:
                self._tell_stop(child, stopped=False)
            if stopped != child.stopped:
                self._tell_stop(child, stopped=stopped)

    def _tell_stop(self, child: Child, *, stopped: bool) -> None:
        if not child.gone and child.on_stop is not None:
            child.stopped = stopped
            child.on_stop(stopped)

    def _ended(self, child: Child) -> None:
        if child.gone:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        try:
            found = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            status = ExitStatus()
        else:
            if found is None:  # readable and yet not to be reaped: a tracer has it; it comes again
                return
            status = _status(found.si_code, found.si_status)
        self._forget(child)
        child.on_exit(status)

    def _forget(self, child: Child) -> None:
        child.gone = True
        del self._known[child.pid]
        self._loop.remove_reader(child.pidfd)
        os.close(child.pidfd)


def _status(code: int, value: int) -> ExitStatus:
    if code == os.CLD_EXITED:
        return ExitStatus(code=value)
    return ExitStatus(signal=value, core_dumped=code == os.CLD_DUMPED)
