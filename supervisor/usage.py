"""What a process costs, from /proc, when somebody asks.

No sampling in the background: an idle supervisor costs nothing. CPU is the share since the last
question that is at least a second old, so that two people who watch at the same time don't shorten
each other's window to nothing; the first answer is the average since the process started.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_WINDOW = 1.0


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_percent: float | None
    """Of one CPU; more than 100 with several busy threads."""
    rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    cpu_seconds: float


class UsageMeter:
    """Remembers one sample per process, and forgets those not asked for any more."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._samples: dict[int, _Sample] = {}

    def measure(self, processes: dict[int, float], now: float) -> dict[int, Usage]:
        """`processes`: pid to the time it was started; all times of the same clock as `now`."""
        self._samples = {pid: s for pid, s in self._samples.items() if pid in processes}
        return {pid: self._one(pid, started, now) for pid, started in processes.items()}

    def _one(self, pid: int, started: float, now: float) -> Usage:
        try:
            stat = (self._proc / str(pid) / "stat").read_text()
        except OSError:  # gone, and not reaped by us yet
            return Usage(None, None)
        # The second field is the name in brackets, which may hold anything.
        fields = stat.rpartition(")")[2].split()
        cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        since = self._samples.get(pid, _Sample(started, 0.0))
        if pid not in self._samples or now - since.at >= _WINDOW:
            self._samples[pid] = _Sample(now, cpu_seconds)
        elapsed = now - since.at
        percent = (
            round(100 * (cpu_seconds - since.cpu_seconds) / elapsed, 1) if elapsed > 0 else 0.0
        )
        return Usage(percent, int(fields[21]) * _PAGE)
