"""The queue of `--transport zmq`: which messages there are, who has them, and how they ended.

The rules are those of the segment: a start counts unless it was given back, who died too often is a
dead letter, what was acknowledged never runs again. Everything is decided here, in memory, and
written to the store by `commit()`, which holds all that has changed since the last one; nobody is
told of anything before that. A crash in between is as if it had not happened.

There is no step "begins": what a worker has been given counts as started when it dies, because a
task that kills its worker at once leaves no time to say so.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from taskiq_supervise.ipc import (
    Burial,
    DeadReason,
    DeathCause,
    MessageState,
    Outcome,
    OutcomeKind,
    PayloadTooLarge,
    Ticket,
    UnknownTask,
)
from taskiq_supervise.worker.listener.entry import Entry, changes_of, entry_of, row_of
from taskiq_supervise.worker.listener.intake import Incoming
from taskiq_supervise.worker.listener.store import MESSAGE, RESULT, Batch, Parts, Store
from taskiq_supervise.worker.listener.wire import MAX_PART

DEFAULT_MAX_DELIVERIES: Final = 3
SENDERS: Final = 8192
"""How many are remembered; the one that was silent for longest is forgotten first."""

_LANES = 10
_FAIR = 16
"""Each so many-th message is the one that has waited longest, whatever its priority."""
_WAITING = (MessageState.READY, MessageState.DELAYED)
_HELD = (MessageState.RUNNING, MessageState.ACKED)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the ledger keeps."""

    capacity: int = 262_144
    """Messages that wait or run."""
    results: int = 16_384
    result_bytes: int = 256 * 1024 * 1024
    result_ttl: float = 3600.0
    dead: int = 10_000
    in_memory: int = 64 * 1024 * 1024
    """Bytes of messages that need not be read from the file again."""


@dataclass
class _Changes:
    """Since the last commit."""

    new: dict[int, Entry] = field(default_factory=dict)
    changed: dict[int, Entry] = field(default_factory=dict)
    results: dict[int, Parts] = field(default_factory=dict)
    gone: dict[int, Entry] = field(default_factory=dict)
    senders: dict[bytes, tuple[int, float] | None] = field(default_factory=dict)
    """What was remembered before; None: nothing."""


