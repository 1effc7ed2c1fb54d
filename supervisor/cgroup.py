"""Workers in a control group of their own, below that of the service, where systemd lets us.

With `Delegate=yes` the service's group is ours to divide. Then the memory that workers take, and
the kills for want of it, are counted apart from the supervisor's; and what workers have started is
found and ended whatever it did to its process group. Nothing of this is touched without a
delegation: the group of a shell or of a container's first process belongs to somebody else.
"""

import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("taskiq_supervise")

SUPERVISOR = "supervisor"
WORKERS = "workers"
_DELEGATED = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd marks what it has handed over."""


@dataclass(frozen=True)
class Division:
    """A service's control group, divided in two."""

    folder: Path

    @property
    def workers(self) -> Path:
        return self.folder / WORKERS

    def admit(self, pid: int) -> None:
        """Move a process, with all it will fork, to the workers. Raises OSError."""
        (self.workers / "cgroup.procs").write_text(str(pid))

    @property
    def oom_counter(self) -> Path | None:
        """What counts the workers' kills for want of memory; None: the controller is not ours."""
        counter = self.workers / "memory.events"
        return counter if counter.exists() else None

    def left(self) -> list[int]:
        """Processes among the workers, also where one has divided its group further."""
        pids: list[int] = []
        for folder in (self.workers, *self.workers.glob("**/")):
            with contextlib.suppress(OSError):  # removed meanwhile, or threaded
                pids += map(int, (folder / "cgroup.procs").read_text().split())
        return sorted(set(pids))

    def end_workers(self) -> list[str]:
        """SIGKILL whatever is still there; returns what that was."""
        found = [f"{_name(pid)} ({pid})" for pid in self.left()]
        if not found:
            return []
        kill = self.workers / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
        else:  # before Linux 5.14
            for pid in self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return found


def divide(
    proc: Path = Path("/proc/self"), mount: Path = Path("/sys/fs/cgroup")
) -> Division | None:
    """Divide our group if it was delegated to us; None if it was not, or cannot be."""
    own = _own_group(proc, mount)
    if own is None:
        return None
    # What this service's last supervisor has made, or systemd was told to (DelegateSubgroup=).
    folder = own.parent if own.name == SUPERVISOR else own
    if not _is_delegated(folder) or not _is_alone(folder):
        return None
    try:
        for name in (SUPERVISOR, WORKERS):
            (folder / name).mkdir(exist_ok=True)
        (folder / SUPERVISOR / "cgroup.procs").write_text(str(os.getpid()))
        # With processes in the group itself, no controller could be handed on.
        available = (folder / "cgroup.controllers").read_text().split()
        wanted = [f"+{name}" for name in available if name in {"memory", "pids"}]
        if wanted:
            (folder / "cgroup.subtree_control").write_text(" ".join(wanted))
    except OSError as error:
        logger.warning("the workers get no control group of their own: %s", error)
        return None
    return Division(folder)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process that has just ended"


def _own_group(proc: Path, mount: Path) -> Path | None:
    """In cgroup v2; cgroups(7)."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::/"):
            folder = mount / line.removeprefix("0::/")
            return folder if os.access(folder / "cgroup.procs", os.R_OK) else None
    return None


def _is_delegated(folder: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _is_alone(folder: Path) -> bool:
    """No other process would be a supervisor there: the workers' group would be that one's too."""
    found: set[int] = set()
    for group in (folder, folder / SUPERVISOR):
        with contextlib.suppress(OSError):
            found |= set(map(int, (group / "cgroup.procs").read_text().split()))
    return found <= {os.getpid()}
