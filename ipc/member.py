"""Member: one process's place in a queue, from joining to leaving.

It joins the lock byte that proves its life, the doorbell that wakes it and the mapping it works on;
it can repair what dead members left. What is done with messages is TaskQueue's.
"""

from __future__ import annotations

import json
import logging
import os
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.access import Access, new_file
from taskiq_supervise.ipc.doorbell import Doorbell, Ringer, bell_path
from taskiq_supervise.ipc.errors import QueueBusy, QueueError, SegmentError
from taskiq_supervise.ipc.files import PayloadFiles
from taskiq_supervise.ipc.joining import QueueRemoved, check_no_place, check_place
from taskiq_supervise.ipc.locks import SUPERVISOR_BYTE, participant_byte
from taskiq_supervise.ipc.model import (
    Burial,
    DeathCause,
    Geometry,
    MessageState,
    Participant,
    QueueStats,
    Role,
)
from taskiq_supervise.ipc.word import WRITING, attempt_of, generation_of, parsed_file, state_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from typing_extensions import Self

    from taskiq_supervise.ipc._core import Core
    from taskiq_supervise.ipc.locks import LockFile


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one who joins a queue brings along, and who it is; see TaskQueue.open()."""

    name: str
    directory: Path
    core: Core
    locks: LockFile
    role: Role
    guardian: int
    tag: int


class Member:
    """An open place in a queue; to be closed. Not shared between threads.

    Attributes:
        name: the queue's name.
        directory: its folder.
        participant: this one's index in the queue, 1 ….
        geometry: its size, as the segment says.
        files: payloads that are larger than its blocks.
    """

    def __init__(self, entry: Entry) -> None:
        self.name = entry.name
        self.directory = directory = entry.directory
        self.core = entry.core
        self.role = entry.role
        slots, inline_size, participants, blocks = self.core.geometry()
        self.geometry = Geometry(slots, inline_size, participants, blocks)
        self.files = PayloadFiles(directory / "files", Access.inside(directory).folder_mode)
        self._supervises = False
        self._woken_by_joining: list[int] = []
        self._locks = entry.locks
        self.participant = self._join(entry)
        self._ringer = Ringer(directory, self.core.generation)
        for other in self._woken_by_joining:
            self._ringer.ring(other)
        self._closed = False
        _open_members.add(self)
        self.ring_custodian()  # it watches over newcomers

    @property
    def closed(self) -> bool:
        return self._closed

    # ---- waking ----

    def fileno(self) -> int:
        """The doorbell: readable when something may have happened."""
        return self._bell.fd

    def answer_bell(self) -> int:
        """Empty it, and be rung again from now on. ENDED: a watched message has; NEWS: of members,
        offices or times."""
        return self.core.answer(self.participant, self._bell.fd)

    def ring(self, index: int) -> None:
        """Ring a participant whatever it does; 0: nobody."""
        if index:
            self._ringer.ring(index)

    def ring_watchers(self, indexes: Iterable[int]) -> None:
        """Ring those that asked for it since they were last rung."""
        for index in indexes:
            if self.core.disarm(index):
                self._ringer.ring(index)

    def ring_custodian(self) -> None:
        """It has to look at what is due, and so has its deputy."""
        self.ring(self.core.custodian)
        self.ring(self.core.deputy)

    def ring_workers(self) -> None:
        """Ring every worker if there is work: who was to ring one of them may stand still."""
        if self.core.ready_hints():
            for one in self.participants():
                if one.role == Role.WORKER:
                    self.ring(one.index)

    def set_aside(self, pid: int) -> None:
        """A process of ours stands still, or its event loop does: no work is left to it.

        Messages that it was rung for, and those that others left to it because it has nothing to
        do, go to others. What it runs stays with it. It may go on at any moment; once it
        does, and did not mark itself anew, nobody rings it before call_back().
        """
        for one in self._wards(pid):
            self.core.wake_up(one.index)
            self.core.set_empty(one.index, False)
        # After the marks: who put a message before they were gone is seen now. Every worker, since
        # this one may have taken another's announcement and not rung it.
        self.ring_workers()

    def call_back(self, pid: int) -> None:
        """It goes on, after set_aside(): it looks for work, and marks itself if there is none."""
        for one in self._wards(pid):
            self.ring(one.index)

    # ---- who is there ----

    def stats(self) -> QueueStats:
        free, _writing, ready, delayed, leased, running, acked, done, dead = self.core.counts()
        self.core.unpage()
        return QueueStats(
            ready, leased, running + acked, delayed, dead, done, free, self.geometry.slots
        )

    def participants(self) -> Iterator[Participant]:
        """Those who have joined and not left; one of them may have died just now."""
        for index in range(1, self.geometry.participants):
            live, role, pid, guardian, tag, generation = self.core.participant(index)
            if live:
                yield Participant(index, role, pid, guardian, tag, generation)

    # ---- supervision ----

    def become_supervisor(self, label: str) -> None:
        """Be the one supervisor of this queue. QueueBusy: another is, and which."""
        note = self.directory / "supervisor"
        if not self._locks.take(SUPERVISOR_BYTE):
            pid, other = self._locks.holder(SUPERVISOR_BYTE), ""
            with suppress(OSError, ValueError, KeyError):
                other = str(json.loads(note.read_text(encoding="utf-8"))["label"])
            raise QueueBusy(
                f"queue {self.name!r} ({self.directory}) has a supervisor already: "
                f"instance {other or 'unknown'!r}, pid {pid or 'unknown'}",
                pid=pid,
                label=other,
            )
        self._supervises = True
        note.unlink(missing_ok=True)  # of one that has died, who may have been another user
        with open(new_file(note, self.directory), "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "label": label}, file)
        self.core.supervisor = self.participant

    def set_max_deliveries(self, starts: int) -> None:
        """Starts in all of a message that does not say its own number; 1 … 255."""
        if not 1 <= starts <= 255:
            raise QueueError(f"max deliveries {starts}: use 1 to 255")
        self.core.max_deliveries = starts

    def _wards(self, pid: int) -> Iterator[Participant]:
        """What a process that we reap, or our own, has opened here."""
        for one in self.participants():
            if one.pid == pid and self.participant in (one.guardian, one.index):
                yield one

    def explain(self, pid: int) -> None:
        """The death of this process is planned: what it runs is given back, the start not
        counted."""
        for one in self._wards(pid):
            self.core.explain(one.index)

    def time_out(self, pid: int, task_id: str) -> bool:
        """Before a process of ours is killed because this task takes too long.

        When it dies the task ends as timed out, whoever repairs; until then it can still complete
        it, and then that counts. False: it does not run such a task (any more).
        """
        marked = False
        for one in self._wards(pid):
            marked = self.core.time_out(one.index, task_id.encode()) or marked
        return marked

    def bury(self, pid: int, cause: DeathCause) -> Burial:
        """Repair what a reaped child left, naming the cause to those who wait."""
        burial = Burial()
        for one in list(self.participants()):
            if one.pid == pid and one.guardian == self.participant:
                part = self.recover(one.index, cause)
                if part is not None:
                    burial = Burial(
                        burial.redelivered + part.redelivered,
                        burial.dead + part.dead,
                        burial.lost + part.lost,
                        burial.timed_out + part.timed_out,
                    )
        return burial

    def recover(self, index: int, cause: DeathCause | None = None) -> Burial | None:
        """Repair after the death of a participant. None: it lives, so nothing was done."""
        if index == self.participant or not self._locks.take(participant_byte(index)):
            return None
        try:
            live, _, pid, _, tag, _ = self.core.participant(index)
            if not live:
                return None
            death = cause or DeathCause(pid=pid, worker=tag - 1 if tag else None)
            *ids, wake = self.core.recover(index, self.participant, death.packed(), time.time_ns())
            self.core.unpage()
            bell_path(self.directory, index).unlink(missing_ok=True)
            self._ringer.drop(index)
            self.core.unregister(index)
        finally:
            self._locks.give(participant_byte(index))
        for other in wake:
            self._ringer.ring(other)
        self.sweep_files()
        return Burial(*map(tuple, ids))

    def sweep_files(self) -> None:
        """Drop the files of payloads that no message needs any more; if it fails, the next time."""
        try:
            self.files.sweep(self._needs_file)
        except OSError as error:  # out of descriptors
            logger.warning("queue %s: files are dropped later: %s", self.name, error)

    def _needs_file(self, name: str) -> bool:
        parsed = parsed_file(name)
        if parsed is None:
            return True  # whatever it is, it is not ours
        slot, generation, attempt = parsed
        if slot >= self.geometry.slots:
            return False
        word = self.core.word(slot)
        state = state_of(word)
        if generation_of(word) != generation or not WRITING <= state <= MessageState.DEAD:
            return False
        if attempt is None:
            return state != MessageState.DONE
        return attempt == attempt_of(word) and MessageState.RUNNING <= state < MessageState.DEAD

    def take_lock(self, byte: int) -> bool:
        return self._locks.take(byte)

    def give_lock(self, byte: int) -> None:
        self._locks.give(byte)

    # ---- life ----

    def _join(self, entry: Entry) -> int:
        """Take a participant index: a free one, else one whose owner has died."""
        for repair in (False, True):
            for index in range(1, self.geometry.participants):
                live = self.core.participant(index)[0]
                if live != repair or not self._locks.take(participant_byte(index)):
                    continue
                try:
                    check_place(self._locks, self.directory)
                except QueueRemoved:
                    self._locks.give(participant_byte(index))
                    raise
                if self.core.participant(index)[0] != repair:
                    self._locks.give(participant_byte(index))
                    continue
                if repair:
                    self._repair_before_join(index)
                try:
                    self._bell = Doorbell(self.directory, index)
                    self.core.register(index, entry.role, os.getpid(), entry.guardian, entry.tag)
                except OSError as error:
                    self._locks.give(participant_byte(index))
                    raise SegmentError(
                        f"cannot make a doorbell in {self.directory}: {error.strerror}"
                    ) from error
                return index
        check_no_place(self._locks, self.directory)
        raise QueueError(
            f"queue {self.name!r} has {self.geometry.participants - 1} participants, all alive: "
            "no room for one more"
        )

    def _repair_before_join(self, index: int) -> None:
        """Nobody has buried the last owner: whoever takes its index does."""
        _, _, pid, _, tag, _ = self.core.participant(index)
        cause = DeathCause(pid=pid, worker=tag - 1 if tag else None)
        *_, wake = self.core.recover(index, index, cause.packed(), time.time_ns())
        self._woken_by_joining.extend(wake)  # once there is something to ring with
        self.core.unregister(index)

    def _leave(self, *, acknowledged: bool) -> None:
        """acknowledged: what was acknowledged here and not finished ends as lost."""
        self.core.wake_up(self.participant)
        self.core.set_empty(self.participant, False)
        self.core.step_out(self.participant)
        self.ring_watchers(self.core.call_next())  # a call that was meant for us
        if self.core.ready_hints():  # a wake that was meant for us is passed on
            self.ring(self.core.pick_sleeper(self.participant, False))
        if self._supervises:
            (self.directory / "supervisor").unlink(missing_ok=True)
        # In this order: nobody may take the index while it still counts as ours.
        if acknowledged:
            self._conclude_acknowledged()
        self.core.unregister(self.participant)
        self._bell.close()
        self._ringer.close()
        if self._supervises:
            self._locks.give(SUPERVISOR_BYTE)
        self._locks.give(participant_byte(self.participant))
        self._locks.release()
        self.files.close()
        self.core.close()

    def _conclude_acknowledged(self) -> None:
        """Those who wait learn now that there will be no result."""
        self.core.explain(self.participant)
        cause = DeathCause(pid=os.getpid())
        *_, wake = self.core.recover(
            self.participant, self.participant, cause.packed(), time.time_ns()
        )
        for other in wake:
            self.ring(other)

    def _close(self, *, acknowledged: bool) -> None:
        self._closed = True
        _open_members.discard(self)
        self._leave(acknowledged=acknowledged)

    def close(self) -> None:
        """Leave."""
        if not self._closed:
            self._close(acknowledged=False)

    def forget_in_child(self) -> None:
        """In a forked child this identity is the parent's: let go of it without touching the
        queue."""
        self._closed = True
        self._bell.close(remove=False)
        self._ringer.close()
        self.files.close()
        self.core.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_open_members: weakref.WeakSet[Member] = weakref.WeakSet()


def _forget_in_child() -> None:
    for member in list(_open_members):
        member.forget_in_child()
    _open_members.clear()


os.register_at_fork(after_in_child=_forget_in_child)