class Ledger:
    """Used by one thread."""

    def __init__(
        self, store: Store, limits: Limits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = limits or Limits()
        self.max_deliveries = DEFAULT_MAX_DELIVERIES
        """For messages that say nothing else."""
        self.on_news: Callable[[str], None] = lambda _task_id: None
        """Called after a commit for each id with a message that was acknowledged, has ended or
        left."""
        self._store = store
        self._clock = clock
        self._entries: dict[int, Entry] = {}
        self._newest: dict[str, Entry] = {}
        self._lanes: tuple[deque[Entry], ...] = tuple(deque() for _ in range(_LANES))
        self._ready = 0
        self._picks = 0
        self._delayed: list[tuple[float, int]] = []
        self._expiring: list[tuple[float, int]] = []
        self._kept: dict[int, Entry] = {}
        """Outcomes, the oldest first; those of dead letters are `_dead`."""
        self._dead: dict[int, Entry] = {}
        self._kept_bytes = 0
        self._in_memory = 0
        self._senders: dict[bytes, tuple[int, float]] = {}
        self._changes = _Changes()
        # Never one that was in use before: somebody may still speak of it.
        self._next = int(clock() * 1e6)
        self._load()

    # ---- putting ----

    @property
    def unfinished(self) -> int:
        """Messages that wait or run."""
        return len(self._entries) - len(self._kept) - len(self._dead)

    @property
    def has_room(self) -> bool:
        return self.unfinished < self.limits.capacity

    @property
    def has_room_for_workers(self) -> bool:
        """What a running task sends comes first: it may be what others wait for."""
        return self.unfinished < self.limits.capacity + self.limits.capacity // 8

    @property
    def ready(self) -> int:
        """Messages that could run now, about."""
        return self._ready

    def last_from(self, sender: bytes) -> int:
        return self._senders.get(sender, (0, 0.0))[0]

    def accept(self, message: Incoming, sender: tuple[bytes, int] | None = None) -> Entry | None:
        """None: this number of this sender was accepted before. Raises PayloadTooLarge."""
        now = self._clock()
        if sender is not None and sender[1] <= self.last_from(sender[0]):
            return None
        parts = (message.payload, *message.buffers)
        check_parts(parts)
        schedule = message.schedule
        entry = Entry(
            self._next,
            message.task_id,
            schedule.priority,
            schedule.due if schedule.due is not None and schedule.due > now else None,
            schedule.expires,
            schedule.max_deliveries,
            now,
            size=message.size,
            parts=parts,
            sender=sender,
        )
        self._next += 1
        self._in_memory += entry.size
        self._changes.new[entry.seq] = entry
        if sender is not None:
            self._remember(*sender, now)
        self._add(entry)
        if entry.due is not None:
            entry.state = MessageState.DELAYED
        self._enqueue(entry)
        return entry

    def _remember(self, sender: bytes, number: int, now: float) -> None:
        before = self._senders.pop(sender, None)
        self._changes.senders.setdefault(sender, before)
        self._senders[sender] = (number, now)
        if len(self._senders) > SENDERS:
            oldest = next(iter(self._senders))
            self._changes.senders.setdefault(oldest, self._senders.pop(oldest))

    def _add(self, entry: Entry) -> None:
        self._entries[entry.seq] = entry
        older = self._newest.get(entry.task_id)
        entry.older = older
        self._newest[entry.task_id] = entry
        if older is not None and older.kind is OutcomeKind.NO_RESULT:
            self.forget(older)  # it has come again, as was said

    def _enqueue(self, entry: Entry, *, first: bool = False) -> None:
        if entry.expires is not None:
            heapq.heappush(self._expiring, (entry.expires, entry.seq))
        if entry.state is MessageState.DELAYED:
            assert entry.due is not None
            heapq.heappush(self._delayed, (entry.due, entry.seq))
            return
        lane = self._lanes[entry.priority]
        if first:
            lane.appendleft(entry)
        else:
            lane.append(entry)
        self._ready += 1

    # ---- giving to workers ----

    def next_ready(self) -> Entry | None:
        """Who is next, taken out of its lane: `give()` or `put_back()` it."""
        if not self._ready:
            return None
        self._picks += 1
        lanes = [lane for lane in reversed(self._lanes) if self._cleaned(lane)]
        if not lanes:
            return None
        lane = lanes[0]
        if self._picks % _FAIR == 0:
            lane = min(lanes, key=lambda lane: lane[0].seq)
        self._ready -= 1
        return lane.popleft()

    def _cleaned(self, lane: deque[Entry]) -> bool:
        """Without those at its front that wait no more. False: it is empty."""
        while lane and lane[0].state is not MessageState.READY:
            lane.popleft()
            self._ready -= 1
        return bool(lane)

    def put_back(self, entry: Entry) -> None:
        self._lanes[entry.priority].appendleft(entry)
        self._ready += 1

    def give(self, entry: Entry, worker: str) -> "Parts | None":
        """It is the worker's from the next commit on. None: its bytes are gone; it has ended."""
        parts = self._read(entry)
        if parts is None:
            detail = "its payload is not in the store"
            self.end(entry, OutcomeKind.DEAD, reason=DeadReason.DAMAGED, detail=detail)
            return None
        entry.state = MessageState.RUNNING
        entry.worker = worker
        entry.attempts += 1
        self._changed(entry)
        return parts

    def _read(self, entry: Entry) -> "Parts | None":
        if entry.parts is not None:
            return entry.parts
        found = self._store.read(entry.seq, MESSAGE)
        return None if found is None else (found[0], *found[1])

    def forget_bytes(self, entry: Entry) -> None:
        """It was sent to a worker; should it come back, the file has its bytes."""
        if entry.parts is not None and entry.seq not in self._changes.new:
            self._in_memory -= entry.size
            entry.parts = None

    def held(self, seq: int, worker: str, attempt: int) -> Entry | None:
        """The message if this start of it is this worker's and has not ended."""
        entry = self._entries.get(seq)
        if entry is None or entry.state not in _HELD:
            return None
        return entry if (entry.worker, entry.attempts) == (worker, attempt) else None

    def has_ended(self, seq: int, attempt: int) -> bool:
        """This very start has ended well already: it is being said a second time."""
        entry = self._entries.get(seq)
        if entry is None:
            return True
        return entry.ended is not None and entry.attempts in (attempt, attempt - 1)

    def held_by(self, worker: str) -> list[Entry]:
        return [
            entry
            for entry in self._entries.values()
            if entry.worker == worker and entry.state in _HELD
        ]

    def workers(self) -> set[str]:
        """Who has something."""
        return {
            entry.worker
            for entry in self._entries.values()
            if entry.worker is not None and entry.state in _HELD
        }

    def acknowledge(self, entry: Entry) -> None:
        entry.state = MessageState.ACKED
        self._changed(entry)

    def release(self, entry: Entry, *, counted: bool = False) -> None:
        """Back to those that wait, first in its lane; the start does not count."""
        if not counted:
            entry.attempts -= 1
        entry.state = MessageState.READY
        entry.worker = None
        self._changed(entry)
        self._enqueue(entry, first=True)

    # ---- ends ----

    def complete(self, entry: Entry, result: Parts) -> None:
        check_parts(result)
        self._changes.results[entry.seq] = result
        self.end(entry, OutcomeKind.RESULT, size=sum(memoryview(part).nbytes for part in result))

    def end(
        self,
        entry: Entry,
        kind: OutcomeKind,
        *,
        reason: DeadReason | None = None,
        detail: str = "",
        cause: DeathCause | None = None,
        size: int = 0,
        counted: bool = True,
    ) -> None:
        """It has ended; how is kept for those who ask. counted: its last start was one."""
        entry.attempts -= not counted
        is_dead = kind is OutcomeKind.DEAD
        entry.state = MessageState.DEAD if is_dead else MessageState.DONE
        entry.kind, entry.reason, entry.detail, entry.cause = kind, reason, detail, cause
        entry.ended = self._clock()
        entry.worker = None
        if not is_dead:
            self._drop_bytes(entry)
            entry.size = size
        self._changed(entry)
        if kind is OutcomeKind.NO_RESULT and self._newest[entry.task_id] is not entry:
            self.forget(entry)  # it has come again already
        else:
            self._keep(entry)

    def forget(self, entry: Entry) -> None:
        """It has ended, or what is known of its end has, and nobody is to be told anything."""
        entry.state = MessageState.DONE
        self._drop_bytes(entry)
        del self._entries[entry.seq]
        if self._kept.pop(entry.seq, None) is not None:
            self._kept_bytes -= entry.size
        self._dead.pop(entry.seq, None)
        self._unlink(entry)
        changes = self._changes
        changes.changed.pop(entry.seq, None)
        changes.results.pop(entry.seq, None)
        changes.gone[entry.seq] = entry

    def _unlink(self, entry: Entry) -> None:
        newest = self._newest[entry.task_id]
        if newest is entry:
            if entry.older is None:
                del self._newest[entry.task_id]
            else:
                self._newest[entry.task_id] = entry.older
            return
        while newest.older is not entry:
            assert newest.older is not None, "it is in the chain of its id"
            newest = newest.older
        newest.older = entry.older

    def _drop_bytes(self, entry: Entry) -> None:
        if entry.parts is not None:
            self._in_memory -= entry.size
            entry.parts = None

    def _keep(self, entry: Entry) -> None:
        limits = self.limits
        if entry.kind is OutcomeKind.DEAD:
            self._dead[entry.seq] = entry
            if len(self._dead) > limits.dead:
                self.forget(next(iter(self._dead.values())))
            return
        self._kept[entry.seq] = entry
        self._kept_bytes += entry.size
        while len(self._kept) > limits.results or (
            self._kept_bytes > limits.result_bytes and len(self._kept) > 1
        ):
            self.forget(next(iter(self._kept.values())))

    def bury(
        self,
        worker: str,
        cause: DeathCause,
        *,
        explained: bool = False,
        overdue: Iterable[str] = (),
    ) -> Burial:
        """What becomes of the messages of a worker that has died.

        explained: its end was planned, and no fault of what it ran. overdue: ids of tasks that it
        was killed for.
        """
        late = set(overdue)
        redelivered, dead, lost, timed_out = [], [], [], []
        # The oldest comes first again: each goes to the front.
        for entry in reversed(self.held_by(worker)):
            if entry.task_id in late:
                self.end(entry, OutcomeKind.TIMED_OUT, cause=cause)
                timed_out.append(entry.task_id)
            elif entry.state is MessageState.ACKED:
                self.end(entry, OutcomeKind.WORKER_LOST, cause=cause)
                lost.append(entry.task_id)
            elif explained:
                self.release(entry)
                redelivered.append(entry.task_id)
            elif entry.attempts >= (entry.max_deliveries or self.max_deliveries):
                self.end(
                    entry,
                    OutcomeKind.DEAD,
                    reason=DeadReason.MAX_DELIVERIES,
                    detail=f"its worker {cause}",
                    cause=cause,
                )
                dead.append(entry.task_id)
            else:
                self.release(entry, counted=True)
                redelivered.append(entry.task_id)
        return Burial(tuple(redelivered), tuple(dead), tuple(lost), tuple(timed_out))

    # ---- looking ----

    def find(self, target: str | Ticket) -> Entry:
        """The newest message of this id. Raises UnknownTask."""
        if isinstance(target, Ticket):
            entry = self._entries.get(target.generation)
            if entry is not None and entry.task_id == target.task_id:
                return entry
            target = target.task_id
        found = self._newest.get(target)
        if found is None:
            raise UnknownTask(
                f"task {target!r} is not in {self._store.path.parent}: it was never sent, "
                "or its result has expired"
            )
        return found

    def look(self, target: str | Ticket) -> Outcome | None:
        """How it ended, as far as that is written. Raises UnknownTask."""
        entry = self.find(target)
        if entry.ended is None or entry.seq in self._changes.changed:
            return None
        return self.outcome(entry)

    def awaited(self, target: str | Ticket) -> Outcome | None:
        """The same for who waits: without a result it may come again, and is waited for."""
        outcome = self.look(target)
        if outcome is None or outcome.kind is not OutcomeKind.NO_RESULT:
            return outcome
        task_id = outcome.task_id
        outcome = self.look(task_id)
        return None if outcome is None or outcome.kind is OutcomeKind.NO_RESULT else outcome

    def outcome(self, entry: Entry) -> Outcome:
        assert entry.kind is not None, "it has ended"
        data = b""
        buffers: tuple[memoryview, ...] = ()
        if entry.kind is OutcomeKind.RESULT:
            found = self._store.read(entry.seq, RESULT)
            if found is None:
                raise UnknownTask(f"the result of task {entry.task_id!r} is not in the store")
            data, buffers = found[0], tuple(memoryview(part) for part in found[1])
        return Outcome(
            entry.task_id,
            entry.kind,
            data,
            entry.attempts,
            entry.reason,
            entry.detail,
            entry.cause,
            buffers,
        )

    def unsettled(self) -> Iterator[tuple[Entry, bytes]]:
        """Those that ended otherwise than by the end of their function, with what is left of the
        message."""
        for entry in (*self._dead.values(), *self._kept.values()):
            if entry.settled or entry.kind in (OutcomeKind.RESULT, OutcomeKind.NO_RESULT):
                continue
            if entry.seq not in self._changes.changed:
                found = self._store.read(entry.seq, MESSAGE)
                yield entry, b"" if found is None else found[0]

    def settle(self, entry: Entry) -> None:
        entry.settled = True
        self._changed(entry)

    def was_acknowledged(self, target: str | Ticket) -> bool:
        """It never runs again, or nothing is known of it."""
        entry = self._entries.get(target.generation) if isinstance(target, Ticket) else None
        if entry is None and isinstance(target, str):
            entry = self._newest.get(target)
        if entry is None:
            return True
        return entry.seq not in self._changes.changed and (
            entry.state is MessageState.ACKED or entry.ended is not None
        )

    # ---- time ----

    def tick(self) -> None:
        """What is due becomes ready, what has expired ends, and old results go."""
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            entry = self._entries.get(heapq.heappop(self._delayed)[1])
            if entry is not None and entry.state is MessageState.DELAYED:
                entry.state = MessageState.READY
                entry.due = None
                self._changed(entry)
                self._lanes[entry.priority].append(entry)
                self._ready += 1
        while self._expiring and self._expiring[0][0] <= now:
            entry = self._entries.get(heapq.heappop(self._expiring)[1])
            if entry is not None and entry.state in _WAITING:
                self.end(entry, OutcomeKind.EXPIRED)
        if not self.limits.result_ttl:
            return
        while self._kept:
            oldest = next(iter(self._kept.values()))
            assert oldest.ended is not None
            if oldest.ended + self.limits.result_ttl > now:
                return
            self.forget(oldest)

    def next_time(self) -> float | None:
        """Unix time of the next `tick()`; None: nothing waits for its time."""
        times = [heap[0][0] for heap in (self._delayed, self._expiring) if heap]
        if self._kept and self.limits.result_ttl:
            ended = next(iter(self._kept.values())).ended
            assert ended is not None
            times.append(ended + self.limits.result_ttl)
        return min(times, default=None)

    # ---- the store ----

    @property
    def has_changes(self) -> bool:
        changes = self._changes
        return bool(changes.new or changes.changed or changes.gone or changes.senders)

    def commit(self) -> None:
        """Writes what has changed. Raises FilesFull, and all of it is still to be written."""
        changes = self._changes
        batch = self._batch(changes)
        self._store.write(batch)
        self._changes = _Changes()
        for entry in changes.new.values():
            if self._in_memory > self.limits.in_memory or entry.ended is not None:
                self.forget_bytes(entry)
        for entry in (*changes.changed.values(), *changes.gone.values()):
            if entry.ended is not None or entry.state in (MessageState.ACKED, MessageState.DONE):
                self.on_news(entry.task_id)

    def withdraw_new(self) -> list[Entry]:
        """There is no room for them: what was accepted since the last commit was not."""
        withdrawn = list(self._changes.new.values())
        for entry in withdrawn:
            if entry.seq in self._entries:
                self.forget(entry)
        changes = self._changes
        for entry in withdrawn:
            changes.gone.pop(entry.seq, None)
        changes.new.clear()
        for sender, before in changes.senders.items():
            if before is None:
                self._senders.pop(sender, None)
            else:
                self._senders[sender] = before
        changes.senders.clear()
        return withdrawn

    def forget_sender(self, sender: bytes) -> None:
        """It will not send any more."""
        if sender in self._senders:
            self._changes.senders.setdefault(sender, self._senders.pop(sender))

    def now(self) -> float:
        return self._clock()

    def _changed(self, entry: Entry) -> None:
        self._changes.changed[entry.seq] = entry

    def _batch(self, changes: _Changes) -> Batch:
        batch = Batch()
        for seq, entry in changes.new.items():
            if seq in changes.gone:
                continue
            batch.new.append(row_of(entry))
            if entry.parts is not None:
                batch.add_parts(seq, MESSAGE, entry.parts)
        for seq, entry in changes.changed.items():
            if seq not in changes.new:
                batch.changed.append(changes_of(entry))
            if entry.state is MessageState.DONE:
                batch.drop_parts(seq, MESSAGE)
        for seq, result in changes.results.items():
            batch.add_parts(seq, RESULT, result)
        for seq in changes.gone:
            batch.gone.append((seq,))
            batch.drop_parts(seq, MESSAGE)
            batch.drop_parts(seq, RESULT)
        for sender in changes.senders:
            known = self._senders.get(sender)
            if known is None:
                batch.gone_senders.append((sender,))
            else:
                batch.senders.append((sender, *known))
        return batch

    def _load(self) -> None:
        for row in self._store.rows():
            entry = entry_of(row)
            self._next = max(self._next, entry.seq + 1)
            self._add(entry)
            if entry.ended is not None:
                kept = self._dead if entry.kind is OutcomeKind.DEAD else self._kept
                kept[entry.seq] = entry
                self._kept_bytes += entry.size if kept is self._kept else 0
            elif entry.state not in _HELD:
                self._enqueue(entry)
        # By the time of their ends, not of their arrival.
        self._kept = dict(sorted(self._kept.items(), key=lambda each: each[1].ended or 0.0))
        for sender, last, used in self._store.senders():
            self._senders[sender] = (last, used)

    def close(self) -> None:
        self._store.close()


def check_parts(parts: Parts) -> None:
    """Raises PayloadTooLarge for what the store cannot hold."""
    for part in parts:
        size = memoryview(part).nbytes
        if size > MAX_PART:
            raise PayloadTooLarge(f"a part of {size} bytes; the store takes {MAX_PART}")
