"""A timer that is a descriptor (timerfd_create(2)): one process sets it, another one is woken.

Python has it since 3.13. A worker tells its supervisor by it when its first task is overdue: set
with one system call, it rings in the supervisor's epoll however stuck the worker is by then.
"""

import ctypes
import os

_CLOCK_MONOTONIC = 1
_ABSTIME = 1  # TFD_TIMER_ABSTIME
_NANOSECONDS = 10**9


class _Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Setting(ctypes.Structure):
    _fields_ = [("interval", _Time), ("first", _Time)]


_libc = ctypes.CDLL(None, use_errno=True)


def create() -> int:
    """A timer that is not armed; its descriptor is close-on-exec and never blocks. OSError."""
    # TFD_CLOEXEC and TFD_NONBLOCK are these by definition.
    return _check(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK))


def arm(fd: int, at: float | None) -> None:
    """The descriptor gets readable at that CLOCK_MONOTONIC time, in seconds; None: not at all.

    Whatever was set before is forgotten, an expiry that nobody has read too. OSError.
    """
    first = _Time(0, 0)
    if at is not None:
        # Zero would disarm it; a time that has passed expires at once.
        first = _Time(*divmod(max(1, int(at * _NANOSECONDS)), _NANOSECONDS))
    setting = _Setting(_Time(0, 0), first)
    _check(_libc.timerfd_settime(fd, _ABSTIME, ctypes.byref(setting), None))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
