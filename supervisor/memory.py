"""How much memory a worker uses: what is resident, of it and of all its descendants.

Shared memory is left out (RssShmem): the queue's segment is mapped by every worker, and a large
message that passes through is nobody's leak. Pages that a worker still shares with the zygote since
the fork are counted, as `ps` counts them: splitting them up (PSS) costs milliseconds per process.
"""

from collections.abc import Iterator
from pathlib import Path

_PARTS = ("RssAnon:", "RssFile:")
_PROC = Path("/proc")


def resident(pid: int, proc: Path = _PROC) -> int | None:
    """Bytes; None: there is no such process (any more). proc(5): /proc/PID/status."""
    own = _resident(pid, proc)
    if own is None:
        return None
    return own + sum(_resident(child, proc) or 0 for child in descendants(pid, proc))


def descendants(pid: int, proc: Path = _PROC) -> Iterator[int]:
    """Children, their children and so on. Those who come or go meanwhile may be missed.

    None on a kernel without CONFIG_PROC_CHILDREN; that of every large distribution has it.
    """
    seen = {pid}
    unvisited = [pid]
    while unvisited:
        for child in _children(unvisited.pop(), proc):
            if child not in seen:  # a number may be used again while we walk
                seen.add(child)
                unvisited.append(child)
                yield child


def _children(pid: int, proc: Path) -> list[int]:
    """proc(5): /proc/PID/task/TID/children. Each thread has those that it forked itself."""
    try:
        threads = list((proc / str(pid) / "task").iterdir())
    except OSError:  # it has gone
        return []
    found: list[int] = []
    for thread in threads:
        try:
            found += map(int, (thread / "children").read_text().split())
        except OSError:  # the thread has gone, and its children are another's
            continue
    return found


def _resident(pid: int, proc: Path) -> int | None:
    try:
        lines = (proc / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    # "RssAnon:      5432 kB"; a zombie has none of them.
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(_PARTS)]
    return 1024 * sum(kilobytes) if kilobytes else None
