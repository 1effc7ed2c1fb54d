"""What a transition of the worker's table is given, what it answers, and how it reports."""

from dataclasses import dataclass
from typing import Any

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import Settings, Worker, Zygote


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker's transition may know beyond the worker itself."""

    now: float
    settings: Settings
    zygote: Zygote
    """The one that forks for it."""
    generation: int
    """For the next process in its slot."""
    seat: int
    """For the next process."""
    pool_recent: int
    """Unplanned restarts of the other slots within the policy's window."""


Turn = tuple[Worker, tuple[m.Effect, ...]]


def report(what: m.Happening, worker: Worker, **rest: Any) -> m.Report:
    return m.Report(what, worker.slot, worker.generation, worker.pid, **rest)
