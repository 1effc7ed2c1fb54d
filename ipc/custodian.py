"""The custodian: repairs after deaths, forgets old outcomes.

One participant at a time, proven by a lock byte: the supervisor if there is one, else any worker or
client that runs an event loop. Everybody else watches the custodian's doorbell, so its death is an
event too, and the first to take the lock byte goes on. It keeps nothing but what a look at the
segment rebuilds. A worker with a living guardian (its supervisor) is left to it, because only the
parent can say which signal killed it.
"""

from __future__ import annotations

import logging
import os
import select
import time
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.doorbell import open_write_end
from taskiq_supervise.ipc.locks import CUSTODIAN_BYTE
from taskiq_supervise.ipc.model import Role

if TYPE_CHECKING:
    import asyncio

    from taskiq_supervise.ipc.queue import TaskQueue

AUDIT_EVERY = 10.0
RESULT_TTL = 3_600.0
DEAD_TTL = 7 * 86_400.0
"""Seconds: the audit's period, and how long outcomes and dead letters are kept."""

_DYING = 0.005
"""Seconds until a second look at a process whose doorbell is gone and whose lock is still held."""

logger = logging.getLogger(__name__)


class Custodian:
    """A candidate for the office, and what it does in it."""

    def __init__(self, queue: TaskQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._core = queue.core
        self._loop = loop
        self._deaths = select.epoll()
        # participant: its generation, the write end of its bell
        self._watched: dict[int, tuple[int, int]] = {}
        self._by_fd: dict[int, int] = {}
        self._seen_changes = -1
        self._timers: set[asyncio.TimerHandle] = set()
        self._audit: asyncio.TimerHandle | None = None
        self.active = False
        self._closed = False

    def start(self) -> None:
        # An epoll of its own, because loops differ in what they make of EPOLLERR on a write end.
        self._loop.add_reader(self._deaths.fileno(), self._on_deaths)
        if self._queue.role is Role.SUPERVISOR:
            self._queue.ring(self._core.custodian)  # it hands over
        self.refresh()

    def close(self) -> None:
        self._loop.remove_reader(self._deaths.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Leave without the loop, which is closed or another thread's."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self._resign()
        self._deaths.close()

    def refresh(self) -> None:
        """Look at who is there: called when the doorbell rang."""
        if self.active:
            if self._should_hand_over():
                supervisor = self._core.supervisor
                self._resign()
                self._queue.ring(supervisor)
                self._stand()  # only watches it, unless it has just died
                return
            changes = self._core.changes
            if changes != self._seen_changes:
                self._seen_changes = changes
                self._watch_everybody()
            return
        current = self._core.custodian
        if current and current != self._queue.participant and self._watch(current):
            return
        self._stand()

    # ---- the office ----

    def _stand(self) -> None:
        if self._closed or self._waits_for_supervisor():
            return
        if not self._queue.take_lock(CUSTODIAN_BYTE):
            self._later(_DYING, self.refresh)  # somebody is taking or leaving the office just now
            return
        self.active = True
        self._core.custodian = self._queue.participant
        self._seen_changes = self._core.changes
        self._watch_everybody()
        for one in list(self._queue.participants()):
            if one.index != self._queue.participant:
                self._queue.ring(one.index)  # they watch us from now on
        self._audit = self._loop.call_later(AUDIT_EVERY, self._run_audit)

    def _resign(self) -> None:
        for index in list(self._watched):
            self._unwatch(index)
        if self._audit is not None:
            self._audit.cancel()
            self._audit = None
        if self.active:
            self.active = False
            if self._core.custodian == self._queue.participant:
                self._core.custodian = 0
            self._queue.give_lock(CUSTODIAN_BYTE)

    def _living_supervisor(self) -> bool:
        supervisor = self._core.supervisor
        return (
            supervisor not in (0, self._queue.participant) and self._core.participant(supervisor)[0]
        )

    def _should_hand_over(self) -> bool:
        return self._queue.role is not Role.SUPERVISOR and self._living_supervisor()

    def _waits_for_supervisor(self) -> bool:
        """The supervisor takes the office itself; until then its bell is watched."""
        return self._should_hand_over() and self._watch(self._core.supervisor)

    # ---- deaths ----

    def _watch_everybody(self) -> None:
        for one in list(self._queue.participants()):
            if one.index == self._queue.participant:
                continue
            if not self._watch(one.index):
                self._examine(one.index, one.generation)

    def _watch(self, index: int) -> bool:
        """False: nobody holds that bell any more."""
        generation = self._core.participant(index)[5]
        watched = self._watched.get(index)
        if watched is not None and watched[0] == generation:
            return True
        self._unwatch(index)
        try:
            fd = open_write_end(self._queue.directory, index)
        except OSError as error:
            logger.warning("cannot watch over participant %d: %s", index, error)
            return True
        if fd is None:
            return False
        self._watched[index] = (generation, fd)
        self._by_fd[fd] = index
        self._deaths.register(fd, 0)  # EPOLLERR is always reported: no reader is left
        return True

    def _unwatch(self, index: int) -> None:
        watched = self._watched.pop(index, None)
        if watched is not None:
            del self._by_fd[watched[1]]
            self._deaths.unregister(watched[1])
            os.close(watched[1])

    def _on_deaths(self) -> None:
        for fd, _ in self._deaths.poll(0):
            index = self._by_fd.get(fd)
            if index is None:
                continue
            generation = self._watched[index][0]
            self._unwatch(index)
            if self.active:
                self._examine(index, generation)
        if not self.active:
            self.refresh()  # the custodian went

    def _examine(self, index: int, generation: int, tries: int = 0) -> None:
        """Repair after a death, unless the dead one's guardian does it."""
        live, _, pid, guardian, _, now_generation = self._core.participant(index)
        if not live or now_generation != generation or self._closed or not self.active:
            return
        if self._lives_and_is_older(guardian, generation):
            return
        burial = self._queue.recover(index)
        if burial is None:
            if tries < 10:
                self._later(_DYING * 2**tries, lambda: self._examine(index, generation, tries + 1))
            else:
                logger.warning(
                    "participant %d (pid %d) lives without its doorbell; not repaired", index, pid
                )
            return
        if burial.redelivered or burial.dead or burial.lost:
            logger.warning(
                "queue %s: process %d died: %d given back, %d dead-lettered, %d results lost",
                self._queue.name, pid, len(burial.redelivered), len(burial.dead), len(burial.lost),
            )  # fmt: skip
        for ward in list(self._queue.participants()):
            if ward.guardian == index and not self._watch(ward.index):
                self._examine(ward.index, ward.generation)

    def _lives_and_is_older(self, guardian: int, generation: int) -> bool:
        """One that joined after its supposed ward is somebody else at the dead guardian's index."""
        if not guardian:
            return False
        live, _, _, _, _, joined = self._core.participant(guardian)
        return live and joined < generation

    # ---- audit ----

    def _run_audit(self) -> None:
        self._audit = self._loop.call_later(AUDIT_EVERY, self._run_audit)
        _, rehinted = self._core.audit(
            self._queue.participant, time.time_ns(), int(RESULT_TTL * 1e9), int(DEAD_TTL * 1e9)
        )
        if rehinted:
            logger.warning(
                "queue %s: %d messages whose producer is stopped were made visible",
                self._queue.name,
                rehinted,
            )
        self._queue.ring_workers()

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            if not self._closed:
                call()

        timer = self._loop.call_later(delay, run)
        self._timers.add(timer)


if TYPE_CHECKING:
    from collections.abc import Callable
