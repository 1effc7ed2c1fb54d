"""TaskQueue: the messages of a queue, without an event loop.

It knows nothing of taskiq. AsyncTaskQueue puts it on an event loop.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from taskiq_supervise.ipc._core import LANES, MAX_ID, SENDER_ID
from taskiq_supervise.ipc.access import Access
from taskiq_supervise.ipc.errors import (
    AlreadyAccepted,
    LeaseLost,
    QueueError,
    SegmentError,
    UnknownTask,
)
from taskiq_supervise.ipc.inspection import LONGEST
from taskiq_supervise.ipc.joining import join
from taskiq_supervise.ipc.lease import FORGET, NO_RESULT, Lease
from taskiq_supervise.ipc.locks import REQUEUE_BYTE
from taskiq_supervise.ipc.member import Entry
from taskiq_supervise.ipc.model import (
    DEFAULT_PRIORITY,
    DeadReason,
    Geometry,
    MessageState,
    Role,
    Ticket,
)
from taskiq_supervise.ipc.parts import IN_FILE, PLAIN
from taskiq_supervise.ipc.segment import existing_queue, made_queue, open_core
from taskiq_supervise.ipc.storage import Storage
from taskiq_supervise.ipc.word import generation_of, request_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer, Self

    from taskiq_supervise.ipc.locks import LockFile


_REQUEUE_PATIENCE = 5.0
"""Seconds."""


_STARTED = int(MessageState.RUNNING) << 60


class TaskQueue(Storage):
    """An open queue. Made by open(); to be closed. Not shared between threads."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self._leases: set[Lease] = set()
        self.on_empty: Callable[[], None] | None = None
        """Called when the last lease ends: before that can be seen, so that who learns of it and
        sends more finds this participant empty."""

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
        create: bool = True,
        mode: int | None = 0o600,
        group: str | int | None = None,
    ) -> Self:
        """Attach to the queue `name` below `directory`, making it if there is none.

        Args:
            directory: the folder that holds queues; default: default_base_directory().
            geometry: size of a queue that has to be made; one that exists keeps its own.
            role: what this participant is.
            guardian: participant (a supervisor) that reaps this process and repairs what it leaves.
            tag: worker slot + 1 under that supervisor.
            create: False: only a queue that exists.
            mode: who uses it: 0o600 this user, 0o660 a group, 0o666 everybody; None: as one that
                exists says, if it is for this user.
            group: with 0o660, its name or gid; default: this process's.

        Raises:
            QueueError: mode or group make no sense, or this user is not in the group.
            SegmentError: the folder or the segment cannot be used, and why. QueueMissing: there is
                no such queue, and `create` is false.
        """
        size = (geometry or Geometry()) if create else None
        if size is not None:
            find = partial(made_queue, name, directory, size, Access.of(mode, group))
        else:
            asked = None if mode is None else Access.of(mode, group)
            find = partial(existing_queue, name, directory, asked)

        def entry(folder: Path, locks: LockFile) -> Entry:
            return Entry(name, folder, open_core(folder, size), locks, role, guardian, tag)

        return join(find, lambda folder, locks: cls._enter(entry(folder, locks)))

    @classmethod
    def _enter(cls, entry: Entry) -> Self:
        try:
            return cls(entry)
        except BaseException:
            entry.core.close()
            raise

    # ---- putting ----

    def put(
        self,
        task_id: str,
        payload: Buffer,
        *,
        buffers: Sequence[Buffer] = (),
        priority: int = DEFAULT_PRIORITY,
        due: float | None = None,
        expires: float | None = None,
        max_deliveries: int = 0,
        sender: tuple[bytes, int] | None = None,
    ) -> Ticket:
        """Add a message; when this returns it is in the queue, whatever dies afterwards.

        Args:
            task_id: 1 … 200 bytes in UTF-8.
            buffers: out-of-band data that belongs to the payload; copied into shared memory once.
            priority: 0 … 9, higher first.
            due: not started before; Unix time in seconds.
            expires: not started after; Unix time in seconds.
            max_deliveries: starts in all before it is dead-lettered; more than 255 count as 255,
                0 is the queue's default.
            sender: who numbers its messages (16 bytes), and this one's number, 1 …; see
                last_from(). Those of one sender one after the other.

        Raises:
            QueueFull: no room now. QueueError: an argument makes no sense.
            AlreadyAccepted: the number is not above last_from(sender).
        """
        if not 0 < len(task_id) <= MAX_ID // 4 or not 0 <= priority < LANES:
            _check(task_id, priority)
        if sender is not None:
            self._check_new(*sender)
        due_ns = 0 if due is None else _nanoseconds(due)
        expires_ns = 0 if expires is None else _nanoseconds(expires)
        slot, generation, sleeper, is_news = self._store(
            task_id, payload, buffers, priority, max_deliveries, due_ns, expires_ns, sender
        )
        if sleeper:
            self._ringer.ring(sleeper)
        if is_news:
            self.ring_custodian()
        return Ticket(slot, generation, task_id)

    def last_from(self, sender: bytes) -> int:
        """The highest number of this sender that was put, by this process or one that has died,
        at whatever moment; 0: none is remembered.

        As many senders are remembered as there are slots, 1,024 at most: those that were asked
        for or put last. This, and put() with a sender, are for one process at a time, whoever
        keeps the others away; the next one may begin when it has died or is done.
        """
        if len(sender) != SENDER_ID:
            raise QueueError(f"sender of {len(sender)} bytes: use {SENDER_ID}")
        return self.core.last_from(sender)

    def _check_new(self, sender: bytes, number: int) -> None:
        if not 0 < number < 1 << 64:
            raise QueueError(f"number {number} of a message: use 1 to 2**64 - 1")
        last = self.last_from(sender)
        if number <= last:
            raise AlreadyAccepted(f"message {number}: its sender's are accepted up to {last}")

    def put_many(
        self,
        messages: Sequence[tuple[str, Buffer]],
        *,
        priority: int = DEFAULT_PRIORITY,
        max_deliveries: int = 0,
    ) -> list[Ticket]:
        """Add messages of (task id, payload), each as put() does, with less overhead.

        Returns the tickets of those that were added: fewer than there are messages when the queue
        is full. Raises QueueError (PayloadTooLarge: for a block), with none of them added.
        """
        _check("-", priority)
        tickets, wake = self.core.put_many(
            self.participant, list(messages), priority, max_deliveries, self.is_privileged, Ticket
        )
        for sleeper in wake:
            self._ringer.ring(sleeper)
        return tickets

    # ---- taking ----

    def claim(self, *, again: bool = True) -> Lease | None:
        """Take the next ready message, or None; again: those that were given back first."""
        while True:
            found = self.core.claim(self.participant, again)
            if found is None:
                return None
            lease = self._lease(*found)
            if lease is not None:
                return lease

    def claim_or_sleep(self, *, again: bool = True) -> Lease | None:
        """The same; None: announced as asleep, to be rung when there is something."""
        while True:
            found = self.core.claim_or_sleep(self.participant, again, not self._leases)
            if found is None:
                return None
            if found[-1]:  # there is more
                self._ringer.ring(found[-1])
            lease = self._lease(*found)
            if lease is not None:
                return lease

    def claim_many(self, most: int) -> list[Lease]:
        """Take and start up to `most` ready messages."""
        leases: list[Lease] = []
        claimed = self.core.claim_many(self.participant, most)
        for number, found in enumerate(claimed, 1):
            slot, word, task_id, stored, attempt, form, expires_ns, _ = found
            if form == PLAIN and not expires_ns:  # nothing can be wrong with these
                leases.append(Lease(self, slot, word, task_id, stored, attempt, 0))
                continue
            try:
                lease = self._lease(*found)
                if lease is not None:
                    if expires_ns:  # the only ones that are not started yet
                        lease.start()
                    leases.append(lease)
            except LeaseLost:
                continue
            except OSError:  # this process is short of something; others may not be
                for rest in claimed[number:]:
                    Lease(self, *rest[:5], rest[6]).release()
                if not leases:
                    raise
                break
        self._leases.update(leases)
        return leases

    def _lease(
        self,
        slot: int,
        word: int,
        task_id: str,
        stored: bytes,
        attempt: int,
        form: int,
        expires_ns: int,
        _sleeper: int,
    ) -> Lease | None:
        """None: its time is over, or what it needs is not there any more; it has been ended."""
        lease = Lease(self, slot, word, task_id, stored, attempt, expires_ns)
        self._leases.add(lease)
        if form == PLAIN and not expires_ns:
            return lease
        if form == IN_FILE:
            lease.file = request_file(slot, generation_of(word))
        if lease.end_if_expired():
            return None
        try:
            lease.payload, lease.buffers = self.assembled(form, stored, lease.file)
        except (SegmentError, FileNotFoundError) as error:
            lease.dead_letter(DeadReason.DAMAGED, f"its payload cannot be read: {error}")
            return None
        except OSError:  # no descriptors or memory here: another process may read it
            lease.release()
            raise
        return lease

    def finish_many(self, leases: Sequence[Lease], *, keep: bool = False) -> int:
        """Lease.finish() for many at once. Returns how many of them were ours no more."""
        held = [lease for lease in leases if lease.held]
        pairs = [(lease.slot, lease.word) for lease in held]
        if pairs and min(word for _, word in pairs) < _STARTED:  # the state comes first in the word
            raise ValueError("a lease among them has not been started")
        lost, woken = self.core.finish_many(self.participant, pairs, NO_RESULT if keep else FORGET)
        for lease in held:
            lease.held = False
            if lease.file:
                self.files.drop(lease.file)
        self._leases.difference_update(held)
        if not self._leases and self.on_empty is not None:
            self.on_empty()
        self.ring_watchers(woken)
        return lost

    def complete(self, lease: Lease, result: Buffer, buffers: Sequence[Buffer]) -> tuple[int, ...]:
        """The commit of Lease.complete(); returns the watchers to ring."""
        return self._store_result(lease.slot, lease.word, result, buffers)

    @property
    def unfinished(self) -> int:
        """How many leases this participant holds."""
        return len(self._leases)

    def lease_ends(self, lease: Lease) -> None:
        if self.on_empty is not None and len(self._leases) == 1 and lease in self._leases:
            self.on_empty()

    def lease_stays(self, lease: Lease) -> None:
        """It could not be ended after all."""
        self.core.set_empty(self.participant, False)

    def lease_ended(self, lease: Lease) -> None:
        self._leases.discard(lease)

    # ---- again ----

    def requeue(self, ticket: Ticket) -> Ticket:
        """A dead letter becomes a new message under the same id, with all its starts before it.

        Raises UnknownTask: it is no dead letter (any more). QueueFull: no room beside it.
        QueueError: another process does the same to one, and does not come to an end.
        """
        self._take_soon(REQUEUE_BYTE)
        try:
            return self._requeue(ticket)
        finally:
            self.give_lock(REQUEUE_BYTE)

    def _requeue(self, ticket: Ticket) -> Ticket:
        view = self.view(ticket)
        if view.state is not MessageState.DEAD:
            raise UnknownTask(f"task {ticket.task_id!r} is no dead letter")
        payload, buffers = self.peek(ticket)
        new = self.put(
            ticket.task_id,
            payload,
            buffers=buffers,
            priority=view.priority,
            max_deliveries=view.max_deliveries,
        )
        with suppress(UnknownTask):  # somebody dropped it meanwhile: the new one stays
            self.drop(ticket)
        return new

    def _take_soon(self, byte: int) -> None:
        """Two who send the same dead letter again at once must not both do so."""
        deadline = time.monotonic() + _REQUEUE_PATIENCE
        while not self.take_lock(byte):
            if time.monotonic() > deadline:
                raise QueueError(f"another process sends dead letters of {self.name!r} again")
            time.sleep(0.001)

    # ---- leaving ----

    def close(self) -> None:
        """Give back what is held and leave. Messages and results stay."""
        if self._closed:
            return
        acknowledged = False
        for lease in list(self._leases):
            try:
                lease.release()
            except LeaseLost:
                continue  # fenced: somebody else has it
            except ValueError:
                acknowledged = True
        self._close(acknowledged=acknowledged)

    def forget_in_child(self) -> None:
        self._leases.clear()
        super().forget_in_child()


def _check(task_id: str, priority: int) -> None:
    size = len(task_id.encode())
    if not 0 < size <= MAX_ID:
        raise QueueError(f"task id of {size} bytes: use 1 to {MAX_ID}")
    if not 0 <= priority < LANES:
        raise QueueError(f"priority {priority}: use 0 to {LANES - 1}")


def _nanoseconds(at: float) -> int:
    if not 0 <= at <= LONGEST:
        raise QueueError(f"time {at}: use Unix time in seconds")
    return max(1, int(at * 1e9))
