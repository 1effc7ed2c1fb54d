"""The custodian: repairs after deaths, makes due messages ready, forgets old outcomes.

One participant at a time, proven by a lock byte: the supervisor if there is one, else any worker or
client that runs an event loop. A second one is its deputy: it watches the same things and does
them a little later if they are still to be done, because a custodian may be stopped. Everybody else
watches the custodian's doorbell, so its death is an event too, and the first to take the lock byte
goes on. Both keep nothing but what a look at the segment rebuilds, and may do the same thing at the
same time. A worker with a living guardian (its supervisor) is left to it, because only the parent
can say which signal killed it.
"""

from __future__ import annotations

import enum
import logging
import time
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.locks import CUSTODIAN_BYTE, DEPUTY_BYTE
from taskiq_supervise.ipc.model import Burial, Role
from taskiq_supervise.ipc.watch import Watch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from taskiq_supervise.ipc.queue import TaskQueue

AUDIT_EVERY = 10.0
DEAD_TTL = 7 * 86_400.0
"""Seconds: the audit's longest period, and how long dead letters are kept."""

DEPUTY_PATIENCE = 0.25
GUARDIAN_PATIENCE = 2.0
"""Seconds that the deputy gives the custodian, and the guardian of a dead worker."""

_DYING = 0.005
"""Seconds until a second look at a process whose doorbell is gone and whose lock is still held."""
_LOOK_APART = 0.005
"""Seconds between looks at what is due: each reads every slot."""
_CLOCK_CHECK = 30.0
"""Seconds after which a longer wait looks at the wall clock again: it may have been set."""
_NEVER = (1 << 64) - 1

logger = logging.getLogger(__name__)


class Rank(enum.Enum):
    """What this participant does for the whole queue."""

    NONE = "none"
    DEPUTY = "deputy"
    CUSTODIAN = "custodian"


