"""What a process of ours does about itself: title, signals, and its tie to the supervisor.

The system calls that Python has no name for, each in one function, so that zygote and workers read
like a list of what happens.
"""

import ctypes
import logging
import os
import select
import signal
import sys

import setproctitle

from taskiq_supervise.worker.config import WorkerConfig

logger = logging.getLogger("taskiq_supervise.worker")

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "/proc/self/oom_score_adj"
_MORE_EXPENDABLE = 100
_libc = ctypes.CDLL(None, use_errno=True)


def set_title(role: str, app: str) -> None:
    setproctitle.setproctitle(f"taskiq-supervise: {role} [{app}]")


def configure_logging(config: WorkerConfig) -> None:
    """As `taskiq worker` does."""
    level = config.log_level.upper()
    if config.configure_logging:
        logging.basicConfig(level=level, format=config.log_format)
    logging.getLogger("taskiq").setLevel(level)


def flush_output() -> None:
    """What is still in buffers: a fork would write it twice, `os._exit` not at all."""
    for handler in logging.root.handlers:
        handler.flush()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):  # closed, by the user or at the other end
                continue


def reset_signals() -> None:
    """Forgets handlers and wakeup descriptor of the process that forked this one."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    # Python's own: writing to a closed pipe is an exception, Ctrl-C is the supervisor's business.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def set_death_signal(number: int) -> None:
    """The kernel sends it when the parent ends (PR_SET_PDEATHSIG, prctl(2))."""
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")


def tie_to(parent: int, number: int, *, after: int) -> bool:
    """Ends with `parent`, once the process that forked us (`after`) has ended. False: it is gone.

    Set earlier, the death signal would come from the end of that process: it is our parent until
    then. Its end is waited for on a pidfd, which the kernel makes readable after we have got our
    new parent.
    """
    try:
        pidfd = os.pidfd_open(after)
    except ProcessLookupError:
        pidfd = -1
    if pidfd >= 0:
        # Opened too late, it is another process of the same number.
        if os.getppid() == after:
            select.select([pidfd], [], [])
        os.close(pidfd)
    if os.getppid() != parent:
        return False
    set_death_signal(number)
    return os.getppid() == parent


def be_more_expendable() -> None:
    """Out of memory, the kernel takes a worker rather than the supervisor or a client."""
    try:
        with open(_OOM_SCORE, "r+") as file:
            score = min(1000, int(file.read()) + _MORE_EXPENDABLE)
            file.seek(0)
            file.write(str(score))
    except OSError as error:  # not in every sandbox
        logger.debug("%s: %s", _OOM_SCORE, error)


def begin_pool_process(parent: int) -> None:
    """In a process of a worker's pool: it ends with its worker, and leaves signals to it.

    parent: the worker's pid, 0 where another process starts them (a fork server).
    """
    reset_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_death_signal(signal.SIGKILL)
    if parent and os.getppid() != parent:  # it died before that
        os._exit(0)


def reseed() -> None:
    """Random numbers of forked siblings must differ. Python's own module sees to itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
