"""What a process of ours does about itself: title, signals, and its tie to the supervisor.

The system calls that Python has no name for, each in one function, so that zygote and workers read
like a list of what happens.
"""

import ctypes
import logging
import mmap
import os
import select
import signal
import sys

import setproctitle

from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.log_handler import handler

logger = logging.getLogger("taskiq_supervise.worker")

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "/proc/self/oom_score_adj"
_MORE_EXPENDABLE = 100
_libc = ctypes.CDLL(None, use_errno=True)


def set_title(role: str, app: str) -> None:
    setproctitle.setproctitle(f"taskiq-supervise: {role} [{app}]")


def configure_logging(config: WorkerConfig) -> None:
    """As `taskiq worker` does: where the application has set handlers, they stay alone."""
    level = config.log_level.upper()
    if config.configure_logging:
        logging.basicConfig(level=level, handlers=[handler(config.log_style, config.log_format)])
    logging.getLogger("taskiq").setLevel(level)


def flush_output() -> None:
    """What is still in buffers: a fork would write it twice, `os._exit` not at all."""
    for output in logging.root.handlers:
        output.flush()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):  # closed, by the user or at the other end
                continue


def let_go_of_text() -> None:
    """Unmaps what has been read of libraries so far: whoever needs it maps it again.

    It costs nothing, the pages are in the page cache; but in a zygote they are mapped for good,
    text that only the import of the application needed. 12 MB with numpy and pandas. Of the private
    mappings of files, those that cannot be written and have no page of their own (relocations).
    """
    span: tuple[int, int] | None = None
    with open("/proc/self/smaps", encoding="utf-8") as file:
        for line in file:
            first, _, rest = line.partition(" ")
            if not first.endswith(":"):
                start, _, end = first.partition("-")
                permissions, _, _, inode, *_ = rest.split()
                fixed = permissions in {"r-xp", "r--p"} and inode != "0"
                span = (int(start, 16), int(end, 16)) if fixed else None
            elif span is not None and first == "Anonymous:" and rest.split()[0] == "0":
                address, length = ctypes.c_void_p(span[0]), ctypes.c_size_t(span[1] - span[0])
                _libc.madvise(address, length, mmap.MADV_DONTNEED)


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


def be_nice(increment: int) -> None:
    """Lowers this thread's priority, and that of threads and processes it starts."""
    if increment:
        try:
            os.nice(increment)
        except PermissionError as error:  # below 0, it takes a right
            logger.warning("The priority stays as it is, nice %d: %s", increment, error)


def pin_to_cpu(turn: int) -> None:
    """On one of the CPUs that the process may use, those with consecutive turns on different."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[turn % len(allowed)]})


def reseed() -> None:
    """Random numbers of forked siblings must differ. Python's own module sees to itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
