"""Places at which a process kills itself, when a test asks for it.

The boundaries of a worker's life at which a death must lose nothing and orphan nobody. Nobody asks:
one comparison each. `TASKIQ_SUPERVISE_FAILPOINT=ack.before:/tmp/x` in the supervisor's environment:
of all processes that come to that place, the one that removes the file dies there, so exactly one.
"""

import os
import signal

VARIABLE = "TASKIQ_SUPERVISE_FAILPOINT"

NAMES = (
    "fork.before",  # the zygote
    "fork.after",  # the zygote, before it says who was forked
    "boot.before",
    "boot.after",  # the broker is up
    "ready.before",
    "ready.after",
    "claim.after",
    "start.before",
    "start.after",  # the start is counted, the task's code not called
    "save.before",
    "save.after",
    "ack.before",
    "ack.after",
    "drain.before",  # told to drain
    "drain.after",  # said that it has
    "exit.before",
)
"""The worker, where nothing else is said."""

_armed, _, _file = os.environ.get(VARIABLE, "").partition(":")
if _armed and _armed not in NAMES:
    raise ValueError(f"{VARIABLE}: no failpoint {_armed!r}, only {', '.join(NAMES)}")


def failpoint(name: str) -> None:
    """Nothing, or the end of this process by SIGKILL."""
    if name == _armed:
        _strike()


def _strike() -> None:
    try:
        os.unlink(_file)  # noqa: PTH108 - no more code than needed
    except FileNotFoundError:  # another process was first
        return
    os.kill(os.getpid(), signal.SIGKILL)
