"""TaskQueue: one participant in one queue, without an event loop.

It joins the lock byte that proves its life, the doorbell that wakes it and the mapping it works on,
and it knows nothing of taskiq. AsyncTaskQueue puts it on an event loop.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from taskiq_supervise.ipc._core import MAX_ID
from taskiq_supervise.ipc.doorbell import Doorbell, Ringer, bell_path
from taskiq_supervise.ipc.errors import LeaseLost, QueueBusy, QueueError, SegmentError, UnknownTask
from taskiq_supervise.ipc.lease import Lease
from taskiq_supervise.ipc.locks import SUPERVISOR_BYTE, open_lock_file, participant_byte
from taskiq_supervise.ipc.model import (
    Burial,
    DeadReason,
    DeathCause,
    Geometry,
    Outcome,
    OutcomeKind,
    Participant,
    QueueStats,
    Role,
    Ticket,
)
from taskiq_supervise.ipc.segment import open_core, queue_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer, Self

    from taskiq_supervise.ipc._core import Core

_REDELIVERED, _DEAD_LETTERED, _RESULT_LOST = 1, 2, 3


class TaskQueue:
    """An open queue. Made by open(); to be closed. Not shared between threads.

    Attributes:
        name: the queue's name.
        directory: its folder.
        participant: this one's index in the queue, 1 ….
        geometry: its size, as the segment says.
    """

    def __init__(
        self, name: str, directory: Path, core: Core, role: Role, guardian: int, tag: int
    ) -> None:
        self.name = name
        self.directory = directory
        self.core = core
        self.role = role
        slots, inline_size, participants, blocks = core.geometry()
        self.geometry = Geometry(slots, inline_size, participants, blocks)
        self._leases: set[Lease] = set()
        self.on_empty: Callable[[], None] | None = None
        """Called when the last lease has ended."""
        self._supervises = False
        self._woken_by_joining: list[int] = []
        self._locks = open_lock_file(directory / "lock")
        try:
            self.participant = self._join(role, guardian, tag)
        except BaseException:
            self._locks.release()
            raise
        self._ringer = Ringer(directory, lambda index: core.participant(index)[5])
        for other in self._woken_by_joining:
            self._ringer.ring(other)
        self._closed = False
        _open_queues.add(self)
        self.ring(core.custodian)  # it watches over newcomers

    @classmethod
    def open(
        cls,
        name: str,
        directory: str | os.PathLike[str] | None = None,
        *,
        geometry: Geometry | None = None,
        role: Role = Role.CLIENT,
        guardian: int = 0,
        tag: int = 0,
    ) -> Self:
        """Attach to the queue `name` below `directory`, making it if there is none.

        Args:
            directory: the folder that holds queues; default: default_base_directory().
            geometry: size of a queue that has to be made; one that exists keeps its own.
            role: what this participant is.
            guardian: participant (a supervisor) that reaps this process and repairs what it leaves.
            tag: worker slot + 1 under that supervisor.

        Raises:
            SegmentError: the folder or the segment cannot be used, and why.
        """
        folder = queue_directory(name, directory)
        core = open_core(folder, geometry or Geometry())
        try:
            return cls(name, folder, core, role, guardian, tag)
        except BaseException:
            core.close()
            raise

    # ---- messages ----

    def put(self, task_id: str, payload: Buffer, *, max_deliveries: int = 0) -> Ticket:
        """Add a message; when this returns it is in the queue, whatever dies afterwards.

        Args:
            task_id: 1 … 200 bytes in UTF-8.
            max_deliveries: starts in all before it is dead-lettered; 0: the queue's default.

        Raises:
            QueueFull: no room now. PayloadTooLarge: never any room.
        """
        raw_id = task_id.encode()
        if not 0 < len(raw_id) <= MAX_ID:
            raise QueueError(f"task id of {len(raw_id)} bytes: use 1 to {MAX_ID}")
        slot, generation, sleeper = self.core.put(
            self.participant, raw_id, payload, min(max_deliveries, 255), time.time_ns()
        )
        if sleeper:
            self._ringer.ring(sleeper)
        return Ticket(slot, generation, task_id)

    def claim(self, *, again: bool = True) -> Lease | None:
        """Take the oldest ready message, or None; again: those that were given back first."""
        found = self.core.claim(self.participant, again)
        if found is None:
            return None
        slot, word, raw_id, payload, attempt = found
        lease = Lease(self, slot, word, raw_id.decode(errors="replace"), payload, attempt)
        self._leases.add(lease)
        return lease

    @property
    def unfinished(self) -> int:
        """How many leases this participant holds."""
        return len(self._leases)

    def lease_ended(self, lease: Lease) -> None:
        self._leases.discard(lease)
        if not self._leases and self.on_empty is not None:
            self.on_empty()

    # ---- outcomes ----

    def find(self, task_id: str) -> Ticket:
        """The newest message with this id. UnknownTask: there is none."""
        found = self.core.find(task_id.encode())
        if found is None:
            raise UnknownTask(
                f"task {task_id!r} is not in queue {self.name!r}: it was never sent, "
                "or its result has expired"
            )
        return Ticket(*found, task_id)

    def outcome(self, task: str | Ticket) -> Outcome | None:
        """How the task ended; None while it has not. UnknownTask: it is not in the queue (any
        more)."""
        ticket = task if isinstance(task, Ticket) else self.find(task)
        try:
            found = self.core.outcome(ticket.slot, ticket.generation)
        except LookupError:
            # Its slot is used again. The id may have come back in another one.
            again = self.find(ticket.task_id)
            if again == ticket:
                raise UnknownTask(
                    f"task {ticket.task_id!r} left queue {self.name!r} just now"
                ) from None
            return self.outcome(again)
        return None if found is None else outcome_of(ticket.task_id, *found)

    # ---- waking ----

    def fileno(self) -> int:
        """The doorbell: readable when something may have happened."""
        return self._bell.fd

    def drain_bell(self) -> None:
        self._bell.drain()

    def ring(self, index: int) -> None:
        """Ring a participant whatever it does; 0: nobody."""
        if index:
            self._ringer.ring(index)

    def ring_watchers(self, indexes: Iterable[int]) -> None:
        """Ring those that asked for it since they were last rung."""
        for index in indexes:
            if self.core.disarm(index):
                self._ringer.ring(index)

    def ring_workers(self) -> None:
        """Ring every worker if there is work: who was to ring one of them may stand still."""
        if self.core.ready_hints():
            for one in self.participants():
                if one.role == Role.WORKER:
                    self.ring(one.index)

    # ---- state ----

    def stats(self) -> QueueStats:
        free, _writing, ready, delayed, leased, running, acked, done, dead = self.core.counts()
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
        note.write_text(json.dumps({"pid": os.getpid(), "label": label}), encoding="utf-8")
        self.core.supervisor = self.participant

    def set_max_deliveries(self, starts: int) -> None:
        """Starts in all of a message that does not say its own number; 1 … 255."""
        if not 1 <= starts <= 255:
            raise QueueError(f"max deliveries {starts}: use 1 to 255")
        self.core.max_deliveries = starts

    def explain(self, pid: int) -> None:
        """The death of this process is planned: what it runs is given back, the start not
        counted."""
        for one in self.participants():
            if one.pid == pid and (self.participant in (one.guardian, one.index)):
                self.core.explain(one.index)

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
            repairs, wake = self.core.recover(
                index, self.participant, death.packed(), time.time_ns()
            )
            bell_path(self.directory, index).unlink(missing_ok=True)
            self.core.unregister(index)
        finally:
            self._locks.give(participant_byte(index))
        for other in wake:
            self._ringer.ring(other)
        by_kind: dict[int, list[str]] = {_REDELIVERED: [], _DEAD_LETTERED: [], _RESULT_LOST: []}
        for kind, raw_id in repairs:
            by_kind[kind].append(raw_id.decode(errors="replace"))
        return Burial(
            *(tuple(by_kind[kind]) for kind in (_REDELIVERED, _DEAD_LETTERED, _RESULT_LOST))
        )

    def take_lock(self, byte: int) -> bool:
        return self._locks.take(byte)

    def give_lock(self, byte: int) -> None:
        self._locks.give(byte)

    # ---- life ----

    def _join(self, role: Role, guardian: int, tag: int) -> int:
        """Take a participant index: a free one, else one whose owner has died."""
        for repair in (False, True):
            for index in range(1, self.geometry.participants):
                live = self.core.participant(index)[0]
                if live != repair or not self._locks.take(participant_byte(index)):
                    continue
                if self.core.participant(index)[0] != repair:
                    self._locks.give(participant_byte(index))
                    continue
                if repair:
                    self._repair_before_join(index)
                try:
                    self._bell = Doorbell(self.directory, index)
                    self.core.register(index, role, os.getpid(), guardian, tag)
                except OSError as error:
                    self._locks.give(participant_byte(index))
                    raise SegmentError(
                        f"cannot make a doorbell in {self.directory}: {error.strerror}"
                    ) from error
                return index
        raise QueueError(
            f"queue {self.name!r} has {self.geometry.participants - 1} participants, all alive: "
            "no room for one more"
        )

    def _repair_before_join(self, index: int) -> None:
        """Nobody has buried the last owner: whoever takes its index does."""
        _, _, pid, _, tag, _ = self.core.participant(index)
        cause = DeathCause(pid=pid, worker=tag - 1 if tag else None)
        _, wake = self.core.recover(index, index, cause.packed(), time.time_ns())
        self._woken_by_joining.extend(wake)  # once there is something to ring with
        self.core.unregister(index)

    def close(self) -> None:
        """Give back what is held and leave. Messages and results stay."""
        if self._closed:
            return
        self._closed = True
        _open_queues.discard(self)
        acknowledged = False
        for lease in list(self._leases):
            try:
                lease.release()
            except LeaseLost:
                continue  # fenced: somebody else has it
            except ValueError:
                acknowledged = True
        self.core.wake_up(self.participant)
        self.core.set_empty(self.participant, False)
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
        self.core.close()

    def _conclude_acknowledged(self) -> None:
        """What was acknowledged and not finished ends as lost; its waiters learn it now."""
        self.core.explain(self.participant)
        cause = DeathCause(pid=os.getpid())
        _, wake = self.core.recover(
            self.participant, self.participant, cause.packed(), time.time_ns()
        )
        for other in wake:
            self.ring(other)

    def forget_in_child(self) -> None:
        """In a forked child this identity is the parent's: let go of it without touching the
        queue."""
        self._closed = True
        self._leases.clear()
        self._bell.close(remove=False)
        self._ringer.close()
        self.core.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def outcome_of(
    task_id: str, kind: int, attempts: int, death: int, _end: int, data: bytes
) -> Outcome:
    match OutcomeKind(kind):
        case OutcomeKind.RESULT:
            return Outcome(task_id, OutcomeKind.RESULT, data, attempts)
        case OutcomeKind.NO_RESULT:
            return Outcome(task_id, OutcomeKind.NO_RESULT, b"", attempts)
        case OutcomeKind.WORKER_LOST:
            return Outcome(
                task_id, OutcomeKind.WORKER_LOST, b"", attempts, cause=DeathCause.unpacked(death)
            )
        case OutcomeKind.DEAD:
            if not data:
                cause = DeathCause.unpacked(death)
                return Outcome(
                    task_id,
                    OutcomeKind.DEAD,
                    b"",
                    attempts,
                    DeadReason.MAX_DELIVERIES,
                    f"its worker {cause}",
                    cause,
                )
            reason = DeadReason(data[0]) if data[0] in set(DeadReason) else DeadReason.DAMAGED
            return Outcome(
                task_id, OutcomeKind.DEAD, b"", attempts, reason, data[1:].decode(errors="replace")
            )


_open_queues: weakref.WeakSet[TaskQueue] = weakref.WeakSet()


def _forget_in_child() -> None:
    for queue in list(_open_queues):
        queue.forget_in_child()
    _open_queues.clear()


os.register_at_fork(after_in_child=_forget_in_child)
