"""Whether it was the kernel that killed, for want of memory.

A process killed by the OOM killer ends by SIGKILL like any other. But its cgroup counts such kills
(cgroup v2: memory.events, v1: memory.oom_control), and counts before it kills: by the time an exit
is seen the number has grown. The kernel does not say whom it killed, so each kill explains one
death by SIGKILL, the next one that we are asked about.
"""

import re
from pathlib import Path

_OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_LEFT_OVER = 1.0
"""Seconds. The kernel may kill several at once, and their exits come one by one; a kill that is
still unexplained after that was of some process below a worker."""


class OomMeter:
    """Counts the kills of one cgroup. Without a counter (`None`) nothing is ever explained."""

    def __init__(self, counter: Path | None) -> None:
        self._counter = counter
        self._last = self._read()
        self._unexplained = 0
        self._seen = 0.0

    def killed_since_last(self, now: float) -> bool:
        """Whether a death by SIGKILL that has just been seen is explained by a kill for want of
        memory. To be asked once per such death; now: monotonic seconds."""
        kills = self._read()
        if kills is None:
            return False
        if now - self._seen > _LEFT_OVER:
            self._unexplained = 0
        new = max(0, kills - self._last) if self._last is not None else 0
        self._last = kills
        if new:
            self._seen = now
            self._unexplained += new
        if not self._unexplained:
            return False
        self._unexplained -= 1
        return True

    def _read(self) -> int | None:
        if self._counter is None:
            return None
        try:
            return _count(self._counter.read_text())
        except OSError:  # the cgroup was removed under us, or /sys is not ours to read any more
            return None


def find_counter(proc: Path = Path("/proc/self")) -> Path | None:
    """The file that counts for this process's cgroup; None: there is none, or not for us.

    The root of cgroup v2 has none, and a container may not see any. cgroups(7), proc(5).
    """
    try:
        mounts = (proc / "mountinfo").read_text().splitlines()
        memberships = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            kind, option, file = "cgroup2", None, "memory.events"
        elif "memory" in controllers.split(","):
            kind, option, file = "cgroup", "memory", "memory.oom_control"
        else:
            continue
        for mount in mounts:
            folder = _folder(mount, kind, option, path)
            if folder is None:
                continue
            try:
                if _count((folder / file).read_text()) is not None:
                    return folder / file
            except OSError:
                continue
    return None


def _folder(mount: str, kind: str, option: str | None, path: str) -> Path | None:
    """Where a cgroup is below a mount, a line of mountinfo; None: not there."""
    before, _, after = mount.partition(" - ")
    root, point = before.split()[3:5]
    found, _, options = after.split(" ", 2)
    if found != kind or (option is not None and option not in options.split(",")):
        return None
    # A container's mount may begin at its own cgroup: what is above is not to be seen.
    if root == "/":
        below = path
    elif path == root or path.startswith(f"{root}/"):
        below = path[len(root) :]
    else:
        return None
    return Path(point.replace("\\040", " ")) / below.lstrip("/")


def _count(text: str) -> int | None:
    found = _OOM_KILL.search(text)
    return None if found is None else int(found[1])