class Custodian:
    """A candidate for the office, and what it does in it."""

    def __init__(self, queue: TaskQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._core = queue.core
        self._loop = loop
        self._watch = Watch(queue.directory, queue.core)
        self._seen_changes = -1
        self._timers: set[asyncio.TimerHandle] = set()
        self._audit: asyncio.TimerHandle | None = None
        self._due: asyncio.TimerHandle | None = None
        self._planned = _NEVER
        self.rank = Rank.NONE
        self._closed = False

    @property
    def active(self) -> bool:
        return self.rank is Rank.CUSTODIAN

    def start(self) -> None:
        self._loop.add_reader(self._watch.fileno(), self._on_deaths)
        if self._queue.role is Role.SUPERVISOR:
            self._queue.ring(self._core.custodian)  # it hands over
        self.refresh()

    def close(self) -> None:
        self._loop.remove_reader(self._watch.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Leave without the loop, which is closed or another thread's."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self._resign()
        self._watch.close()

    def refresh(self) -> None:
        """Look at who is there and what is due: called when the doorbell rang."""
        if self.active and self._should_hand_over():
            supervisor = self._core.supervisor
            self._resign()
            self._queue.ring(supervisor)
        if not self.active and not self._somebody_else_is():
            self._stand()
        if self.rank is Rank.NONE and not self._core.deputy and not self._closed:
            self._assist()
        if self.rank is not Rank.NONE:
            changes = self._core.changes
            if changes != self._seen_changes:
                self._seen_changes = changes
                self._watch_everybody()
            self._plan_due()
            self._plan_audit()

    # ---- the office ----

    def _somebody_else_is(self) -> bool:
        """One that lives and is watched, or will be told by the supervisor's death."""
        current = self._core.custodian
        if current and current != self._queue.participant and self._watch.add(current):
            return True
        # The supervisor takes the office itself; until then its bell is watched.
        return self._should_hand_over() and self._watch.add(self._core.supervisor)

    def _should_hand_over(self) -> bool:
        supervisor = self._core.supervisor
        return (
            self._queue.role is not Role.SUPERVISOR
            and supervisor not in (0, self._queue.participant)
            and self._core.participant(supervisor)[0]
        )

    def _stand(self) -> None:
        if self._closed:
            return
        if not self._queue.take_lock(CUSTODIAN_BYTE):
            self._later(_DYING, self.refresh)  # somebody is taking or leaving the office just now
            return
        self._resign()  # as a deputy
        self._core.custodian = self._queue.participant
        self._enter(Rank.CUSTODIAN)
        self._ring_everybody()  # they watch us from now on

    def _assist(self) -> None:
        if self._queue.take_lock(DEPUTY_BYTE):
            self._core.deputy = self._queue.participant
            self._enter(Rank.DEPUTY)

    def _enter(self, rank: Rank) -> None:
        self.rank = rank
        self._seen_changes = self._core.changes
        self._watch_everybody()
        self._run_due()  # who had the office may have died over it
        self._plan_audit()

    def _resign(self) -> None:
        self._watch.clear()
        for timer in (self._audit, self._due):
            if timer is not None:
                timer.cancel()
        self._audit = self._due = None
        self._planned = _NEVER
        rank, self.rank = self.rank, Rank.NONE
        if rank is Rank.CUSTODIAN:
            if self._core.custodian == self._queue.participant:
                self._core.custodian = 0
            self._queue.give_lock(CUSTODIAN_BYTE)
        elif rank is Rank.DEPUTY:
            if self._core.deputy == self._queue.participant:
                self._core.deputy = 0
            self._queue.give_lock(DEPUTY_BYTE)
            self._queue.ring(self._core.custodian)  # what it announced to itself alone is left

    def _ring_everybody(self) -> None:
        for one in list(self._queue.participants()):
            if one.index != self._queue.participant:
                self._queue.ring(one.index)

    # ---- deaths ----

    def _watch_everybody(self) -> None:
        for one in list(self._queue.participants()):
            if one.index == self._queue.participant:
                continue
            if not self._watch.add(one.index):
                self._death(one.index, one.generation)

    def _on_deaths(self) -> None:
        for index, generation in self._watch.deaths():
            if self.rank is not Rank.NONE:
                self._death(index, generation)
        self.refresh()  # perhaps the custodian went
        if self.active and not self._core.deputy:
            self._ring_everybody()  # one of them may assist

    def _death(self, index: int, generation: int) -> None:
        if self.active:
            self._examine(index, generation)
        elif self._core.participant(index)[0]:
            self._later(DEPUTY_PATIENCE, lambda: self._examine(index, generation))

    def _examine(self, index: int, generation: int) -> None:
        """Repair after a death, unless the dead one's guardian does it."""
        live, _, _, guardian, _, now_generation = self._core.participant(index)
        if not live or now_generation != generation or self._closed or self.rank is Rank.NONE:
            return
        if self._lives_and_is_older(guardian, generation):
            if self.rank is Rank.DEPUTY:
                self._later(GUARDIAN_PATIENCE, lambda: self._repair(index, generation))
            return
        self._repair(index, generation)

    def _repair(self, index: int, generation: int, tries: int = 0) -> None:
        live, _, pid, _, _, now_generation = self._core.participant(index)
        if not live or now_generation != generation or self._closed:
            return
        burial = self._queue.recover(index)
        if burial is None:
            if tries < 10:
                self._later(_DYING * 2**tries, lambda: self._repair(index, generation, tries + 1))
            else:
                logger.warning(
                    "participant %d (pid %d) lives without its doorbell; not repaired", index, pid
                )
            return
        if burial != Burial():
            logger.warning(
                "queue %s: process %d died: %d given back, %d dead-lettered, %d results lost, "
                "%d timed out",
                self._queue.name, pid, len(burial.redelivered), len(burial.dead), len(burial.lost),
                len(burial.timed_out),
            )  # fmt: skip
        self._plan_due()
        for ward in list(self._queue.participants()):
            if ward.guardian == index and not self._watch.add(ward.index):
                self._death(ward.index, ward.generation)

    def _lives_and_is_older(self, guardian: int, generation: int) -> bool:
        """One that joined after its supposed ward is somebody else at the dead guardian's index."""
        if not guardian:
            return False
        live, _, _, _, _, joined = self._core.participant(guardian)
        return live and joined < generation

    # ---- what is due ----

    def _plan_due(self) -> None:
        """Sleep until the earliest time that somebody announced."""
        self._look_at(self._core.next_due)

    def _look_at(self, due_ns: int) -> None:
        """Sleep until then, or until what is planned already, or announced meanwhile."""
        if self._closed or self.rank is Rank.NONE:
            return
        self._planned = min(self._planned, due_ns)
        while self.active and self._core.plan_due(self._planned):
            self._planned = min(self._planned, self._core.next_due)
        if self._planned != _NEVER:
            self._set_timer(self._planned)

    def _set_timer(self, due_ns: int) -> None:
        wait = due_ns / 1e9 - time.time()
        if self.rank is Rank.DEPUTY:
            wait += DEPUTY_PATIENCE
        at = self._loop.time() + min(max(wait, _LOOK_APART), _CLOCK_CHECK)
        if self._due is not None:
            if self._due.when() <= at:
                return
            self._due.cancel()
        self._due = self._loop.call_at(at, self._on_due)

    def _on_due(self) -> None:
        self._due = None
        self._planned = _NEVER
        due_ns = self._core.next_due
        # For a deputy: what the custodian has taken away and not brought back in time may be lost
        # with it. For both: the wall clock decides, not the timer.
        if due_ns != _NEVER and due_ns / 1e9 > time.time():
            self._plan_due()
        else:
            self._run_due()

    def _run_due(self) -> None:
        next_ns, _, expired, woken = self._core.run_due(self._queue.participant, time.time_ns())
        self._core.unpage()
        for other in woken:
            self._queue.ring(other)
        if expired:
            self._queue.sweep_files()
        self._look_at(next_ns)
        if self.rank is Rank.DEPUTY and next_ns != _NEVER:
            # It may have looked while we had taken away what was announced to it.
            self._queue.ring(self._core.custodian)

    # ---- audit ----

    def _plan_audit(self) -> None:
        period = AUDIT_EVERY
        if self._core.result_ttl:
            period = min(period, max(self._core.result_ttl / 4e9, 0.1))
        at = self._loop.time() + period
        if self._audit is not None:
            if self._audit.when() <= at:
                return
            self._audit.cancel()
        self._audit = self._loop.call_at(at, self._run_audit)

    def _run_audit(self) -> None:
        self._audit = None
        self._plan_audit()
        expired, rehinted = self._core.audit(
            self._queue.participant, time.time_ns(), int(DEAD_TTL * 1e9)
        )
        self._core.unpage()
        if rehinted:
            logger.warning(
                "queue %s: %d messages whose producer is stopped were made visible",
                self._queue.name,
                rehinted,
            )
        self._run_due()
        self._queue.sweep_files()
        if expired:
            self._queue.ring_watchers(self._core.call_next())
        self._queue.ring_workers()

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            if not self._closed:
                call()

        timer = self._loop.call_later(delay, run)
        self._timers.add(timer)
